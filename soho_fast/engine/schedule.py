"""The learning-rate factor as a pure function of the step, so that a resumed run needs no schedule state."""

import math
from dataclasses import dataclass

from soho_fast.common.errors import UserError
from soho_fast.engine.settings import ScheduleSettings


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then step, cosine, linear or no decay.

    Args:
        settings: the recipe's schedule.
        steps_per_epoch: optimiser steps in one epoch, >= 1.
        total_steps: optimiser steps of the whole run, >= 1.
        gradient_accumulation_steps: micro-batches in a step, >= 1.
    """

    settings: ScheduleSettings
    steps_per_epoch: int
    total_steps: int
    gradient_accumulation_steps: int = 1

    def __post_init__(self) -> None:
        s = self.settings
        if s.warmup_steps < 0 or not 0 <= s.warmup_start <= 1:
            raise UserError(
                "schedule: expected warmup_steps >= 0 and warmup_start in [0, 1], got "
                f"{s.warmup_steps} and {s.warmup_start}"
            )
        if sorted(s.step_epochs) != list(s.step_epochs):
            raise UserError(f"schedule.step_epochs: expected ascending epochs, got {s.step_epochs}")

    def factor(self, step: int, elapsed: float = 0.0) -> float:
        """Factor for the optimiser step number `step` (0 is the first).

        `elapsed` in [0, 1] is the used share of a time limit, if the run has one: `cosine` and `linear` follow
        whichever of steps and time is further on, so that a run cut by its clock still ends at `end_factor`.
        """
        s = self.settings
        parts = self.gradient_accumulation_steps if s.warmup_unit == "micro_batches" else 1
        number, warmup_steps = (step + 1) * parts - 1, s.warmup_steps / parts
        if number < s.warmup_steps:
            return s.warmup_start + (1 - s.warmup_start) * number / s.warmup_steps
        if s.decay == "constant":
            return 1.0
        if s.decay == "step":
            return self.step_decay(step)
        past_warmup = (step - warmup_steps) / max(self.total_steps - warmup_steps, 1)
        progress = min(max(past_warmup, elapsed), 1.0)
        shape = 0.5 * (1 + math.cos(math.pi * progress)) if s.decay == "cosine" else 1 - progress
        return s.end_factor + (1 - s.end_factor) * shape

    def step_decay(self, step: int) -> float:
        """What the decays by `step` have made of the rate so far; 1 under another `decay`."""
        s = self.settings
        epoch = step / self.steps_per_epoch
        return s.step_factor ** sum(epoch >= at for at in s.step_epochs) if s.decay == "step" else 1.0
