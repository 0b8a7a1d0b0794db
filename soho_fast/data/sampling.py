"""Names of the random streams, and the key of a training sample."""

from __future__ import annotations

from typing import NamedTuple

# First word of the entropy of each stream of random numbers, so that streams with the same (seed, epoch) differ. The
# engine's order of the samples is stream 1.
SAMPLE_STREAM = 2
EVALUATION_STREAM = 3


class SampleKey(NamedTuple):
    """A sample of one epoch: its draws depend on both, so the epoch is part of what is asked for."""

    epoch: int
    index: int
