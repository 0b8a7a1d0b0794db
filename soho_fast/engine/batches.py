"""Batches: which samples each process sees at each step, and how they reach the device.

The order is a function of (seed, epoch) alone. A global batch is a run of consecutive places in that order; micro-batch
j of rank r is the r-th slice of the j-th part. One process and many therefore see the same images in the same step, and
a resumed run continues at any step without replaying what came before.

Where samples differ in shape, those of a global batch that are alike are put into one micro-batch, for there is less
padding then. Which samples a step sees stays as random as without.

Where two kinds of samples must not meet in a micro-batch, the order is one of micro-batches, hence also a function of
their size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from soho_fast.common.errors import UserError
from soho_fast.common.processes import Processes
from soho_fast.common.progress import ProgressLines
from soho_fast.common.workers import begin_worker, end_workers, next_batch, share, start_workers
from soho_fast.engine.settings import BatchSettings

SIDE_KEYS = ("skipped", "sample_ids", "image_keys", "corrupt_images")

# The stream of random numbers that chooses stand-ins; the order of the samples is stream 1, the tasks have 2 and 3.
_STAND_IN_STREAM = 4
# 5 divides captions, in the data.
_PART_STREAM = 6
_MOST_STAND_INS = 100
_STAND_IN_NOTE = "; its batch held nothing else, so another image is taken in its place"

# A smaller tensor of a loader process comes through its pipe: shared memory, where torch puts all, costs both sides
# a quarter of a millisecond for each.
_PIPED = 1 << 20

# Micro-batches that each loader process prepares ahead.
_PREFETCHED = 4


@dataclass(frozen=True)
class BatchPlan:
    """Sizes of one run's batches; see `plan_batches`."""

    num_samples: int
    global_batch_size: int
    gradient_accumulation_steps: int
    micro_batch_size: int
    world: int
    steps_per_epoch: int
    seed: int
    group_keys: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Of each sample: those of a global batch whose keys are close share micro-batches."""
    kinds: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Of each sample, bool: samples of both kinds are never in one micro-batch."""

    def micro_batches(self, rank: int, first_step: int, total_steps: int) -> Iterator[list[tuple[int, int]]]:
        """Micro-batches of `rank` from optimiser step `first_step` on, each a list of (epoch, sample index)."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(first_step, total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._order(epoch)
            start = step % self.steps_per_epoch * self.global_batch_size
            batch = order[start : start + self.global_batch_size]
            if self.group_keys is not None:
                batch = self._grouped(batch, self.group_keys, step)
            for part in range(self.gradient_accumulation_steps):
                # Half as many ranks that accumulate twice as often have the same slices, in the same order.
                at = (part * self.world + rank) * self.micro_batch_size
                yield [(epoch, int(index)) for index in batch[at : at + self.micro_batch_size]]

    def _order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch. By kinds: each kind in micro-batches, the last one filled up from its own first
        samples, and these in random order; what the filling makes too many comes last and is left out."""
        rng = np.random.default_rng([1, self.seed, epoch])
        order = rng.permutation(self.num_samples)
        size = self.micro_batch_size
        if self.kinds is None:
            return order
        of_kind = [order[self.kinds[order] == kind] for kind in (False, True)]
        # `resize` repeats from the start, which fills the last micro-batch.
        parts = [np.resize(samples, (-(-len(samples) // size), size)) for samples in of_kind if len(samples)]
        # Rows are micro-batches, and stay whole.
        return rng.permutation(np.concatenate(parts)).ravel()

    def _grouped(self, batch: np.ndarray, keys: np.ndarray, step: int) -> np.ndarray:
        """A global batch in another order: like samples beside each other, parts at random.

        The ranks have parts alike at the same time, so that none waits long for another. Were the widest images always
        the last part, BatchNorm's running statistics would be theirs more than others'.
        """
        parts = batch[np.argsort(keys[batch], kind="stable")].reshape(self.gradient_accumulation_steps, -1)
        return parts[np.random.default_rng([_PART_STREAM, self.seed, step]).permutation(len(parts))].ravel()


def plan_batches(
    settings: BatchSettings, num_samples: int, world: int, seed: int, together: tuple[str, int] | None = None
) -> BatchPlan:
    """Check that the batch sizes fit together; `together` is a task's `samples_together`.

    Raises:
        UserError: the global batch does not divide, makes another number of samples than the task wants together, or
            is more than the data set.
    """
    parts = settings.gradient_accumulation_steps * world
    if together is not None and settings.global_batch_size != together[1] * parts:
        field, number = together
        raise UserError(
            f"{field}: {number} in one forward, with gradient_accumulation_steps "
            f"{settings.gradient_accumulation_steps} x processes {world}, need a batch.global_batch_size of "
            f"{number * parts}, got {settings.global_batch_size}; give --batch.global_batch_size {number * parts}, or "
            f"--{field} 0 to take any"
        )
    if settings.global_batch_size % parts:
        raise UserError(
            f"batch.global_batch_size: {settings.global_batch_size} does not divide by gradient_accumulation_steps "
            f"{settings.gradient_accumulation_steps} x processes {world} = {parts}; choose a multiple of {parts}"
        )
    if num_samples < settings.global_batch_size:
        raise UserError(
            f"batch.global_batch_size: {settings.global_batch_size} is more than the {num_samples} training samples; "
            "lower it or point data at a larger split"
        )
    return BatchPlan(
        num_samples=num_samples,
        global_batch_size=settings.global_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        micro_batch_size=settings.global_batch_size // parts,
        world=world,
        steps_per_epoch=num_samples // settings.global_batch_size,
        seed=seed,
    )


def grouped_plan(
    plan: BatchPlan, settings: BatchSettings, data: Any, processes: Processes, say: Callable[[str], None]
) -> BatchPlan:
    """The plan, by which samples of like shapes share micro-batches where that saves padding or is asked for."""
    grouping = settings.group_by_aspect_ratio
    by_kind = grouping == "orientation"
    has_parts = plan.micro_batch_size < plan.global_batch_size
    # Of a global batch that is one micro-batch there is nothing to group.
    if not (by_kind or (grouping and has_parts)) or not hasattr(data, "group_keys"):
        return plan
    progress = ProgressLines(say, "shapes of images")
    # Read by rank 0 alone, and sent: the order must be the same on all ranks.
    keys = processes.gather(processes.on_main(lambda: data.group_keys(progress)))[0]
    if by_kind:
        return replace(plan, kinds=keys > 0)
    return replace(plan, group_keys=keys) if keys.min() < keys.max() else plan


class _EpochDataset(Dataset):
    """Serves (epoch, index): loader processes live through epochs, and hear of a new one with the sample itself."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.epoch: int | None = None

    def __getitem__(self, item: tuple[int, int]) -> Any:
        epoch, index = item
        if epoch != self.epoch:
            self.dataset.set_epoch(epoch)
            self.epoch = epoch
        return self.dataset[index]

    def __getitems__(self, items: list[tuple[int, int]]) -> list[Any]:
        """The samples of a micro-batch. Where none of them can be used, others are drawn until one can: every process
        needs a batch at every step."""
        samples = [self[item] for item in items]
        if not all(map(_is_corrupt, samples)):
            return samples
        # Said of one of them; `own_reason` takes it off again, so that the image still counts once.
        samples[-1].corrupt += _STAND_IN_NOTE
        epoch, index = items[0]
        # By the first sample alone: the same stand-ins whichever process loads it.
        rng = np.random.default_rng([_STAND_IN_STREAM, epoch, index])
        for stand_in in rng.integers(len(self.dataset), size=_MOST_STAND_INS):
            samples.append(self[epoch, int(stand_in)])
            if not _is_corrupt(samples[-1]):
                break
        return samples


class _Piped(NamedTuple):
    """A tensor on its way through a loader's pipe."""

    values: np.ndarray


def _is_corrupt(sample: Any) -> bool:
    return getattr(sample, "corrupt", None) is not None


def own_reason(corrupt: str) -> str:
    """Why a sample is corrupt, without what its batch has to do with it."""
    return corrupt.removesuffix(_STAND_IN_NOTE)


def _collate(collate: Callable[[list], Mapping[str, Any]], samples: list[Any], *, piped: bool) -> Mapping[str, Any]:
    usable = [sample for sample in samples if not _is_corrupt(sample)]
    # Each once and as first met: `collate_images` has the images of a batch in this order too.
    numbers = dict.fromkeys(number for sample in usable for number in getattr(sample, "image_keys", ()))
    batch = dict(collate(samples))
    if numbers:
        batch["image_keys"] = list(numbers)
    if piped and get_worker_info() is not None:
        for key, value in batch.items():
            # numpy has no bfloat16.
            if isinstance(value, torch.Tensor) and value.nbytes < _PIPED and value.dtype != torch.bfloat16:
                # A copy: of a large tensor, whose memory moves when that is sent, it may be a part.
                batch[key] = _Piped(value.numpy().copy())
    return share(batch)


class Batches:
    """An iterator over a rank's micro-batches that owns its loader processes.

    Args:
        dataset: `len`, `[index]` and `set_epoch(epoch)`.
        collate: list of samples -> mapping of the model's keyword arguments, with `SIDE_KEYS` beside them, of which
            "image_keys", the numbers of the batch's images, each once, comes from the samples themselves.
        micro_batches: (epoch, index) of the samples of each, as `BatchPlan.micro_batches` gives them.
        settings: workers.
        seed: of the loader's own generator.
        pin: pin memory (for copies to a GPU).
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list], Mapping[str, Any]],
        micro_batches: Iterable[list[tuple[int, int]]],
        settings: BatchSettings,
        *,
        seed: int = 0,
        pin: bool = False,
    ) -> None:
        workers = settings.workers
        loader = DataLoader(
            _EpochDataset(dataset),
            batch_sampler=micro_batches,
            # What is to be pinned has to be a tensor.
            collate_fn=partial(_collate, collate, piped=not pin),
            num_workers=workers,
            prefetch_factor=_PREFETCHED if workers else None,
            worker_init_fn=begin_worker,
            pin_memory=pin,
            # Without its own generator the loader would draw from the global one, which dropout reads.
            generator=torch.Generator().manual_seed(seed),
        )
        self._iterator: Iterator[Mapping[str, Any]] = start_workers(loader)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Mapping[str, Any]:
        batch = next_batch(self._iterator)
        return {
            key: torch.from_numpy(value.values) if isinstance(value, _Piped) else value for key, value in batch.items()
        }

    def close(self) -> None:
        """End the loader processes."""
        end_workers(self._iterator)
        # A second call finds nothing to end.
        self._iterator = iter(())


def split_batch(batch: Mapping[str, Any], device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model keywords on `device`, side information); tensors are copied without waiting when pinned."""
    inputs = {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
        if key not in SIDE_KEYS
    }
    return inputs, {key: batch[key] for key in SIDE_KEYS if key in batch}
