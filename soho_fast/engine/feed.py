"""What a run reads, step by step: loader processes for each of its phases, and the backbone's kept outputs in one."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from soho_fast.common.processes import Processes
from soho_fast.engine.batches import Batches, BatchPlan
from soho_fast.engine.kept_outputs import KeptOutputs, keep_outputs
from soho_fast.engine.settings import TrainSettings
from soho_fast.engine.stop import StopRequest
from soho_fast.engine.task import Task


class Feed:
    """The micro-batches of a rank, from any step on.

    While the backbone stands still for more than one pass over the images, its output for each is computed once and
    stands for the image in every batch, as far as `engine.backbone_cache_gb` and `engine.backbone_cache_disk_gb` allow.

    Args:
        task: what is trained.
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
        begin, end = (epochs * plan.steps_per_epoch for epochs in settings.optim.frozen_span())
        self._still = range(math.ceil(min(begin, total_steps)), math.ceil(min(end, total_steps)))
        self._kept: KeptOutputs | None = None
        self._batches: Batches | None = None
        self._until = -1

    def prepare(self, step: int, model: nn.Module, stop: StopRequest) -> int:
        """Called before each step: begins a phase where one begins. Returns a signal that asked to stop, or 0.

        The backbone must stand still already where it does in this step.
        """
        if step < self._until:
            return 0
        self.close()
        until = self.total_steps
        if self._is_worth_it(max(step, self._still.start), model):
            if step < self._still.start:
                until = self._still.start
            else:
                self._kept, signal_number = keep_outputs(
                    self.task,
                    model,
                    self.data,
                    self.settings,
                    self.processes,
                    micro_batch_size=self.plan.micro_batch_size,
                    precision=self.precision(),
                    stop=stop,
                    say=self.say,
                )
                if signal_number:
                    return signal_number
                if self._kept is not None:
                    until = self._still.stop
        self._batches = Batches(
            self.data if self._kept is None else self.data.without_pixels(self._kept.corrupt),
            self.task.collate,
            self.plan,
            self.settings.batch,
            rank=self.processes.rank,
            first_step=step,
            total_steps=until,
            pin=self.processes.device.type != "cpu",
        )
        self._until = until
        return 0

    def __next__(self) -> Mapping[str, Any]:
        batch = next(self._batches)
        if self._kept is None:
            return batch
        outputs = self.task.collate_outputs([self._kept[number] for number in batch["image_keys"]])
        if self.processes.device.type != "cpu":
            outputs = {name: None if value is None else value.pin_memory() for name, value in outputs.items()}
        return {**batch, **outputs}

    def close(self) -> None:
        """End the loader processes, and let go of what was kept."""
        if self._batches is not None:
            self._batches.close()
        self._batches = self._kept = None

    def _is_worth_it(self, step: int, model: nn.Module) -> bool:
        """Whether the backbone stands still for more than one pass over the images from this step on, and its outputs
        can be kept; says if not."""
        engine, images = self.settings.engine, getattr(self.data, "images", None)
        if images is None or step not in self._still or not (engine.backbone_cache_gb or engine.backbone_cache_disk_gb):
            return False
        if not self.task.keeps_outputs(model):
            self.say("the backbone's output for an image depends on its batch: it is computed in each step")
            return False
        num_steps = self._still.stop - step
        if num_steps * self.plan.global_batch_size > len(images):
            return True
        self.say(
            f"the backbone stands still for {num_steps:,} steps, at most one pass over the {len(images):,} images: its "
            "output is computed in each step"
        )
        return False
