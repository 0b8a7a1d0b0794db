"""Our model with the weights and images of `official_parity_rule.py`, and what it computes, by the fixture's names.

B images, P pairs, L visual tokens, D channels, K codes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import official_parity_rule as rule
import torch
from parity import fixture, fixture_info
from torch import Tensor, nn

from soho_fast.model import SohoConfig, SohoForPreTraining, SohoForPreTrainingOutput, SohoForQuestionAnswering
from soho_fast.model.official.keys import TIED, our_name, rename

EXCEPTIONS = ("neck.conv.bn.running_mean", "neck.conv.bn.running_var")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "head_dropout": 0.0}
PRETRAINING_CASES = ("eval_landscape", "eval_portrait", "train", "fresh_1", "fresh_2")
VQA_CASES = ("vqa_landscape", "vqa_portrait")
BATCH_OF = {"train": "landscape", "fresh_1": "portrait", "fresh_2": "landscape"}


def official_state(kind: str = "keys") -> dict[str, Tensor]:
    """The state dict of the released model by rule: `keys` of pre-training, `vqa_keys` of question answering."""
    state = {name: torch.from_numpy(rule.weight(name, shape)) for name, shape in fixture_info()[kind].items()}
    return state | {name: fixture()[f"weights.{name}"] for name in EXCEPTIONS}


def load_by_rule(model: nn.Module, official: dict[str, Tensor]) -> nn.Module:
    """Fills a model; every tensor but the dictionary's own counters must be there."""
    renamed = rename(official)
    assert len(renamed) + (TIED in official) == len(official), "a name is not known"
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected
    own = {f"soho.visual_dictionary.{name}" for name in ("usage", "age", "step", "initialised")}
    assert set(missing) <= own | {"mlm_head.decoder.weight"}
    return model


def pretraining_model(**overrides: Any) -> SohoForPreTraining:
    config = SohoConfig.from_preset("official", **NO_DROPOUT, **overrides)
    return load_by_rule(SohoForPreTraining(config), official_state())


def vqa_model(**overrides: Any) -> SohoForQuestionAnswering:
    config = SohoConfig.from_preset("official_vqa", **NO_DROPOUT, **overrides)
    return load_by_rule(SohoForQuestionAnswering(config), official_state("vqa_keys"))


def images(name: str) -> dict[str, Tensor]:
    """`pixel_values` and `pixel_mask` of batch `landscape` or `portrait`."""
    sizes = fixture()[f"{name}.sizes"].tolist()
    pixels, _ = rule.batch(name, sizes)
    pixel_mask = torch.zeros(len(sizes), *pixels.shape[-2:], dtype=torch.bool)
    for number, (height, width) in enumerate(sizes):
        pixel_mask[number, :height, :width] = True
    return {"pixel_values": torch.from_numpy(pixels), "pixel_mask": pixel_mask}


def pretraining_inputs(case: str) -> dict[str, Tensor]:
    """The keywords of `SohoForPreTraining.forward`; four captions for each image."""
    tensors = fixture()
    grid = tensors[f"{case}.grid"].prod()
    place = tensors[f"{case}.draw.position"].double() + 0.5
    return {
        **images(BATCH_OF.get(case, case.partition("_")[2])),
        "input_ids": tensors["captions.input_ids"],
        "attention_mask": tensors["captions.attention_mask"],
        "mlm_labels": tensors["captions.mlm_labels"],
        "itm_labels": tensors["captions.match"],
        "image_index": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        "mask_uniform": (place / grid).expand(2),
        "mask_pairs": tensors[f"{case}.draw.pairs"].bool(),
    }


def vqa_inputs(case: str) -> dict[str, Tensor]:
    """The keywords of `SohoForQuestionAnswering.forward`; one question for each image."""
    tensors = fixture()
    scores = torch.zeros(2, 3129)
    scores[tuple(tensors["questions.targets.nonzero"].T)] = tensors["questions.targets.values"]
    texts = {name: tensors[f"questions.{name}"] for name in ("input_ids", "attention_mask")}
    return {**images(case.partition("_")[2]), **texts, "answer_scores": scores}


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What passes through a model's parts meanwhile, by the fixture's names, in full channels."""
    soho, found, handles = model.soho, {}, []

    def record(module: nn.Module | None, take: Callable[[Any, Any], dict[str, Tensor]]) -> None:
        if module is not None:
            hook = lambda _, inputs, output: found.update(take(inputs, output))  # noqa: E731
            handles.append(module.register_forward_hook(hook))

    record(soho.feature_norm, lambda _, output: {"features": output})
    record(soho.visual_encoder, lambda _, output: {"visual_mask": output[1].flatten(1).long()})
    record(soho.visual_encoder, lambda _, output: {"grid": torch.tensor(output[1].shape[1:])})
    record(soho.visual_dictionary, lambda _, output: {"quantised": output[0], "index": output[1]})
    if soho.fusion is not None:
        record(soho.fusion.align, lambda _, output: {"aligned": output})
        record(soho.fusion.norm, lambda _, output: {"gate": output.softmax(-1)})
        record(soho.fusion, lambda _, output: {"gated": output})
    record(soho.visual_embeddings, lambda inputs, output: {"masked": inputs[0], "visual_input": output})
    record(soho.visual_embeddings, lambda inputs, _: {"position": inputs[1][:: len(inputs[1]) // 2]})
    record(soho.text_embeddings, lambda _, output: {"text_input": output})
    for number, layer in enumerate(soho.encoder.layer):
        name = f"hidden.{number}"
        record(layer, lambda _, output, n=name: {n: output[0] if isinstance(output, tuple) else output})
    record(soho, lambda _, output: {"mvm_labels": output.mvm_labels})
    plain_run = soho.visual_encoder.run_backbone

    def run_backbone(*arguments: Any) -> Tensor:
        x_BChw = plain_run(*arguments)
        found["backbone"] = x_BChw.flatten(2).transpose(1, 2)
        return x_BChw

    soho.visual_encoder.run_backbone = run_backbone
    try:
        yield found
    finally:
        del soho.visual_encoder.run_backbone
        for handle in handles:
            handle.remove()


def run_pretraining(model: SohoForPreTraining, case: str, inputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """All that the fixture has of a case, but for what comes after a backward pass; the loss has its gradient."""
    inputs = pretraining_inputs(case) if inputs is None else inputs
    trains = not case.startswith("eval")
    model.train(trains)
    dictionary = model.soho.visual_dictionary
    before_KC = dictionary.codebook.clone()
    with recorded(model) as found, torch.set_grad_enabled(case == "train"):
        output = model(**inputs)
    found["index.margin"] = margins(found["features"], found["index"], before_KC)
    found |= outputs_found(output, inputs)
    if trains:
        found |= dictionary_found(model) | {"after.rows": found["index"].unique()}
    return found


def outputs_found(output: SohoForPreTrainingOutput, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits, losses and what the released code logs."""
    found = {}
    for name in ("mlm", "mvm"):
        logits, targets = output[f"{name}_logits"], output[f"{name}_targets"]
        found |= {f"{name}_logits": logits, f"{name}_logits.argmax": logits.argmax(-1)}
        found[f"{name}_logits.logsumexp"] = logits.logsumexp(-1)
        found[f"{name}_logits.target"] = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
        found[f"loss.{name}"] = output[f"{name}_loss"]
        right = (logits.argmax(-1) == targets).float().mean()
        found[f"log.acc_{'l' if name == 'mlm' else 'v'}"] = 100 * right.reshape(1)
    labels_P = inputs["itm_labels"]
    found["itm_logits"] = output.itm_logits
    found["loss.itm"] = nn.functional.cross_entropy(output.itm_logits, labels_P, reduction="none")
    found["log.acc_match"] = 100 * (output.itm_logits.argmax(-1) == labels_P).float().mean().reshape(1)
    found["log.select"] = (inputs["mlm_labels"] != -100).float().mean().reshape(1)
    torch.testing.assert_close(found["loss.itm"].mean(), output.itm_loss, rtol=1e-6, atol=1e-6)
    return found | {"loss": output.loss}


def dictionary_found(model: SohoForPreTraining) -> dict[str, Tensor]:
    """The dictionary as it is now."""
    dictionary = model.soho.visual_dictionary
    names = {"cluster_size": "cluster_size", "cluster_sum": "total", "embed_avg": "cluster_sum", "embed": "codebook"}
    return {f"after.{theirs}": getattr(dictionary, ours).clone() for theirs, ours in names.items()}


def run_vqa(model: SohoForQuestionAnswering, case: str) -> dict[str, Tensor]:
    """All that the fixture has of a case of question answering."""
    with recorded(model.eval()) as found, torch.no_grad():
        output = model(**vqa_inputs(case))
    return {**found, "logits": output.logits, "loss": output.loss}


def margins(feat_BLC: Tensor, index_BL: Tensor, codebook_KC: Tensor) -> Tensor:
    """Squared distance of the nearest code at another distance, less that of a token's own, float64 (B, L)."""
    feat_NC, codes_KC = feat_BLC.detach().double().flatten(0, 1), codebook_KC.double()
    distance_NK = feat_NC.square().sum(1, keepdim=True) + codes_KC.square().sum(1) - 2 * feat_NC @ codes_KC.T
    own_N1 = distance_NK.gather(1, index_BL.clamp(min=0).reshape(-1, 1))
    other_NK = distance_NK.masked_fill((distance_NK - own_N1).abs() < 1e-6, float("inf"))
    return (other_NK.amin(1) - own_N1.squeeze(1)).view(index_BL.shape)


def batch_norm_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics that the fixture has after the backward pass. Its own stand for those between the two passes,
    where ours have moved for both, and for the counters of moves, which nothing reads."""
    state, found = model.state_dict(), {}
    for name, value in fixture().items():
        when, _, theirs = name.removeprefix("train.").partition(".")
        if name.startswith("train.after_"):
            ours = when == "after_backward" and not theirs.endswith("num_batches_tracked")
            found[f"{when}.{theirs}"] = state[our_name(theirs)].clone() if ours else value
    return found


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that the fixture has of case `train`, in full."""
    parameters, info = dict(model.named_parameters()), fixture_info()
    trained = [parameters[our_name(name)].grad for name in info["gradients"]]
    named = dict(zip(info["gradients"], trained, strict=True))
    assert sum(p.grad is not None for p in parameters.values()) == len(trained)
    proj = [
        (grad.double().flatten() @ torch.from_numpy(2 * rule.uniform(f"gradient/{name}", grad.numel()) - 1))
        for name, grad in named.items()
    ]
    return {
        "grad.norm": torch.stack([grad.double().norm() for grad in trained]),
        "grad.proj": torch.stack(proj),
        "grad.total_norm": torch.stack([grad.double().norm() for grad in trained]).norm(),
        "grad.word": named["language.bert.embeddings.word_embeddings.weight"],
        "grad.mask_emb": named["neck.mask_emb.weight"],
        "grad.gate": named["neck.gate_fc.conv.weight"],
        "grad.conv": named["neck.conv.conv.weight"],
        "grad.layer4": named["backbone.layer4.1.conv2.weight"],
    }
