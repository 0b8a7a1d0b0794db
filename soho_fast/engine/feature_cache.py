"""The batches of a run, and the feature cache: while the backbone is frozen, its features of each training image are
computed once, and read in every later pass.

Each process computes a share of the images and writes the features into a file without a name, in memory. Such a file
is gone with the last process that has it open, however that ends, and no other run can take it for its own. The
processes of a machine read each other's; machines share nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from soho_fast.common.processes import Processes
from soho_fast.common.progress import ProgressLines
from soho_fast.common.shared_arrays import HAS_MEMORY_FILES, machine_name, memory_file, path_for_others
from soho_fast.engine.batches import Batches, BatchPlan, own_reason, split_batch
from soho_fast.engine.settings import TrainSettings
from soho_fast.engine.task import FeatureCacheTask, Task
from soho_fast.engine.watchdog import StopRequest

_GB = 1e9


class TrainingBatches:
    """The micro-batches of a rank, from any step on.

    While the backbone is frozen for more than one pass over the images, its features of each are computed once and take
    the image's place in every batch, as far as `engine.feature_cache_gb` allows.

    Args:
        task: what is trained; see `FeatureCacheTask`.
        data: what it is trained on.
        plan: the run's batch plan.
        settings: the recipe.
        processes: this run's ranks.
        total_steps: steps of the whole run.
        precision: gives the context in which a training step computes.
        say: called on rank 0 with each line.
    """

    def __init__(
        self,
        task: Task,
        data: Any,
        plan: BatchPlan,
        settings: TrainSettings,
        processes: Processes,
        *,
        total_steps: int,
        precision: Callable[[], AbstractContextManager],
        say: Callable[[str], None],
    ) -> None:
        self.task, self.data, self.plan, self.settings, self.processes = task, data, plan, settings, processes
        self.total_steps, self.precision, self.say = total_steps, precision, say
        has_images = getattr(data, "images", None) is not None
        self._cache_task = task if has_images and isinstance(task, FeatureCacheTask) else None
        begin, end = (epochs * plan.steps_per_epoch for epochs in settings.optim.frozen_span())
        # Of fractions of an epoch the whole steps in which `Schedule.is_frozen` holds.
        self._frozen = range(math.ceil(min(begin, total_steps)), math.ceil(min(end, total_steps)))
        self._cache: FeatureCache | None = None
        self._batches: Batches | None = None
        # Below any step: the first `prepare` starts.
        self._until = -1

    def prepare(self, step: int, model: nn.Module, stop: StopRequest) -> int:
        """Called before each step: starts loader processes and fills the cache where that is due. Returns a signal that
        asked to stop, or 0.

        The backbone must be frozen already where it is in this step.
        """
        if step < self._until:
            return 0
        # The loader processes that are there end first: filling starts its own.
        self.close()
        until = self.total_steps
        task = self._cache_task
        if task is not None and self._cache_pays(task, max(step, self._frozen.start), model):
            if step < self._frozen.start:
                # Until then batches have pixels; the cache is filled by the frozen backbone, not by what it is now.
                until = self._frozen.start
            else:
                self._cache, signal_number = self._fill(task, model, stop)
                if signal_number:
                    return signal_number
                # Without a cache these batches last to the end of the run: it is not tried again.
                if self._cache is not None:
                    until = self._frozen.stop
        data = self.data if self._cache is None else self.data.without_pixels(self._cache.corrupt)
        micro_batches = self.plan.micro_batches(self.processes.rank, step, until)
        self._batches = self._load(data, self.task.collate, micro_batches, self.plan.seed)
        self._until = until
        return 0

    def __next__(self) -> Mapping[str, Any]:
        assert self._batches is not None, "`prepare` comes first"
        batch = next(self._batches)
        if self._cache is None or self._cache_task is None:
            return batch
        features = self._cache_task.collate_features([self._cache[number] for number in batch["image_keys"]])
        if self.processes.device.type != "cpu":
            # The loader pins what it collates; these were put in here.
            features = {name: None if value is None else value.pin_memory() for name, value in features.items()}
        return {**batch, **features}

    def close(self) -> None:
        """End the loader processes, and let go of the cache."""
        if self._batches is not None:
            self._batches.close()
        self._batches = self._cache = None

    def _cache_pays(self, task: FeatureCacheTask, step: int, model: nn.Module) -> bool:
        """Whether the backbone is frozen for more than one pass over the images from this step on, and its features can
        be cached; says if not."""
        engine, num_images = self.settings.engine, len(self.data.images)
        if step not in self._frozen or not engine.feature_cache_gb:
            return False
        if not task.caches_features(model):
            self.say("the backbone's features of an image differ between batches: they are computed in each step")
            return False
        num_steps = self._frozen.stop - step
        if num_steps * self.plan.global_batch_size > num_images:
            return True
        self.say(
            f"the backbone is frozen for {num_steps:,} steps, at most one pass over the {num_images:,} images: its "
            "features are computed in each step"
        )
        return False

    def _load(
        self, data: Any, collate: Callable, micro_batches: Iterable[list[tuple[int, int]]], seed: int = 0
    ) -> Batches:
        pin = self.processes.device.type != "cpu"
        return Batches(data, collate, micro_batches, self.settings.batch, seed=seed, pin=pin)

    def _fill(self, task: FeatureCacheTask, model: nn.Module, stop: StopRequest) -> tuple[FeatureCache | None, int]:
        """Compute and keep the features of every image. All ranks make the call.

        Returns:
            The cache, or None where space is lacking, which is reported; and the number of a signal that asked to stop.
        """
        processes, say, size = self.processes, self.say, self.plan.micro_batch_size
        images = _ImagePass(len(self.data.images), size, processes)
        # Closing it on leaving closes the file alone: what `join` has mapped stays.
        cache = FeatureCache(processes.rank)
        batches = self._load(self.data.images, partial(_collate, task.collate_images), images.micro_batches())
        progress, began = ProgressLines(say, "feature cache"), time.monotonic()
        with closing(batches), closing(cache):
            for step in range(images.num_steps):
                inputs, side = split_batch(next(batches), processes.device)
                with torch.no_grad(), self.precision():
                    found = task.image_features(model, task.on_device(inputs))
                    features = dict(zip(side["image_keys"], found, strict=True))
                # The last steps begin again, to be as many on each rank; those images are in the cache already.
                own = images.numbers(step)
                cache.corrupt |= {number: why for number, why in side["corrupt_images"].items() if number in own}
                features = {number: feature.cpu() for number, feature in features.items() if number in own}
                if step == 0:
                    # Estimated by the first step, before anything is written: each machine holds all images, however
                    # many ranks it has.
                    sizes = [sum(feature.nbytes for feature in features.values()), len(features)]
                    num_bytes, num_images = processes.total(sizes)
                    needed = num_bytes / max(num_images, 1) * images.num_images
                    budget = self._budget(needed, images.num_images)
                    if not budget:
                        return None, 0
                    cache.open()
                cache.write(features)
                # All ranks leave the loop together: one that left alone would be waited for in the next collective. The
                # peers of a machine write about as much as this rank.
                signal_number, used, failed = processes.maximum(
                    [stop.pending(), cache.num_bytes * len(images.peers), cache.error is not None]
                )
                if signal_number:
                    return None, int(signal_number)
                if failed or used > budget:
                    break
                progress(min((step + 1) * len(images.peers) * size, images.num_images), images.num_images)
            # `join` is collective: the conditions before it are the same on all ranks.
            if failed or used > budget or not cache.join(images.peers, processes):
                errors = [error for error in processes.gather(cache.error) if error]
                why = errors[0] if errors else f"the images differ in size, and all take more than {budget / _GB:g} GB"
                say(f"feature cache: not used, the features are computed in each step: {why}")
                return None, 0
        corrupt = f", {len(cache.corrupt):,} of them corrupt" if cache.corrupt else ""
        say(f"feature cache: filled for {images.num_images:,} images{corrupt} ({time.monotonic() - began:.0f} s)")
        return cache, 0

    def _budget(self, needed: float, num_images: int) -> float:
        """How many bytes may be cached at most where so many are needed; 0: none. Says which."""
        memory = self.settings.engine.feature_cache_gb * _GB if HAS_MEMORY_FILES else 0.0
        what = f"the backbone is frozen: its features of {num_images:,} images take {needed / _GB:.3g} GB"
        limit = f"engine.feature_cache_gb {memory / _GB:g}"
        if needed > memory:
            self.say(f"{what}, more than {limit} allows: they are computed in each step")
            return 0.0
        self.say(f"{what}, computed once and cached in memory ({limit})")
        return memory


def _collate(collate_images: Callable[[list], Mapping[str, Any]], samples: list[Any]) -> dict[str, Any]:
    corrupt = {sample.image_keys[0]: own_reason(sample.corrupt) for sample in samples if sample.corrupt is not None}
    return {**collate_images(samples), "corrupt_images": corrupt}


class _ImagePass:
    """Micro-batches that together hold every image once, shared among the processes of each machine.

    Equally many steps on all ranks and equally many images in all steps: the last ones begin again.
    """

    def __init__(self, num_images: int, micro_batch_size: int, processes: Processes) -> None:
        machines = processes.gather(machine_name())
        self.num_images, self.size = num_images, min(micro_batch_size, num_images)
        self.peers = [rank for rank, name in enumerate(machines) if name == machines[processes.rank]]
        self.place = self.peers.index(processes.rank)
        # Each machine computes all images, so that with the fewest processes takes the most steps; all ranks take as
        # many, for their collectives.
        fewest = min(map(machines.count, machines))
        self.num_steps = -(-num_images // (self.size * fewest))

    def numbers(self, step: int) -> range:
        """The images of a step on this rank that no other step has."""
        start = self._start(step)
        return range(start, min(start + self.size, self.num_images))

    def micro_batches(self) -> Iterator[list[tuple[int, int]]]:
        """As `BatchPlan.micro_batches`, of this rank."""
        for step in range(self.num_steps):
            start = self._start(step)
            yield [(0, number % self.num_images) for number in range(start, start + self.size)]

    def _start(self, step: int) -> int:
        return (step * len(self.peers) + self.place) * self.size


class FeatureCache:
    """The backbone's features of each image, by number: those that this rank has computed, in its file; once joined
    those of all ranks of its machine.

    Attributes:
        corrupt: Why images have no features, by number.
        num_bytes: Written so far.
        error: Why it cannot be kept; None as long as it can.
    """

    def __init__(self, rank: int) -> None:
        self.corrupt: dict[Hashable, str] = {}
        self.num_bytes = 0
        self.error: str | None = None
        self._rank = rank
        self._file: Any = None
        self._type: torch.dtype | None = None
        # In which rank's file an image's features lie, from which element on, and their shape.
        self._locations: dict[Hashable, tuple[int, int, torch.Size]] = {}
        # In elements, as the offsets are, of which one may be several bytes.
        self._length = 0
        self._parts: dict[int, torch.Tensor] = {}

    def __getitem__(self, number: Hashable) -> torch.Tensor:
        rank, offset, shape = self._locations[number]
        return self._parts[rank][offset : offset + shape.numel()].view(shape)

    def open(self) -> None:
        """Begin the file."""
        try:
            self._file = memory_file()  # Closed with this object.
        except OSError as error:
            self.error = f"memory: {error.strerror}"

    def write(self, features: Mapping[Hashable, torch.Tensor]) -> None:
        """Keep features, all of one type."""
        if self.error is not None:
            return
        try:
            for number, feature in features.items():
                self._type = feature.dtype
                # As bytes: numpy has no bfloat16.
                self._file.write(feature.contiguous().flatten().view(torch.uint8).numpy())
                self._locations[number] = self._rank, self._length, feature.shape
                self._length += feature.numel()
                self.num_bytes += feature.nbytes
            # Others map the file: what Python still holds in its buffer is not in it.
            self._file.flush()
        except OSError as error:
            self.error = f"the features could not be written: {error.strerror}"

    def join(self, peers: list[int], processes: Processes) -> bool:
        """Take in what all `peers`, this rank among them, have kept. False where a rank could not open what another
        wrote."""
        # Not closed before all have opened it, which the question at the end waits for.
        own = path_for_others(self._file), self._type, self._length, self._locations, self.corrupt
        everyone = processes.gather(own)
        try:
            for rank in peers:
                path, kind, length, locations, corrupt = everyone[rank]
                self._locations |= locations
                self.corrupt |= corrupt
                # An empty file cannot be mapped.
                if length:
                    self._parts[rank] = torch.from_file(path, shared=True, size=length, dtype=kind)
        except (OSError, RuntimeError) as error:
            self.error = f"the features of rank {rank}: {' '.join(str(error).split())}"
        return not processes.maximum([self.error is not None])[0]

    def close(self) -> None:
        """Let go of the file; what was joined stays."""
        if self._file is not None:
            # What full memory did not take is tried once more here; `error` has said it.
            with suppress(OSError):
                self._file.close()
