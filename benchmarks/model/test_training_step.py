"""A full training step (forward, backward, optimiser) of soho_fast and of the eager pipeline with the same weights.

Both first have to agree on losses, codebook and gradients in float32; otherwise nothing is timed. On a CPU that
multiplies bfloat16 the engine's step in it is timed too, with losses near float32's. Every timed round is preceded by a
step of the others, so that all see the same machine; the ratios at the end are of medians over all rounds.
"""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.model.comparison import FINISHED, Comparison
from benchmarks.model.training_batches import mini_shape, official_shape, paper_like_shape
from benchmarks.short import first_by_default

SHAPES = {
    "mini": (mini_shape, 4),
    "paper-like": (paper_like_shape, 3),
    "paper-like, dropout 0.1": (lambda: paper_like_shape(dropout=0.1), 3),  # as recipe `paper` has it
    "official": (official_shape, 3),
    "official, no block run again": (lambda: official_shape(recomputed=False), 3),
}


@pytest.fixture(scope="module", params=first_by_default(SHAPES))
def comparison(request) -> Iterator[tuple[Comparison, int]]:
    """A checked and warmed-up comparison of one shape, and how many rounds to time."""
    make_shape, rounds = SHAPES[request.param]
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    both = Comparison(make_shape(), bf16=bool(native))
    both.check()
    for step in both.steps.values():
        step()
    yield both, rounds
    if all(both.seconds.values()):
        FINISHED.append(both)


@pytest.mark.parametrize("method", ["soho_fast", "soho_fast bf16", "eager"])
def test_training_step(comparison, method, benchmark):
    both, rounds = comparison
    if method not in both.steps:
        pytest.skip("no bfloat16 products here: neither AVX512-BF16 nor AMX")

    def others() -> None:
        for name in both.steps:
            if name != method:
                both.timed(name)

    benchmark.group = f"training step, {both.shape.name}, {torch.get_num_threads()} threads"
    benchmark.extra_info["images"] = both.shape.images
    benchmark.pedantic(both.timed, args=(method,), setup=others, rounds=rounds)
