"""What a model computes against the fixture, within the tolerances that were found with it.

Of a stage the fixture holds every 31st channel, the norm over all of them and their product with a fixed vector; each
of the three has a tolerance of its own. Tolerances are at least four times what differs between processors.
"""

import official_parity_rule as rule
import torch
from parity import fixture, fixture_info
from torch import Tensor

STAGES = ("backbone", "features", "quantised", "aligned", "gated", "masked", "visual_input")
STAGES += ("hidden.0", "hidden.1", "hidden.2")
CONSTANT_STAGES = ("position", "text_input")

# Of a stage: element, norm, product. The others: each element.
EVALUATION = {
    **dict.fromkeys(STAGES, (1e-4, 5e-4, 1e-3)), **dict.fromkeys(CONSTANT_STAGES, (5e-6, 2e-5, 2e-5)), "gate": 1e-4,
    "mlm_logits": 3e-5, "mvm_logits": 1e-6, "itm_logits": 2e-5, "logits": 5e-5, "loss": 2e-5,
}  # fmt: skip
TRAINING = {
    **dict.fromkeys(STAGES, (2e-4, 1e-3, 2e-3)), **dict.fromkeys(CONSTANT_STAGES, (5e-6, 2e-5, 2e-5)), "gate": 2e-4,
    "mlm_logits": 5e-5, "mvm_logits": 5e-6, "itm_logits": 5e-5, "loss": 5e-5, "after.cluster_size": 1e-3,
    "after.cluster_sum": 1e-3, "after.embed_avg": (2e-3, 1e-2, 2e-2), "after.embed": (2e-4, 1e-3, 2e-3),
    "running": 5e-6,
}  # fmt: skip
VQA_LOSS = 5e-3
# The margin between two codes: their distance, times what features may differ by.
MARGIN = 0.1
# Of gradients: of the norm, and of the product, in units of the norm of each.
GRADIENTS, BACKBONE_GRADIENTS = (1e-4, 1e-3), (5e-3, 3e-2)
KEY_BIAS = 1e-6


def differences(case: str, found: dict[str, Tensor], only: tuple[str, ...] = ()) -> dict[str, float]:
    """How far a case is from the fixture: by name, the largest deviation in units of its tolerance, above 1 or NaN.

    Integers that differ and shapes that differ are infinitely far off.

    Args:
        case: the fixture's name of it.
        found: by the fixture's names without the case, in full channels.
        only: what the names to compare begin with; all where empty.

    Raises:
        KeyError: the fixture has a tensor of the case that was not found.
    """
    far = {}
    for name, expected in fixture().items():
        inner = name.removeprefix(f"{case}.")
        if inner == name or inner.startswith("draw.") or (only and not inner.startswith(only)):
            continue
        deviation = _deviation(case, inner, found, expected)
        if not deviation <= 1:
            far[inner] = deviation
    return far


def _deviation(case: str, name: str, found: dict[str, Tensor], expected: Tensor) -> float:
    if name.startswith("grad."):
        return _gradient_deviation(name, found, expected)
    actual, tolerance = _stored_form(name, found), _tolerance(case, name)
    if name in ("after.embed", "after.embed_avg"):
        actual = actual[fixture()[f"{case}.after.rows"]]
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else float("inf")
    return float((actual.detach().double() - expected.double()).abs().max() / tolerance)


def _stored_form(name: str, found: dict[str, Tensor]) -> Tensor:
    """The part or the figure of a stage that the fixture holds under a name."""
    base, _, last = name.rpartition(".")
    if last in ("norm", "proj"):
        full = found[base].detach().double()
        return full.norm(dim=-1) if last == "norm" else full @ torch.from_numpy(rule.projection(full.shape[-1]))
    full, info = found[name], fixture_info()
    if name in (*STAGES, *CONSTANT_STAGES, "after.embed", "after.embed_avg"):
        return full[..., :: info["channel_stride"]]
    if name in ("mlm_logits", "mvm_logits"):
        return full[:, :: info[f"{name[:3]}_stride"]]
    return full.reshape(1) if name.endswith("num_batches_tracked") else full


def _tolerance(case: str, name: str) -> float:
    table = TRAINING if case.split("_")[0] in ("train", "fresh") else EVALUATION
    if name == "index.margin":
        return MARGIN
    if name.startswith("log."):
        return 1e-4
    if ".running_" in name:
        return table["running"]
    if name.startswith("loss"):
        return VQA_LOSS if case.startswith("vqa") else table["loss"]
    if name in table:
        return table[name] if isinstance(table[name], float) else table[name][0]
    base, _, last = name.rpartition(".")
    if last in ("norm", "proj"):
        return table[base][1 if last == "norm" else 2]
    return table.get(base, 0.0) if last in ("logsumexp", "target") else 0.0


def _gradient_deviation(name: str, found: dict[str, Tensor], expected: Tensor) -> float:
    if name == "grad.word_rows":
        return 0.0 if bool(found["grad.word"][expected].any(1).all()) else float("inf")
    norms = dict(zip(fixture_info()["gradients"], fixture()["train.grad.norm"].tolist(), strict=True))
    if name in ("grad.norm", "grad.proj"):
        which, worst = ("grad.norm", "grad.proj").index(name), 0.0
        for key, actual, right in zip(norms, found[name].tolist(), expected.tolist(), strict=True):
            relative = (BACKBONE_GRADIENTS if key.startswith("backbone.") else GRADIENTS)[which]
            allowed = KEY_BIAS if key.endswith("self.key.bias") else relative * norms[key]
            worst = max(worst, abs(actual - right) / allowed)
        return worst
    if name == "grad.total_norm":
        return float(abs(found[name] - expected) / (BACKBONE_GRADIENTS[0] * expected))
    step = fixture_info()["channel_stride"]
    full = found[name]
    key, actual = {
        "grad.word": (rule.WORDS, lambda: full[fixture()["train.grad.word_rows"]][:, ::step]),
        "grad.mask_emb": ("neck.mask_emb.weight", lambda: full),
        "grad.gate": ("neck.gate_fc.conv.weight", lambda: full[:, ::step]),
        "grad.conv": ("neck.conv.conv.weight", lambda: full[::step, ::step].flatten(1)),
        "grad.layer4": ("backbone.layer4.1.conv2.weight", lambda: full[::step, ::step]),
    }[name]
    relative = BACKBONE_GRADIENTS[0] if key.startswith("backbone.") else GRADIENTS[0]
    if actual().shape != expected.shape:
        return float("inf")
    return float((actual() - expected).abs().max() / (relative * norms[key]))
