"""What the backbone gives for each training image, computed once while it stands still, and read in every later pass.

Each process computes a share of the images and writes what it got into a file without a name, in memory or on the disk
of the output folder. Such a file is gone with the last process that has it open, however that ends, and no other run
can take it for its own. The processes of a machine read each other's; machines share nothing.
"""

import math
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soho_fast.common.processes import Processes
from soho_fast.common.progress import ProgressLines
from soho_fast.common.shared_arrays import machine_name
from soho_fast.engine.batches import Batches, own_reason, split_batch
from soho_fast.engine.settings import TrainSettings
from soho_fast.engine.stop import StopRequest
from soho_fast.engine.task import Task

_GB = 1e9


class KeptOutputs:
    """The backbone's output for each image, by number.

    Attributes:
        corrupt: Why the outputs of others are not there.
    """

    def __init__(
        self, parts: Mapping[int, torch.Tensor], places: Mapping[Hashable, "_Place"], corrupt: Mapping[Hashable, str]
    ) -> None:
        self.corrupt = corrupt
        self._parts, self._places = parts, places

    def __getitem__(self, number: Hashable) -> torch.Tensor:
        place = self._places[number]
        size = math.prod(place.shape)
        return self._parts[place.rank][place.offset : place.offset + size].view(place.shape)


def keep_outputs(
    task: Task,
    model: nn.Module,
    data: Any,
    settings: TrainSettings,
    processes: Processes,
    *,
    micro_batch_size: int,
    precision: AbstractContextManager,
    stop: StopRequest,
    say: Callable[[str], None],
) -> tuple[KeptOutputs | None, int]:
    """Compute and keep what the backbone, which stands still, gives for every image. All ranks make the call.

    Args:
        task: what is trained.
        model: the model.
        data: what it is trained on.
        settings: the recipe.
        processes: this run's ranks.
        micro_batch_size: images at a time.
        precision: the context in which a training step computes.
        stop: asked after each batch.
        say: called on rank 0 with each line.

    Returns:
        What is kept, or None where there is no room, which is said; and the number of a signal that asked to stop.
    """
    images = _ImagePass(len(data.images), micro_batch_size, processes)
    share = _Share(processes.rank)
    batches = Batches(
        data.images,
        partial(_collate, task.collate_images),
        images,
        settings.batch,
        rank=processes.rank,
        first_step=0,
        total_steps=images.num_steps,
        pin=processes.device.type != "cpu",
    )
    progress, began = ProgressLines(say, "the backbone's output for each image"), time.monotonic()
    with closing(batches), closing(share):
        for step in range(images.num_steps):
            inputs, side = split_batch(next(batches), processes.device)
            with torch.no_grad(), precision:
                found = task.backbone_outputs(model, task.on_device(inputs))
                outputs = dict(zip(side["image_keys"], found, strict=True))
            own = images.numbers(step)
            share.corrupt |= {number: why for number, why in side["corrupt_images"].items() if number in own}
            outputs = {number: output.cpu() for number, output in outputs.items() if number in own}
            if step == 0:
                sizes = [sum(output.nbytes for output in outputs.values()), len(outputs)]
                num_bytes, num_images = processes.total(sizes)
                needed = num_bytes / max(num_images, 1) * images.num_images
                folder, budget = _choose(settings, needed, images.num_images, say)
                if not budget:
                    return None, 0
                share.open(folder)
            share.write(outputs)
            signal_number, used, failed = processes.maximum(
                [stop.pending(), share.num_bytes * len(images.peers), share.error is not None]
            )
            if signal_number:
                return None, int(signal_number)
            if failed or used > budget:
                break
            progress(min((step + 1) * len(images.peers) * micro_batch_size, images.num_images), images.num_images)
        kept = None if failed or used > budget else share.join(images.peers, processes)
        if kept is None:
            errors = [error for error in processes.gather(share.error) if error]
            why = errors[0] if errors else f"the images differ in size, and all take more than {budget / _GB:g} GB"
            say(f"the backbone's output is not kept, but computed in each step: {why}")
            return None, 0
    corrupt = f", {len(kept.corrupt):,} of them corrupt" if kept.corrupt else ""
    say(f"kept the backbone's output for {images.num_images:,} images{corrupt} ({time.monotonic() - began:.0f} s)")
    return kept, 0


def _choose(
    settings: TrainSettings, needed: float, num_images: int, say: Callable[[str], None]
) -> tuple[Path | None, float]:
    """Where so many bytes are kept, None is memory, and how many may be at most; 0: nowhere. Says which."""
    memory, disk = settings.engine.backbone_cache_gb * _GB, settings.engine.backbone_cache_disk_gb * _GB
    if not hasattr(os, "memfd_create"):
        memory = 0.0
    what = f"the backbone stands still: its output for {num_images:,} images takes {needed / _GB:.3g} GB"
    if needed <= memory:
        say(f"{what}, computed once and kept in memory (engine.backbone_cache_gb {memory / _GB:g})")
        return None, memory
    if needed <= disk:
        say(f"{what}, computed once and kept in {settings.output} (engine.backbone_cache_disk_gb {disk / _GB:g})")
        return Path(settings.output), disk
    say(
        f"{what}, more than engine.backbone_cache_gb ({memory / _GB:g}) and engine.backbone_cache_disk_gb "
        f"({disk / _GB:g}) allow: it is computed in each step"
    )
    return None, 0.0


def _collate(collate_images: Callable[[list], Mapping[str, Any]], samples: list[Any]) -> dict[str, Any]:
    corrupt = {sample.image_keys[0]: own_reason(sample.corrupt) for sample in samples if sample.corrupt is not None}
    return {**collate_images(samples), "corrupt_images": corrupt}


class _ImagePass:
    """Micro-batches that together hold every image once, shared among the processes of each machine.

    As a `BatchPlan`, of equally many steps on all ranks and equally many images in all steps: the last ones begin anew.
    """

    gradient_accumulation_steps = 1
    seed = 0

    def __init__(self, num_images: int, micro_batch_size: int, processes: Processes) -> None:
        machines = processes.gather(machine_name())
        self.num_images, self.size = num_images, min(micro_batch_size, num_images)
        self.peers = [rank for rank, name in enumerate(machines) if name == machines[processes.rank]]
        self.place = self.peers.index(processes.rank)
        fewest = min(map(machines.count, machines))
        self.num_steps = -(-num_images // (self.size * fewest))

    def numbers(self, step: int) -> range:
        """The images of a step on this rank that no other step has."""
        start = self._start(step)
        return range(start, min(start + self.size, self.num_images))

    def micro_batches(self, rank: int, first_step: int, total_steps: int) -> Iterator[list[tuple[int, int]]]:
        """As `BatchPlan.micro_batches`, of this rank."""
        for step in range(first_step, total_steps):
            start = self._start(step)
            yield [(0, number % self.num_images) for number in range(start, start + self.size)]

    def _start(self, step: int) -> int:
        return (step * len(self.peers) + self.place) * self.size


@dataclass
class _Place:
    """Where an image's output lies: in which rank's file, from which element on, and its shape."""

    rank: int
    offset: int
    shape: tuple[int, ...]


class _Share:
    """What one rank has computed, in its file.

    Attributes:
        corrupt: Why images have no output, by number.
        num_bytes: Written so far.
        error: Why it cannot be kept; None as long as it can.
    """

    def __init__(self, rank: int) -> None:
        self.corrupt: dict[Hashable, str] = {}
        self.num_bytes = 0
        self.error: str | None = None
        self._rank, self._file = rank, None
        self._places: dict[Hashable, _Place] = {}
        self._type: torch.dtype | None = None
        self._length = 0

    def open(self, folder: Path | None) -> None:
        """Begin the file: in memory, or on a folder's disk."""
        try:
            if folder is None:
                self._file = os.fdopen(os.memfd_create("backbone-outputs"), "w+b")
            else:
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with this object)
        except OSError as error:
            self.error = f"{folder or 'memory'}: {error.strerror}"

    def write(self, outputs: Mapping[Hashable, torch.Tensor]) -> None:
        """Keep outputs, all of one type."""
        try:
            for number, output in outputs.items() if self.error is None else ():
                self._type = output.dtype
                self._file.write(output.contiguous().flatten().view(torch.uint8).numpy())
                self._places[number] = _Place(self._rank, self._length, tuple(output.shape))
                self._length += output.numel()
                self.num_bytes += output.nbytes
            if self.error is None:
                self._file.flush()
        except OSError as error:
            self.error = f"the outputs could not be written: {error.strerror}"

    def join(self, peers: list[int], processes: Processes) -> KeptOutputs | None:
        """What all `peers` have kept, for each of them. None where a rank could not open what another wrote."""
        # Not closed before all have opened it, which the question at the end waits for.
        path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        everyone = processes.gather((path, self._type, self._length, self._places, self.corrupt))
        parts, places, corrupt = {}, {}, {}
        try:
            for rank in peers:
                path, kind, length, here, corrupt_here = everyone[rank]
                places |= here
                corrupt |= corrupt_here
                if length:
                    parts[rank] = _mapped(path, kind)
        except OSError as error:
            self.error = f"{error.filename or 'the outputs'}: {error.strerror}"
        return None if processes.maximum([self.error is not None])[0] else KeptOutputs(parts, places, corrupt)

    def close(self) -> None:
        """Let go of the file; what was joined stays."""
        if self._file is not None:
            # What a full disk did not take is tried once more here; `error` has told it.
            with suppress(OSError):
                self._file.close()


def _mapped(path: str, kind: torch.dtype) -> torch.Tensor:
    """A file as a flat tensor that has its memory."""
    with open(path, "r+b") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=kind)
