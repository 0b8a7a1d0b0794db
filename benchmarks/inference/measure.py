"""Times, agreement and operations of the methods, as one result that can be kept as JSON."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version

import cpuinfo
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inference.baselines import EXACT, Method, Sizes, SohoRun, make_methods
from benchmarks.inference.clock import Clock
from benchmarks.inference.memory import pass_bytes
from benchmarks.inference.region_pipeline import RegionPipeline
from benchmarks.inference.targets import Row, verdicts
from soho_fast.model.outputs import VisualTokens

# The published layers take one image at a time, and the 300 regions of one are a large batch already: more images at
# once change a time per image little (seen at 8), and 32 of them take minutes.
LARGEST_REGION_BATCH = 8

PACKAGES = ("torch", "torchvision", "transformers")
# How far SOHO's features, and its logits from the float32 model's tokens, may be from the float32 model's: in root mean
# square, as a share of how features differ from place to place and logits from answer to answer. In bfloat16 it is
# BF16_FACTOR times as far as plain autocast. What is further off is not timed. Logits from a method's own
# tokens are no measure here: random features lie between random codes, some of which then change.
MOST_WRONG = {"float32": 1e-3, "int8": 0.6}
BF16_FACTOR = 2.0
_CHECKED_INPUTS = 4
_PRODUCT = 2048

FINISHED: list[Row] = []  # what test_inference.py has timed, for the end of its run


def one_pass(method: Method, inputs: tuple[Tensor, Tensor], device: str) -> dict[str, float]:
    """Seconds of its stages."""
    with torch.inference_mode():
        clock = Clock(device)
        method.run(*inputs, clock)
        return clock.seconds()


def check(methods: Sequence[Method], exact: SohoRun, sizes: Sizes, device: str) -> dict[str, dict[str, float]]:
    """How far each of SOHO's methods is from `exact` (see MOST_WRONG), the shares of equal codes and answers.

    Raises:
        RuntimeError: one is further off than its precision allows, or not finite.
    """
    found = {}
    with torch.inference_mode():
        inputs = [tuple(x.to(device) for x in sizes.inputs(1, seed)) for seed in range(_CHECKED_INPUTS)]
        tokens = [exact.encode(pixels) for pixels, _ in inputs]
        expected = _outputs(exact, tokens, tokens, inputs)
        plain = SohoRun(exact.model, autocast=True)
        in_bf16 = _errors(_outputs(plain, [plain.encode(pixels) for pixels, _ in inputs], tokens, inputs), expected)
        for method in methods:
            if not method.is_soho or method.run is exact:
                continue
            mine = [method.run.encode(pixels) for pixels, _ in inputs]
            ours = _outputs(method.run, mine, tokens, inputs)
            errors = _errors(ours, expected)
            for what, error in errors.items():
                most = MOST_WRONG.get(method.precision, BF16_FACTOR * in_bf16[what])
                if not error <= most:
                    raise RuntimeError(
                        f"{method.name}: {what} are off by {error:.2g} of what sets them apart, at most "
                        f"{most:.2g} is allowed: nothing is timed"
                    )
            same_codes = [float((a.index == b.index).float().mean()) for a, b in zip(mine, tokens, strict=True)]
            same_answers = (ours["logits"].argmax(1) == expected["logits"].argmax(1)).double().mean()
            shares = {"same_codes": sum(same_codes) / len(same_codes), "same_answers": float(same_answers)}
            found[method.name] = {**errors, **shares}
    return found


def _outputs(
    run: SohoRun, mine: list[VisualTokens], tokens: list[VisualTokens], inputs: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Features (places, D) of the tokens of `mine`, and logits (inputs, A) of the given tokens; float64."""
    logits = [run.read(visual, words_BS) for visual, (_, words_BS) in zip(tokens, inputs, strict=True)]
    features = [visual.features.flatten(0, 1) for visual in mine]
    return {"features": torch.cat(features).double().cpu(), "logits": torch.cat(logits).double().cpu()}


def _errors(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    spreads = {what: values - values.mean(axis, keepdim=True) for axis, (what, values) in enumerate(expected.items())}
    return {
        what: float((ours[what] - expected[what]).square().mean().sqrt() / spread.square().mean().sqrt())
        for what, spread in spreads.items()
    }


def operations(method: Method, inputs: tuple[Tensor, Tensor]) -> dict[str, int]:
    """Floating-point operations of each stage, by torch's counter (a multiplication and an addition are two)."""
    counts, before = {}, 0

    class Counting(Clock):
        def ends(self, stage: str) -> None:
            nonlocal before
            now = counter.get_total_flops()
            counts[stage], before = now - before, now

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        method.run(*inputs, Counting())
    return counts


def product_rates(device: str) -> dict[str, float]:
    """Operations a second of a plain matrix product, the best of some: what the machine gives."""
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.randn(_PRODUCT, _PRODUCT, device=device).to(dtype)
        seconds = []
        for _ in range(5):
            clock = Clock(device)
            matrix @ matrix
            clock.ends("")
            seconds += clock.seconds().values()
        rates[name] = 2 * _PRODUCT**3 / min(seconds)
    return rates


def measure(
    names: Sequence[str], sizes: Sizes, batches: Sequence[int], rounds: int, device: str, say: Callable[[str], None]
) -> dict:
    """All there is to say of the methods, after those of SOHO were checked against its plain float32 model.

    In a round each method makes a pass, so that all see the same machine; the fastest pass counts, since what
    others take from a shared machine only adds. The region pipeline runs at batches up to LARGEST_REGION_BATCH.

    Args:
        names: of methods, some of `baselines.NAMES`.
        sizes: of images and networks.
        batches: how many images a pass takes.
        rounds: at batch 1; two at the larger ones, where a pass takes longer.
        device: "cpu" or "cuda".
        say: is told what goes on.

    Raises:
        RuntimeError: a method's result is wrong.
    """
    say(f"{device}, {torch.get_num_threads()} threads: building {len(names)} methods")
    made = make_methods(names, sizes, device)
    exact = next((each.run for each in made if each.name == EXACT), None)
    agreement = check(made, exact, sizes, device) if exact else {}
    for name, found in agreement.items():
        say(f"{name}, against float32: " + ", ".join(f"{what} {value:.3g}" for what, value in found.items()))
    rows, boxes = [], {}
    for batch in batches:
        inputs = tuple(x.to(device) for x in sizes.inputs(batch))
        timed = [each for each in made if each.is_soho or batch <= LARGEST_REGION_BATCH]
        passes: dict[str, list[dict[str, float]]] = {each.name: [] for each in timed}
        for number in range(1 + rounds if batch == 1 else 2):
            for method in timed:
                seconds = one_pass(method, inputs, device)
                if number or batch > 1:  # The first pass of all packs weights and compiles.
                    passes[method.name].append(seconds)
        for method in timed:
            fastest = min(passes[method.name], key=lambda stages: sum(stages.values()))
            rows.append(Row(method.name, method.family, method.precision, batch, fastest))
            say(_line(rows[-1]))
            if batch == 1 and isinstance(method.run, RegionPipeline):
                boxes[method.name] = method.run.boxes_seen
    counted = {each.family: operations(each, tuple(x.to(device) for x in sizes.inputs(1))) for each in reversed(made)}
    products = product_rates(device)
    del made
    memory = {row.method: pass_bytes(row.method, sizes, row.batch, device) for row in rows if row.batch == 1}
    return {
        **setup_of(sizes, device),
        "rows": [asdict(row) for row in rows],
        "boxes": boxes,
        "agreement": agreement,
        "operations": counted,
        "products": products,
        "peak_bytes": memory,
        "targets": [asdict(verdict) for verdict in verdicts(rows, counted, products)],
    }


def _line(row: Row) -> str:
    stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in row.seconds.items())
    return f"{row.method}, batch {row.batch}: {row.total():.3f} s ({stages})"


def setup_of(sizes: Sizes, device: str) -> dict:
    """What ran, where and at which sizes."""
    processor = cpuinfo.get_cpu_info().get("brand_raw", "unnamed CPU")
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in PACKAGES},
        "datetime": datetime.datetime.now().isoformat(timespec="seconds"),
        "input": f"{sizes.height} x {sizes.width} pixels, {sizes.words} words",
    }
