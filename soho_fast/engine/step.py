"""One optimiser step around an opaque task: what is frozen, rates, forward, backward, optimiser."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from torch import nn

from soho_fast.common.processes import Processes
from soho_fast.engine.batches import BatchPlan, split_batch
from soho_fast.engine.checkpoint import seed_everything
from soho_fast.engine.distributed import (
    average_batch_norm,
    deepspeed_config,
    describe_non_finite,
    forget_gradients,
    start_engine,
    whole,
    zero_stage,
)
from soho_fast.engine.feature_cache import TrainingBatches
from soho_fast.engine.logs import PhaseTimer
from soho_fast.engine.optimizer import Schedule, SgdAdamW, optimizer_groups
from soho_fast.engine.settings import TrainSettings
from soho_fast.engine.task import Task


class GradientOverflowError(Exception):
    """fp16 has no smaller loss scale left."""


class _WholeStep:
    """The inputs of a step's micro-batches, to be gone through again and again, each time with the same random state of
    its own. Between two turns a batch is on the host."""

    def __init__(
        self, batches: list[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> None:
        self._batches, self._read = batches, read
        self._seeds = torch.randint(2**62, (len(batches),)).tolist()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch, seed in zip(self._batches, self._seeds, strict=True):
            inputs = self._read(batch)
            torch.manual_seed(seed)
            yield inputs


class Step:
    """One optimiser step of a model: what is frozen, learning rates, forward, backward, optimiser.

    Args:
        task: what is trained.
        settings: the recipe.
        processes: this run's ranks.
        plan: sizes of the batches.
        schedule: the learning rate over time.
        precision: of `choose_precision`.

    Attributes:
        engine: DeepSpeed's, around model and optimiser.
        timer: the time that each phase of a step takes.
    """

    def __init__(
        self,
        task: Task,
        settings: TrainSettings,
        processes: Processes,
        plan: BatchPlan,
        schedule: Schedule,
        precision: str,
    ) -> None:
        self.task, self.settings, self.processes, self.plan = task, settings, processes, plan
        self.schedule, self.precision = schedule, precision
        self._stage = zero_stage(settings.engine, precision)
        self.engine = self._start_engine()
        self.timer = PhaseTimer()
        self._frozen: bool | None = None
        self._grad_norm: torch.Tensor | None = None

    @property
    def model(self) -> Any:
        """What is trained."""
        return self.engine.module

    def take(
        self, step: int, elapsed: float, batches: TrainingBatches, *, measure_norm: bool
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Take optimiser step number `step`; returns the sums of the scalars over its micro-batches, and messages of
        skipped images. `elapsed` is the used share of a time limit."""
        with whole(getattr(self.model, "read_by_begin_step", ()), self._stage):
            self.model.begin_step()
        self.task.before_step(self.model, step / self.plan.steps_per_epoch)
        self._set_rates(step, elapsed)
        sums: dict[str, torch.Tensor] = {}
        skipped: list[str] = []
        self._grad_norm = None
        self.timer.start()
        forget_gradients(self.engine)
        parts = self.plan.gradient_accumulation_steps
        for number, inputs in enumerate(self._micro_batches(batches, skipped)):
            # DeepSpeed divides the losses by the accumulation steps in `backward`: their mean counts.
            output = self.engine(**inputs)
            self.timer.stop("forward")
            self.engine.backward(output.loss)
            self.timer.stop("backward")
            # ZeRO's optimisers tell the norm; without partitions DeepSpeed clips by it and forgets it.
            if measure_norm and not self._stage and number + 1 == parts:
                gradients = [param.grad for param in self.model.parameters() if param.grad is not None]
                self._grad_norm = nn.utils.get_total_norm(gradients)
            # Called for each micro-batch: DeepSpeed takes a step only at the last one.
            self._step_optimizer()
            self.timer.stop("optimizer")
            for name in ("loss", *self.task.logged):
                value = getattr(output, name, None)
                if value is not None:
                    value = value.detach().float()
                    sums[name] = sums[name] + value if name in sums else value
        self.model.end_step(applied=self.engine.was_step_applied())
        for name, value in self.task.figures(self.model).items():
            # They are of the step, not of a micro-batch: times their number, since `mean_losses` divides by it.
            sums[name] = value.float() * parts
        self.timer.stop("optimizer")
        return sums, skipped

    def _micro_batches(self, batches: TrainingBatches, skipped: list[str]) -> Iterable[Mapping[str, Any]]:
        """The inputs of the step's forwards; a model that surveys a step of several has done so. Adds the messages of
        skipped images."""

        def read() -> Mapping[str, Any]:
            batch = next(batches)
            self.timer.stop("wait")
            skipped.extend(batch.get("skipped", []))
            return batch

        parts = self.plan.gradient_accumulation_steps
        if parts == 1 or not hasattr(self.model, "survey"):
            return (self._inputs(read()) for _ in range(parts))
        whole_step = _WholeStep([read() for _ in range(parts)], self._inputs)
        with torch.no_grad(), self.autocast():
            self.model.survey(whole_step)
        return whole_step

    def _inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        # A survey comes back for the next one when it has used the last.
        self.timer.stop("forward")
        inputs = self.task.on_device(split_batch(batch, self.processes.device)[0])
        self.timer.stop("copy")
        return inputs

    def mean_losses(self, sums: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """What `take` gave, as means over all micro-batches of all ranks."""
        totals = self.processes.total([float(value) / self.plan.gradient_accumulation_steps for value in sums.values()])
        return {name: total / self.processes.world for name, total in zip(sums, totals, strict=True)}

    def grad_norm(self) -> float | None:
        """The last step's, where it is known."""
        norm = self._grad_norm if self._grad_norm is not None else self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def optimizer_record(self) -> dict[str, Any]:
        """What the log gets of the optimiser."""
        scale = getattr(self.engine.optimizer, "cur_scale", None) or getattr(self.engine.optimizer, "loss_scale", None)
        rates: dict[str, float] = {}
        for group in self.engine.basic_optimizer.param_groups:
            # Of the parts of a group those that wait have 0.
            rates[group["name"]] = max(group["lr"], rates.get(group["name"], 0.0))
        return {
            "lr": rates,
            "grad_norm": self.grad_norm(),
            "loss_scale": float(scale) if self.precision == "fp16" and scale is not None else None,
            "skipped_steps": self.engine.skipped_steps,
        }

    def has_failed(self) -> bool:
        """Whether the last step was not applied for gradients that are NaN. (fp16 leaves steps out to find its loss
        scale.)"""
        return self.precision != "fp16" and not self.engine.was_step_applied()

    def non_finite(self, loss: float | None) -> list[str]:
        """What this rank trains by that is Inf or NaN, in words; `loss` is None before the first step."""
        found = self.task.non_finite(self.model)
        # In fp16 a step may overflow: DeepSpeed leaves it out and lowers the loss scale.
        if loss is not None and (self.engine.was_step_applied() or self.has_failed()):
            norm = self.grad_norm()
            if not math.isfinite(loss):
                found.append(f"the loss ({loss})")
            if self.has_failed() or not math.isfinite(norm or 0.0):
                found.append(f"the gradients (norm {norm})")
        return found + describe_non_finite(self.engine)

    def autocast(self) -> AbstractContextManager:
        """What a step's forward runs in; see `deepspeed_config`."""
        by_torch = self.precision == "bf16" and not self._stage
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=by_torch)

    def freeze_backbone(self, step: int) -> None:
        """Freeze or unfreeze the backbone, as that step wants it."""
        frozen = self.schedule.is_frozen(step)
        if frozen != self._frozen and (self.settings.optim.frozen_span()[1] or self._frozen):
            if frozen:
                # What is frozen computes by these statistics, so they must be the same on all ranks.
                average_batch_norm(self.model, self.processes)
            self.model.freeze_backbone(frozen)
        self._frozen = frozen

    def enter_training(self, step: int) -> None:
        """Bring the model into training mode, for that step."""
        self.engine.train()
        self._frozen = None
        self.freeze_backbone(step)

    def _set_rates(self, step: int, elapsed: float) -> None:
        factor, of_backbone = self.schedule.factor(step, elapsed), self.schedule.backbone_factor(step, elapsed)
        waiting = getattr(self.model, "waiting_parts", ())
        for group in self.engine.basic_optimizer.param_groups:
            # At a rate of 0 the optimiser leaves a group alone: ZeRO hands zeros to what has no gradient, and so does
            # DeepSpeed on several ranks.
            waits = group.get("part") in waiting
            group["lr"] = 0.0 if waits else group["base_lr"] * (of_backbone if group["backbone"] else factor)

    def _step_optimizer(self) -> None:
        try:
            self.engine.step()
        except Exception as error:
            # DeepSpeed raises nothing more special where fp16 has no smaller loss scale left, on all ranks alike.
            if self.precision != "fp16" or "loss scale" not in str(error):
                raise
            raise GradientOverflowError("the gradients overflow at the smallest loss scale of fp16") from error

    def _start_engine(self) -> DeepSpeedEngine:
        settings, processes = self.settings, self.processes
        seed_everything(settings.seed)
        model: Any = self.task.build_model(processes.device)
        if settings.engine.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if settings.engine.freeze_batch_norm:
            model.freeze_batch_norm(True)
        optimizer = SgdAdamW(optimizer_groups(model, settings.optim))
        config = deepspeed_config(
            settings.engine,
            self.precision,
            micro_batch_size=self.plan.micro_batch_size,
            gradient_accumulation_steps=self.plan.gradient_accumulation_steps,
            clip=settings.optim.clip,
        )
        engine = start_engine(model, optimizer, config, processes)
        # The weights above are drawn alike on all ranks; dropout must not be.
        seed_everything(settings.seed + 1_000_003 * (processes.rank + 1))
        return engine
