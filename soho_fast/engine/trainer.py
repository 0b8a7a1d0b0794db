"""The training loop around an opaque task: `Run` decides when something is done; what a step does is in `step.py`."""

import hashlib
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from safetensors import SafetensorError

    from soho_fast.common.errors import MIN_SEEN, UserError, print_line, too_many_corrupt
    from soho_fast.common.files import new_folder
    from soho_fast.common.progress import ProgressLines
    from soho_fast.common.versions import write_run_of
    from soho_fast.engine.batches import grouped_plan, own_reason, plan_batches
    from soho_fast.engine.changes import digest_of
    from soho_fast.engine.checkpoint import Progress, rng_state, set_rng_state
    from soho_fast.engine.distributed import average_batch_norm, whole_state
    from soho_fast.engine.feature_cache import TrainingBatches
    from soho_fast.engine.logs import RunLog, Trackers, load_tracker
    from soho_fast.engine.optimizer import Schedule
    from soho_fast.engine.resume import ResumePoint
    from soho_fast.engine.step import GradientOverflowError, Step
    from soho_fast.engine.task import Task
    from soho_fast.engine.watchdog import StopRequest


_NUM_SHOWN = 20


@dataclass
class Result:
    """How a run ended: `signal_number` 0 when trained to the end; `metrics` None when it was not evaluated."""

    progress: Progress
    signal_number: int
    metrics: dict[str, float] | None


class Run:
    """Trains one task by one recipe: when to save, evaluate, log and stop.

    Args:
        task: what is trained.
        resume_point: the recipe, this run's ranks, and what the output folder holds.

    Attributes:
        finished: what metrics.json holds of a finished run, for which nothing is left to do and no model is built.

    Raises:
        UserError: settings that do not fit the data, the device or the checkpoint.
    """

    def __init__(self, task: Task, resume_point: ResumePoint) -> None:
        self.task, self.resume_point = task, resume_point
        self.settings, self.processes = resume_point.settings, resume_point.processes
        self.folder, self.checkpoints = resume_point.folder, resume_point.checkpoints
        self.progress = resume_point.progress
        settings, processes = self.settings, self.processes
        self.log: RunLog | None = None
        self._evaluated_step = -1
        self._metrics: dict[str, float] = {}
        self._skipped: list[str] = []
        self.data = task.training_data()
        plan = plan_batches(settings.batch, len(self.data), processes.world, settings.seed, task.samples_together)
        self.plan = plan
        self.total_steps = max(1, round(settings.epochs * plan.steps_per_epoch))
        if settings.max_steps:
            self.total_steps = min(self.total_steps, settings.max_steps)
        schedule = Schedule(settings.schedule, plan.steps_per_epoch, self.total_steps, settings.optim)
        resume_point.compare({"training samples": len(self.data), **task.identity.contents()})
        if resume_point.changes and not self.steps_left:
            raise UserError(
                f"{resume_point.checkpoint}: no step is left to train with other settings "
                f"({resume_point.changes_in_words()}); raise --epochs, --max_steps or --max_minutes too, whichever "
                "ends the run, or give another --output"
            )
        self.finished = None
        if resume_point.checkpoint is not None and not self.steps_left:
            self.finished = resume_point.results(getattr(task, "table", len))
        if self.finished is None:
            processes.on_main(lambda: [load_tracker(name) for name in settings.log.trackers])
            self.step = Step(task, settings, processes, self.plan, schedule, resume_point.precision)
            if resume_point.checkpoint is not None:
                resume_point.restore(self.step.engine)
                self._say(f"resumed from {resume_point.checkpoint} (step {self.progress.step} of {self.total_steps})")
                for line in resume_point.events():
                    self._say(line)
            resume_point.begin()
            if self.progress.best is not None and not processes.gather(resume_point.has_best)[0]:
                gone = f"{self.folder / 'best'}, of step {self.progress.best_step}, is not there any more"
                self._say(f"{gone}: the best model from here on takes its place")
                self.progress.best = None

    @property
    def steps_left(self) -> bool:
        """Whether there is anything to train."""
        return self.progress.step < self.total_steps and self._elapsed < 1

    def train(self) -> Result:
        """Train to the end or to a request to stop, then evaluate and export. All ranks call it together."""
        if self.finished is not None:
            return Result(self.progress, 0, self.finished["metrics"])
        settings, progress, step = self.settings, self.progress, self.step
        self._start_log()
        batches = TrainingBatches(
            self.task,
            self.data,
            grouped_plan(self.plan, settings.batch, self.data, self.processes, self._say),
            settings,
            self.processes,
            total_steps=self.total_steps,
            precision=step.autocast,
            say=self._say,
        )
        try:
            # Loader processes end within: the launcher's SIGTERM must not come before it is told which rank has failed.
            with StopRequest() as stop, closing(batches):
                self._begin()
                while self.steps_left:
                    self._record_events()
                    step.freeze_backbone(progress.step)
                    waited = time.monotonic()
                    if signal_number := batches.prepare(progress.step, step.model, stop):
                        return self._save_and_stop(signal_number)
                    # Filling the feature cache is not training: it does not lower the images a second.
                    self._seen_at += time.monotonic() - waited
                    record_due = self._is_due(settings.log.every_steps, 1) or progress.step + 1 == self.total_steps
                    # Which step is the last is not known beforehand where the time is limited.
                    measure_norm = record_due or bool(settings.max_minutes)
                    sums, skipped = step.take(progress.step, self._elapsed, batches, measure_norm=measure_norm)
                    progress.step += 1
                    # Ranks agree in each step: a signal or a clock of one of them must not leave the others waiting.
                    signal_number, save_due = self._agree(stop)
                    self._count_skipped(skipped)
                    record_due = record_due or not self.steps_left
                    save_due = bool(signal_number) or save_due or self._is_due(settings.checkpoint.every_steps)
                    quick_due = self._is_due(settings.evaluation.quick_every_steps)
                    if record_due or save_due or quick_due or step.has_failed() or self._evaluation_is_due():
                        # Only now, not in every step: it waits for the device and for the other ranks.
                        losses = step.mean_losses(sums)
                        self._refuse_divergence(losses["loss"])
                        self._refuse_lost()
                        if record_due:
                            self._record_step(losses)
                    if quick_due:
                        self._record("evaluation", {"metrics": self.evaluate(quick=True)})
                        step.enter_training(progress.step)
                    # Saved before it is evaluated: a best model then never comes from a step that the checkpoints do
                    # not know. Asked to stop, a rank has half a minute; the evaluation is made up for on resumption.
                    if signal_number:
                        return self._save_and_stop(signal_number)
                    if save_due or self._evaluation_is_due():
                        self._save()
                    if self._evaluation_is_due():
                        self._evaluate_in_full()
                        step.enter_training(progress.step)
                if self._saved_step != progress.step:
                    self._save()
            metrics = self._evaluate_in_full() if settings.evaluation.at_end else None
        except GradientOverflowError as error:
            raise self._diverged(progress.step + 1, str(error)) from error
        finally:
            if self.log is not None:
                self.log.close()
                self.log = None
        self.export("model")
        return Result(progress, 0, metrics)

    def evaluate(self, *, quick: bool) -> dict[str, float]:
        """The task's metrics, on rank 0; under ZeRO 3 each rank computes all, since it holds a part of the weights."""
        model, processes = self.step.model, self.processes
        # Each rank has updated the running statistics by its own images.
        average_batch_norm(model, processes)
        random_state = rng_state(processes.device)
        alone = self.settings.engine.zero_stage == 3
        with torch.no_grad():
            metrics = self.task.evaluate(
                model.eval(),
                quick=quick,
                processes=replace(processes, rank=0, world=1, group=None) if alone else processes,
                progress=ProgressLines(self._say, "evaluation"),
            )
        processes.wait()
        # An evaluation in mid-training must not move the dropout that follows it.
        set_rng_state(random_state, processes.device)
        return metrics if processes.is_main else {}

    def export(self, name: str) -> None:
        """Write `<name>/`: weights, config and processor, gathered from all ranks under ZeRO 3."""
        state = whole_state(self.step.engine)
        if self.processes.is_main:
            try:
                with new_folder(self.folder / name) as new:
                    metrics = self._metrics if self._evaluated_step == self.progress.step else {}
                    write_run_of(new, self.progress.step, digest_of(self.checkpoints.identity), metrics)
                    self.task.export(self.step.model, state, new)
            except (OSError, SafetensorError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"{self.folder / name}: the model could not be written: {reason}") from error
        self.processes.wait()

    @property
    def _elapsed(self) -> float:
        """The used share of the time limit; 0 without one."""
        limit = 60 * self.settings.max_minutes
        return self.progress.seconds / limit if limit else 0.0

    def _start_log(self) -> None:
        def start() -> RunLog:
            resumed = self.resume_point.checkpoint is not None
            trackers = (
                Trackers(settings, self, self.folder, resumed=resumed, say=self._say) if settings.log.trackers else None
            )
            return RunLog(self.folder, self.progress.step, self.total_steps, trackers)

        settings = self.settings
        self.log = self.processes.on_main(start)
        for event in self.resume_point.events():
            self._record("event", {"event": event})

    def _begin(self) -> None:
        progress, evaluation = self.progress, self.settings.evaluation
        now = time.monotonic()
        self._began_at, self._saved_at, self._seen_at = now - progress.seconds, now, now
        self._saved_step = self._seen_step = progress.step
        self._refuse_divergence(None)
        # What a run found behind its last save may have been its best. Trained again, it finds that again; by other
        # settings it does not.
        evaluated = evaluation.at_end or evaluation.every_epochs
        moved_on = self.task.selection and self.resume_point.changes and progress.step > progress.evaluated_step
        if self._evaluation_is_due() or (evaluated and moved_on):
            self._evaluate_in_full()
        self.step.enter_training(progress.step)

    def _is_due(self, every: int, ahead: int = 0) -> bool:
        """Whether something is done after this step, or one `ahead` of it; never where `every` is 0."""
        return bool(every) and (self.progress.step + ahead) % every == 0

    def _evaluation_is_due(self) -> bool:
        every = self.settings.evaluation.every_epochs
        steps = max(1, round(every * self.plan.steps_per_epoch)) if every else 0
        return self._is_due(steps) and self.progress.step > self.progress.evaluated_step

    def _agree(self, stop: StopRequest) -> tuple[int, bool]:
        """The signal that asked any rank to stop, or 0, and whether it is time to save; the same on all ranks."""
        now, minutes = time.monotonic(), self.settings.checkpoint.every_minutes
        save_due = bool(minutes) and now - self._saved_at >= 60 * minutes
        signal_number, save_due, self.progress.seconds = self.processes.maximum(
            [stop.pending(), save_due, now - self._began_at]
        )
        return int(signal_number), bool(save_due)

    def _save(self) -> Path:
        average_batch_norm(self.step.model, self.processes)
        self.progress.sound = self.task.is_sound(self.step.model)
        path = self.checkpoints.save(self.step.engine, self.progress)
        self._saved_at, self._saved_step = time.monotonic(), self.progress.step
        return path

    def _save_and_stop(self, signal_number: int) -> Result:
        self._say(f"asked to stop: saved {self._save()}; the same command continues from here")
        return Result(self.progress, signal_number, None)

    def _evaluate_in_full(self) -> dict[str, float]:
        """All metrics, recorded; the best model so far, by the task's own metric, is written to `best/`."""
        progress = self.progress
        if self._evaluated_step == progress.step:
            return self._metrics
        self._metrics = self.evaluate(quick=False)
        self._evaluated_step = progress.evaluated_step = progress.step
        if self._metrics:
            self._record("evaluation", {"metrics": self._metrics})
        value = self.processes.gather(self._metrics.get(self.task.selection or ""))[0]
        if value is not None:
            self._say(f"step {progress.step}: {self.task.selection} {value:.4f} on held-out data")
            if progress.best is None or value > progress.best:
                progress.best, progress.best_step = value, progress.step
                self.export("best")
        return self._metrics

    def _record(self, kind: str, values: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.record(kind, self.progress.step, values)

    def _record_events(self) -> None:
        """Record what is otherwise from this step on than in the step before it."""
        step, schedule = self.progress.step, self.step.schedule

        def states(step: int) -> list[str]:
            factor = schedule.step_decay(step)
            return [
                "the backbone is frozen" if schedule.is_frozen(step) else "",
                self.task.phase(step / self.plan.steps_per_epoch),
                "" if factor == 1 else f"learning rates x {factor:g}",
            ]

        now = states(step)
        before = states(step - 1) if step else [""] * len(now)
        for was, state in zip(before, now, strict=True):
            if state != was:
                self._record("event", {"event": state or f"no longer: {was}"})

    def _record_step(self, losses: dict[str, float]) -> None:
        if self.log is None:
            return
        progress, now = self.progress, time.monotonic()
        num_steps = progress.step - self._seen_step
        rate = num_steps * self.plan.global_batch_size / (now - self._seen_at)
        self._seen_step, self._seen_at = progress.step, now
        record = {
            "epoch": progress.step / self.plan.steps_per_epoch,
            **losses,
            **self.step.optimizer_record(),
            "images_per_second": rate,
            "milliseconds": self.step.timer.take(num_steps),
            "corrupt_images": progress.corrupt_images,
            "seconds": progress.seconds,
        }
        self._record("train", record)
        shown = {name: value for name, value in losses.items() if name in ("loss", *self.task.logged)}
        self.log.show(progress.step, shown, rate, self._seconds_left(rate))
        for line in self.task.warnings(self.step.model):
            self._record("event", {"event": line.partition(";")[0]})
            self._say(f"warning: step {progress.step}: {line}")

    def _seconds_left(self, rate: float) -> float:
        by_steps = (self.total_steps - self.progress.step) * self.plan.global_batch_size / max(rate, 1e-9)
        if self.settings.max_minutes:
            return min(by_steps, max(0.0, 60 * self.settings.max_minutes - self.progress.seconds))
        return by_steps

    def _refuse_divergence(self, loss: float | None) -> None:
        """Ends the run on all ranks where one has met Inf or NaN; `loss` is None before the first step."""
        found = self.step.non_finite(loss)
        if not self.processes.maximum([bool(found)])[0]:
            return
        found_by_rank = self.processes.gather(found)
        rank = max(range(len(found_by_rank)), key=lambda rank: len(found_by_rank[rank]))
        what = f"not finite{f' on rank {rank}' if rank else ''}: {', '.join(found_by_rank[rank])}"
        if loss is not None:
            raise self._diverged(self.progress.step, what)
        instead = "an older checkpoint (delete the newest)" if self.progress.step else "other starting weights"
        raise UserError(f"step {self.progress.step}, before training: {what}; start from {instead}")

    def _refuse_lost(self) -> None:
        """Ends the run on all ranks, which see the same, where the task says that it is lost."""
        if told := self.task.lost(self.step.model):
            sound, advice = self.checkpoints.newest(sound=True), self.step.schedule.advice(self.progress.step - 1)
            instead = f"Delete all newer than {sound}, and --resume changed goes on from it"
            if sound is None:
                instead = "No checkpoint is from before: give another --output to start again"
            raise UserError(f"step {self.progress.step}: {told}; {advice} (docs/failures.md). {instead}")

    def _diverged(self, step: int, what: str) -> UserError:
        newest, advice = self.checkpoints.newest(), self.step.schedule.advice(step - 1)
        instead = f"The newest checkpoint is {newest}, all of it finite; --resume changed goes on from it"
        if newest is None:
            instead = "There is no checkpoint"
        return UserError(f"step {step}: {what}, so the run has diverged; {advice}. {instead}")

    def _count_skipped(self, skipped: list[str]) -> None:
        """Each unreadable image counts and is reported once, however many epochs and starts of the run meet it."""
        if not self.processes.total([len(skipped)])[0]:
            return
        known = set(self.progress.corrupt)
        for line in dict.fromkeys(line for lines in self.processes.gather(skipped) for line in lines):
            digest = hashlib.sha256(own_reason(line).encode()).hexdigest()[:12]
            if digest not in known:
                known.add(digest)
                self.progress.corrupt.append(digest)
                self._skipped.append(line)
                self._say(f"skipped: {line}")
        # Of several captions each image makes several samples.
        num_images = len(getattr(self.data, "images", self.data))
        seen = min(self.progress.step * self.plan.global_batch_size, num_images)
        share = self.settings.batch.corrupt_images
        if too_many_corrupt(self.progress.corrupt_images, seen, share):
            raise UserError(
                f"batch.corrupt_images: {self.progress.corrupt_images} of {seen} images are unreadable, more than the "
                f"share of {share:g} that is allowed (of at least {MIN_SEEN} images): "
                f"{'; '.join(self._skipped[:_NUM_SHOWN])}"
            )

    def _say(self, line: str) -> None:
        if self.log is not None:
            self.log.say(line)
        elif self.processes.is_main:
            print_line(line)
