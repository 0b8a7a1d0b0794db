"""The order of the training samples: one order for any number of processes, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

# First word of the entropy of each stream of random numbers, so that streams with the same (seed, epoch) differ.
ORDER_STREAM = 1
SAMPLE_STREAM = 2
EVALUATION_STREAM = 3


class SampleKey(NamedTuple):
    """What the sampler asks the data set for. It carries the epoch, so that workers that outlive an epoch know it."""

    epoch: int
    index: int


class GlobalBatchSampler(Sampler[list[SampleKey]]):
    """Yields this rank's micro-batches, as lists of `SampleKey`; pass it to a DataLoader as `batch_sampler`.

    Optimiser step t of an epoch uses the samples [t * G, (t + 1) * G) of the epoch's order, where G is the global batch
    size, whatever the number of ranks; a last batch smaller than G is dropped. Within a step, micro-step a uses the
    next `micro_batch_size * world_size` samples, and rank r their r-th block. So two ranks with micro-batch 8 see, at
    every micro-step, exactly what one rank with micro-batch 16 sees.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        global_batch_size: int,
        micro_batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        """Check the sizes.

        Args:
            num_samples: Samples in the data set.
            global_batch_size: Samples of one optimiser step over all ranks.
            micro_batch_size: Samples of one forward on one rank; `global_batch_size / world_size` when None.
            rank: This process's number.
            world_size: Number of processes.
            seed: Seed of the order.
            shuffle: Draw a new order each epoch; False keeps the data set's.

        Raises:
            ValueError: The global batch does not divide over the ranks and micro-batches, or the set is smaller than
                one global batch.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 <= rank < world_size, got rank {rank} of {world_size}")
        if micro_batch_size is None:
            micro_batch_size = max(1, global_batch_size // world_size)
        per_micro_step = micro_batch_size * world_size
        if micro_batch_size < 1 or global_batch_size < 1 or global_batch_size % per_micro_step:
            raise ValueError(
                f"global_batch_size {global_batch_size} is not a multiple of micro_batch_size {micro_batch_size} x "
                f"world_size {world_size} = {per_micro_step}; change one of them"
            )
        if num_samples < global_batch_size:
            raise ValueError(
                f"the data set has {num_samples} samples, fewer than one global batch of {global_batch_size}; "
                "use a smaller batch or more data"
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.start_step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of a whole epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def micro_steps_per_step(self) -> int:
        """Forward passes of each rank per optimiser step (gradient accumulation steps)."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of `epoch` (counted from 0)."""
        self.set_position(epoch, 0)

    def set_position(self, epoch: int, step: int) -> None:
        """Start the next iteration at optimiser step `step` of `epoch`; step == steps_per_epoch gives no batch."""
        if epoch < 0 or not 0 <= step <= self.steps_per_epoch:
            raise ValueError(
                f"position: epoch {epoch}, step {step}; expected epoch >= 0 and 0 <= step <= {self.steps_per_epoch}"
            )
        self.epoch = epoch
        self.start_step = step

    def __len__(self) -> int:
        """Micro-batches from the start position to the end of the epoch."""
        return (self.steps_per_epoch - self.start_step) * self.micro_steps_per_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, start_step = self.epoch, self.start_step
        if self.shuffle:
            order = np.random.default_rng([ORDER_STREAM, self.seed, epoch]).permutation(self.num_samples)
        else:
            order = np.arange(self.num_samples)
        block = self.micro_batch_size * self.world_size
        end = self.steps_per_epoch * self.global_batch_size
        for begin in range(start_step * self.global_batch_size, end, block):
            mine = begin + self.rank * self.micro_batch_size
            yield [SampleKey(epoch, int(index)) for index in order[mine : mine + self.micro_batch_size]]
