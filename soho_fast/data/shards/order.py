"""The order of an epoch when samples lie in shards: nearly that of the disk, yet shuffled.

Shards are put in a random order, and then no sample moves further than `WINDOW` places: at any time reading touches the
few shards that so many samples fill, and goes forward through them. The order is a function of the generator alone, not
of processes or workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 2**16
"""Samples among which one is drawn: a hundred batches of the paper, and some seven shards of img2dataset."""


def epoch_order(parts: Sequence[np.ndarray], rng: np.random.Generator, *, window: int = WINDOW) -> np.ndarray:
    """The samples of an epoch, each once, int64 (samples,).

    Args:
        parts: Of each data set, in turn, int64 (shards + 1,): where its shards begin, and where the last one ends. One
            that is not in shards is one shard: two numbers, and is shuffled whole.
        rng: Source of all draws.
        window: Largest number of places that a sample moves, in its data set.

    Returns:
        Data sets are mixed evenly: each place draws at random from which one it takes the next sample.
    """
    orders = [_of_one(bounds, rng, window) for bounds in parts]
    if len(orders) == 1:
        return orders[0]
    part_of = rng.permutation(np.repeat(np.arange(len(orders)), [len(order) for order in orders]))
    mixed = np.empty(len(part_of), np.int64)
    for part, order in enumerate(orders):
        mixed[part_of == part] = order
    return mixed


def _of_one(bounds: np.ndarray, rng: np.random.Generator, window: int) -> np.ndarray:
    if len(bounds) == 2:
        return bounds[0] + rng.permutation(int(bounds[1] - bounds[0]))
    shards = rng.permutation(len(bounds) - 1)
    samples = np.concatenate([np.arange(bounds[shard], bounds[shard + 1], dtype=np.int64) for shard in shards])
    return samples[np.argsort(np.arange(len(samples)) + rng.random(len(samples)) * window, kind="stable")]
