"""Section 4.5 at its own size, batch 1: bottom-up attention in float32 and SOHO, checked before it is timed.

All methods, batches and memory: python -m benchmarks.inference RESULT.
"""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.inference.baselines import EXACT, REGION, SOHO, Method, Sizes, make_methods, names_here
from benchmarks.inference.measure import FINISHED, check, one_pass
from benchmarks.inference.targets import Row

pytestmark = pytest.mark.full

ROUNDS = 2
CHOSEN = (f"{REGION}, float32", EXACT, *(f"{SOHO} prepared, {each}" for each in ("float32", "bf16", "int8")))
NAMES = [name for name in names_here("cpu") if name in CHOSEN]


@pytest.fixture(scope="module")
def timed() -> Iterator[tuple[dict[str, Method], dict[str, list[dict[str, float]]]]]:
    """The methods by name, warm and checked, and the passes that are timed."""
    sizes = Sizes()
    made = {each.name: each for each in make_methods(NAMES, sizes)}
    check(list(made.values()), made[EXACT].run, sizes, "cpu")
    one_pass(made[NAMES[0]], sizes.inputs(1), "cpu")
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in made}
    yield made, passes
    for name, stages in passes.items():
        if stages:
            fastest = min(stages, key=lambda each: sum(each.values()))
            FINISHED.append(Row(name, made[name].family, made[name].precision, 1, fastest))


@pytest.mark.parametrize("name", NAMES)
def test_inference(timed, name, benchmark):
    made, passes = timed
    inputs = Sizes().inputs(1)

    def run(each: str) -> None:
        passes[each].append(one_pass(made[each], inputs, "cpu"))

    def others() -> None:
        for each in NAMES[1:]:  # The region pipeline takes as long as all others together.
            if each != name:
                run(each)

    benchmark.group = f"inference, 600 x 1000 pixels and 16 words, {torch.get_num_threads()} threads"
    benchmark.pedantic(run, args=(name,), setup=others, rounds=ROUNDS)
