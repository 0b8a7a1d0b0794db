"""A full training step (forward, backward, optimiser) of soho_fast and of the eager pipeline with the same weights.

Both first have to agree on losses, codebook and gradients; otherwise nothing is timed. Every timed round is preceded by
a step of the other, so that both see the same machine; the ratio at the end is of medians over all rounds.
"""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.model.comparison import FINISHED, Comparison
from benchmarks.model.training_batches import mini_shape, paper_like_shape

SHAPES = {"mini": (mini_shape, 4), "paper-like": (paper_like_shape, 3)}


@pytest.fixture(scope="module", params=SHAPES)
def comparison(request) -> Iterator[tuple[Comparison, int]]:
    """A checked and warmed-up comparison of one shape, and how many rounds to time."""
    make_shape, rounds = SHAPES[request.param]
    both = Comparison(make_shape())
    both.check()
    for step in both.steps.values():
        step()
    yield both, rounds
    if all(both.seconds.values()):
        FINISHED.append(both)


@pytest.mark.parametrize("contender", ["soho_fast", "eager"])
def test_training_step(comparison, contender, benchmark):
    both, rounds = comparison
    (other,) = set(both.steps) - {contender}
    benchmark.group = f"training step, {both.shape.name}, {torch.get_num_threads()} threads"
    benchmark.extra_info["images"] = both.shape.images
    benchmark.pedantic(both.timed, args=(contender,), setup=lambda: both.timed(other), rounds=rounds)
