"""The training loop: DeepSpeed engine, batches, schedule, logs, checkpoints and stops, around an opaque task."""

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soho_fast.common.extras import from_extra

with from_extra("train"):
    import deepspeed
    from safetensors import SafetensorError

    from soho_fast.common.errors import UserError
    from soho_fast.common.processes import Processes
    from soho_fast.common.progress import ProgressLines
    from soho_fast.engine.batch_norm import average_batch_norm
    from soho_fast.engine.batches import BatchPlan, plan_batches, split_batch
    from soho_fast.engine.checkpoint import Progress, rng_state, seed_everything, set_rng_state
    from soho_fast.engine.continuation import Continuation
    from soho_fast.engine.divergence import describe_non_finite
    from soho_fast.engine.feed import Feed
    from soho_fast.engine.launch import deepspeed_config, start_engine, zero_stage
    from soho_fast.engine.logs import PhaseTimer, RunLog
    from soho_fast.engine.optimizer import SgdAdamW, optimizer_groups
    from soho_fast.engine.schedule import Schedule
    from soho_fast.engine.settings import TrainSettings
    from soho_fast.engine.stop import StopRequest
    from soho_fast.engine.task import Task
    from soho_fast.engine.trackers import Trackers, load_trackers


@dataclass
class Result:
    """How a run ended: `signal_number` 0 when trained to the end; `measures` None when it was not evaluated."""

    progress: Progress
    signal_number: int
    measures: dict[str, float] | None


# One unreadable image in the first batch is no verdict on a data set.
_MIN_SEEN = 1000
_NUM_SHOWN = 20
# Over a run; each holds a number or two of every code, say.
_NUM_SNAPSHOTS = 100


class Trainer:
    """Trains one task by one recipe.

    Args:
        task: what is trained.
        settings: the recipe.
        processes: this run's ranks.
        continuation: what the output folder holds; looked at here when None.

    Attributes:
        metrics: what metrics.json holds of a finished run, for which nothing is left to do and no model is built.

    Raises:
        UserError: settings that do not fit the data, the device or the checkpoint.
    """

    def __init__(
        self, task: Task, settings: TrainSettings, processes: Processes, continuation: Continuation | None = None
    ) -> None:
        self.task, self.settings, self.processes = task, settings, processes
        self.continuation = start = continuation or Continuation(task, settings, processes)
        self.folder, self.precision, self.checkpoints = start.folder, start.precision, start.checkpoints
        self.data = task.training_data()
        plan = plan_batches(settings.batch, len(self.data), processes.world, settings.seed, task.samples_together)
        self.plan = replace(plan, epoch_order=getattr(self.data, "epoch_order", None))
        self.total_steps = max(1, round(settings.epochs * self.plan.steps_per_epoch))
        if settings.max_steps:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.schedule = Schedule(
            settings.schedule, self.plan.steps_per_epoch, self.total_steps, self.plan.gradient_accumulation_steps
        )
        begin, end = settings.optim.frozen_span()
        if not 0 <= begin <= end:
            raise UserError(f"optim.frozen_backbone_epochs: expected 0 <= from <= until, got [{begin:g}, {end:g}]")
        start.compare({"training samples": len(self.data), **task.identity()})
        self.progress = start.progress
        if start.changes and not self.steps_left:
            raise UserError(
                f"{start.checkpoint}: no step is left to train with other settings "
                f"({'; '.join(map(str, start.changes))}); raise --epochs, --max_steps or --max_minutes too, whichever "
                "ends the run, or give another --output"
            )
        self.metrics = None if start.checkpoint is None or self.steps_left else start.metrics()
        if self.metrics is None:
            self._build()

    @property
    def steps_left(self) -> bool:
        """Whether there is anything to train."""
        return self.progress.step < self.total_steps and self._share_of_time(self.progress.seconds) < 1

    def _build(self) -> None:
        settings, start = self.settings, self.continuation
        self._on_main(lambda: load_trackers(settings.log.trackers))
        start.make_folder()
        self.engine = self._build_engine()
        if start.checkpoint is not None:
            # The optimiser's values are the recipe's: its state brings those of the run that was saved, and ZeRO's the
            # largest gradient norm.
            groups = self.engine.basic_optimizer.param_groups
            values = [{name: value for name, value in group.items() if name != "params"} for group in groups]
            try:
                self.progress = self.checkpoints.load(self.engine, start.checkpoint)
            except (RuntimeError, ValueError, KeyError) as error:
                if not start.changes or isinstance(error, UserError):
                    raise
                raise UserError(
                    f"{start.checkpoint} does not fit the changed settings ({'; '.join(map(str, start.changes))}): "
                    f"{' '.join(str(error).split())[:200]}; give the same values or another --output"
                ) from error
            for group, value in zip(self.engine.basic_optimizer.param_groups, values, strict=True):
                group.update(value)
            if hasattr(self.engine.optimizer, "clip_grad"):
                self.engine.optimizer.clip_grad = self.engine.gradient_clipping()
            self._say(f"resumed from {start.checkpoint} (step {self.progress.step} of {self.total_steps})")
            for change in start.changes:
                self._say(f"changed: {change}")
            for change in start.spread:
                self._say(f"spread anew: {change.event()}")
        start.begin()
        self._frozen: bool | None = None
        self._stage = zero_stage(settings.engine, self.precision)
        self._grad_norm: torch.Tensor | None = None
        self._evaluation_steps = 0
        if settings.evaluation.every_epochs:
            self._evaluation_steps = max(1, round(settings.evaluation.every_epochs * self.plan.steps_per_epoch))
        self._measured_step, self._measures = -1, {}
        self._corrupt: dict[str, None] = {}

    def train(self) -> Result:
        """Train to the end or to a request to stop, then evaluate and export. All ranks call it together."""
        if self.metrics is not None:
            return Result(self.progress, 0, self.metrics["measures"])
        stop = StopRequest()
        log = None
        trackers = self._on_main(self._start_trackers)
        if self.processes.is_main:
            log = RunLog(self.folder, self.settings.log, self.progress.step, self.total_steps, trackers)
            start = self.continuation
            for what, changes in (("settings changed", start.changes), ("spread anew", start.spread)):
                if changes:
                    told = ", ".join(change.event() for change in changes)
                    log.record("event", self.progress.step, {"event": f"{what}: {told}"})
        feed = Feed(
            self.task,
            self.data,
            self._grouped_plan(),
            self.settings,
            self.processes,
            total_steps=self.total_steps,
            precision=self._step_precision,
            say=self._say if log is None else log.say,
        )
        try:
            with stop:
                signal_number = self._loop(feed, log, stop)
            if signal_number:
                return Result(self.progress, signal_number, None)
            measures = self._evaluate_in_full(log) if self.settings.evaluation.at_end else None
        finally:
            feed.close()
            if log is not None:
                log.close()
        self.export("model")
        return Result(self.progress, 0, measures)

    def evaluate(self, *, quick: bool) -> dict[str, float]:
        """The task's measures, on rank 0; under ZeRO 3 each rank computes all, since it holds a part of the weights."""
        average_batch_norm(self.engine.module, self.processes)
        random_state = rng_state(self.processes.device)
        module = self.engine.module.eval()
        processes = self.processes
        if self.settings.engine.zero_stage == 3:
            processes = replace(processes, rank=0, world=1, group=None)
        with torch.no_grad():
            measures = self.task.evaluate(
                module, quick=quick, processes=processes, progress=ProgressLines(self._say, "evaluation")
            )
        self.processes.wait()
        # An evaluation in mid-training must not move the dropout that follows it.
        set_rng_state(random_state, self.processes.device)
        return measures if self.processes.is_main else {}

    def _evaluation_is_due(self) -> bool:
        step = self.progress.step
        return bool(
            self._evaluation_steps and step % self._evaluation_steps == 0 and step > self.progress.evaluated_step
        )

    def _evaluate_in_full(self, log: RunLog | None) -> dict[str, float]:
        """All measures, recorded; the best model so far, by the task's own measure, is written to `best/`."""
        progress = self.progress
        if self._measured_step == progress.step:
            return self._measures
        self._measures = self.evaluate(quick=False)
        self._measured_step = progress.evaluated_step = progress.step
        if log is not None and self._measures:
            log.record("evaluation", progress.step, {"measures": self._measures})
        value = self.processes.gather(self._measures.get(self.task.selection))[0]
        if value is not None:
            if log is not None:
                log.say(f"step {progress.step}: {self.task.selection} {value:.4f} on held-out data")
            if progress.best is None or value > progress.best:
                progress.best, progress.best_step = value, progress.step
                self.export("best")
        return self._measures

    def export(self, name: str) -> None:
        """Write `<name>/`: weights, config and processor, gathered from all ranks under ZeRO 3."""
        state = self._whole_state()
        if self.processes.is_main:
            folder = self.folder / name
            partial = self.folder / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                self.task.export(self.engine.module, state, partial)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
            except (OSError, SafetensorError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"{partial}: the model could not be written: {reason}") from error
        self.processes.wait()

    def _whole_state(self) -> dict[str, torch.Tensor]:
        model = self.engine.module
        if self.settings.engine.zero_stage < 3:
            return model.state_dict()
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            if not self.processes.is_main:
                return {}
            state = model.state_dict(keep_vars=True)
            # Tied weights stay one tensor, which is how a saved model knows that they are.
            copies = {id(tensor): tensor.detach().to("cpu", copy=True) for tensor in state.values()}
            return {name: copies[id(tensor)] for name, tensor in state.items()}

    def _loop(self, feed: Feed, log: RunLog | None, stop: StopRequest) -> int:
        settings, progress = self.settings, self.progress
        synchronize = None
        if settings.log.profile and self.processes.device.type != "cpu":
            synchronize = torch.get_device_module(self.processes.device).synchronize
        timer = PhaseTimer(synchronize)
        seconds_before, began = progress.seconds, time.monotonic()
        last_save, saved_step = time.monotonic(), progress.step
        seen_step, seen_time = progress.step, time.monotonic()
        elapsed, signal_number = self._share_of_time(progress.seconds), 0
        snapshot_steps = steps_between_snapshots(self.total_steps, settings.log.every_steps)
        self._refuse_divergence(None)
        # What a run measured behind its last save may have been its best. Trained again, it finds that again; by other
        # settings it does not.
        measured = settings.evaluation.at_end or self._evaluation_steps
        moved_on = self.task.selection and self.continuation.changes and progress.step > progress.evaluated_step
        if self._evaluation_is_due() or (measured and moved_on):
            self._evaluate_in_full(log)
        self._enter_training(progress.step)
        while progress.step < self.total_steps and elapsed < 1:
            if log is not None:
                self._record_events(log, progress.step)
            self._freeze_backbone(progress.step)
            began_phase = time.monotonic()
            if signal_number := feed.prepare(progress.step, self.engine.module, stop):
                return self._save_and_stop(signal_number)
            seen_time += time.monotonic() - began_phase
            self.task.before_step(self.engine.module, progress.step / self.plan.steps_per_epoch)
            self._set_rates(progress.step, elapsed)
            following = progress.step + 1
            record_due = following == self.total_steps or following % settings.log.every_steps == 0
            # Which step is the last is not known beforehand where the time is limited.
            sums, corrupt = self._step(feed, timer, measure_norm=record_due or bool(settings.max_minutes))
            progress.step = following
            minutes = (time.monotonic() - last_save) / 60
            save_due = bool(settings.checkpoint.every_minutes) and minutes >= settings.checkpoint.every_minutes
            seconds = seconds_before + time.monotonic() - began
            signal_number, save_due, progress.seconds, *_ = self.processes.maximum([stop.pending(), save_due, seconds])
            signal_number = int(signal_number)
            elapsed = self._share_of_time(progress.seconds)
            last = progress.step == self.total_steps or elapsed >= 1
            logged = last or record_due
            self._count_corrupt(corrupt, log)
            every = settings.checkpoint.every_steps
            save_due = bool(signal_number or save_due or (every and progress.step % every == 0))
            quick_every = settings.evaluation.quick_every_steps
            quick_due = bool(quick_every and progress.step % quick_every == 0)
            # Only fp16 leaves steps out, to find its loss scale; another precision does for gradients that are NaN.
            failed = self.precision != "fp16" and not self.engine.was_step_applied()
            if logged or save_due or quick_due or failed or self._evaluation_is_due():
                losses = self._mean_losses(sums)
                self._refuse_divergence(losses["loss"])
                if logged and log is not None:
                    now = time.monotonic()
                    rate = (progress.step - seen_step) * self.plan.global_batch_size / (now - seen_time)
                    seen_step, seen_time = progress.step, now
                    log.record("train", progress.step, self._record(losses, rate, timer))
                    log.show(progress.step, losses, rate, self._seconds_left(rate))
                    for line in self.task.warnings(self.engine.module):
                        log.record("event", progress.step, {"event": line.partition(";")[0]})
                        log.say(f"warning: step {progress.step}: {line}")
                    due = last or progress.step % snapshot_steps == 0
                    if due and (values := self.task.snapshot(self.engine.module)):
                        log.record("snapshot", progress.step, {"values": values})
            if quick_due:
                measures = self.evaluate(quick=True)
                if log is not None:
                    log.record("evaluation", progress.step, {"measures": measures})
                self._enter_training(progress.step)
            # Saved before it is measured: a best model then never comes from a step that the checkpoints do not know.
            if save_due or self._evaluation_is_due():
                # Asked to stop, a rank has half a minute; the evaluation is made up for when the run goes on.
                if signal_number:
                    return self._save_and_stop(signal_number)
                self._save()
                last_save, saved_step = time.monotonic(), progress.step
            if self._evaluation_is_due():
                self._evaluate_in_full(log)
                self._enter_training(progress.step)
        if saved_step != progress.step:
            self._save()
        return 0

    def _save_and_stop(self, signal_number: int) -> int:
        path = self._save()
        self._say(f"asked to stop: saved {path}; the same command continues from here")
        return signal_number

    def _step_precision(self) -> AbstractContextManager:
        """What a step's forward runs in; see `deepspeed_config`."""
        by_torch = self.precision == "bf16" and not self._stage
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=by_torch)

    def _step(self, feed: Feed, timer: PhaseTimer, *, measure_norm: bool) -> tuple[dict[str, torch.Tensor], list[str]]:
        """One optimiser step; returns the sums of the scalars over its micro-batches and the skip messages."""
        sums: dict[str, torch.Tensor] = {}
        corrupt: list[str] = []
        self._grad_norm = None
        timer.start()
        for number in range(self.plan.gradient_accumulation_steps):
            batch = next(feed)
            timer.stop("wait")
            inputs, side = split_batch(batch, self.processes.device)
            inputs = self.task.on_device(inputs)
            corrupt += side.get("skipped", [])
            timer.stop("copy")
            output = self.engine(**inputs)
            timer.stop("forward")
            self.engine.backward(output.loss)
            timer.stop("backward")
            # ZeRO's optimisers tell the norm; without partitions DeepSpeed clips by it and forgets it.
            if measure_norm and not self._stage and number + 1 == self.plan.gradient_accumulation_steps:
                gradients = [param.grad for param in self.engine.module.parameters() if param.grad is not None]
                self._grad_norm = nn.utils.get_total_norm(gradients)
            self._step_optimizer()
            timer.stop("optimizer")
            for name in ("loss", *self.task.logged):
                value = getattr(output, name)
                if value is not None:
                    value = value.detach().float()
                    sums[name] = sums[name] + value if name in sums else value
        figures = self.task.after_step(self.engine.module, applied=self.engine.was_step_applied())
        for name in sums.keys() & figures.keys():
            sums[name] = figures[name].float() * self.plan.gradient_accumulation_steps
        timer.stop("optimizer")
        timer.step()
        return sums, corrupt

    def _step_optimizer(self) -> None:
        try:
            self.engine.step()
        except Exception as error:
            # DeepSpeed raises nothing more special where fp16 has no smaller loss scale left, on all ranks alike.
            if self.precision != "fp16" or "loss scale" not in str(error):
                raise
            what = "the gradients overflow at the smallest loss scale of fp16"
            raise self._diverged(self.progress.step + 1, what) from error

    def _last_grad_norm(self) -> float | None:
        norm = self._grad_norm if self._grad_norm is not None else self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def _record(self, losses: dict[str, float], rate: float, timer: PhaseTimer) -> dict:
        scale = getattr(self.engine.optimizer, "cur_scale", None) or getattr(self.engine.optimizer, "loss_scale", None)
        return {
            "epoch": self.progress.step / self.plan.steps_per_epoch,
            **losses,
            "lr": {group["name"]: group["lr"] for group in self.engine.basic_optimizer.param_groups},
            "grad_norm": self._last_grad_norm(),
            "loss_scale": float(scale) if self.precision == "fp16" and scale is not None else None,
            "skipped_steps": self.engine.skipped_steps,
            "images_per_second": rate,
            "milliseconds": timer.take(),
            "corrupt_images": self.progress.corrupt_images,
            "seconds": self.progress.seconds,
        }

    def _mean_losses(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        totals = self.processes.total([float(value) / self.plan.gradient_accumulation_steps for value in sums.values()])
        return {name: total / self.processes.world for name, total in zip(sums, totals, strict=True)}

    def _refuse_divergence(self, loss: float | None) -> None:
        """Ends the run on all ranks where one has met Inf or NaN; `loss` is None before the first step."""
        found = self.task.non_finite(self.engine.module)
        # In fp16 a step may overflow: DeepSpeed leaves it out and lowers the loss scale.
        if loss is not None and (self.engine.was_step_applied() or self.precision != "fp16"):
            norm = self._last_grad_norm()
            if not math.isfinite(loss):
                found.append(f"the loss ({loss})")
            if not self.engine.was_step_applied() or not math.isfinite(norm or 0.0):
                found.append(f"the gradients (norm {norm})")
        found += describe_non_finite(self.engine)
        if not self.processes.maximum([bool(found)])[0]:
            return
        found_by_rank = self.processes.gather(found)
        rank = max(range(len(found_by_rank)), key=lambda rank: len(found_by_rank[rank]))
        what = f"not finite{f' on rank {rank}' if rank else ''}: {', '.join(found_by_rank[rank])}"
        if loss is not None:
            raise self._diverged(self.progress.step, what)
        instead = "an older checkpoint (delete the newest)" if self.progress.step else "other starting weights"
        raise UserError(f"step {self.progress.step}, before training: {what}; start from {instead}")

    def _diverged(self, step: int, what: str) -> UserError:
        newest = self.checkpoints.newest()
        advice = "lower optim.lr or optim.backbone_lr, or give schedule.warmup_steps more"
        return UserError(
            f"step {step}: {what}, so the run has diverged; {advice}. "
            + (
                f"The newest checkpoint is {newest}, all of it finite; --resume changed goes on from it"
                if newest
                else "There is no checkpoint"
            )
        )

    def _count_corrupt(self, corrupt: list[str], log: RunLog | None) -> None:
        (count,) = self.processes.total([len(corrupt)])
        if not count:
            return
        self.progress.corrupt_images += int(count)
        messages = [line for lines in self.processes.gather(corrupt) for line in lines]
        if log is not None:
            for line in messages:
                log.say(f"skipped: {line}")
        self._corrupt |= dict.fromkeys(messages)
        seen = self.progress.step * self.plan.global_batch_size
        share = self.settings.batch.corrupt_images
        if self.progress.corrupt_images > share * max(seen, _MIN_SEEN):
            shown = "; ".join(list(self._corrupt)[:_NUM_SHOWN])
            raise UserError(
                f"batch.corrupt_images: {self.progress.corrupt_images} of {seen} images were unreadable, more than the "
                f"share of {share:g} that is allowed (of at least {_MIN_SEEN} images): {shown}"
            )

    def _set_rates(self, step: int, elapsed: float) -> None:
        factor = self.schedule.factor(step, elapsed)
        for group in self.engine.basic_optimizer.param_groups:
            frozen = self._frozen and group["backbone"]
            group["lr"] = 0.0 if frozen else group["base_lr"] * factor

    def _is_frozen(self, step: int) -> bool:
        begin, end = self.settings.optim.frozen_span()
        return begin * self.plan.steps_per_epoch <= step < end * self.plan.steps_per_epoch

    def _record_events(self, log: RunLog, step: int) -> None:
        """Record what is otherwise from this step on than in the step before it."""

        def states(step: int) -> list[str]:
            factor = self.schedule.step_decay(step)
            return [
                "the backbone stands still" if self._is_frozen(step) else "",
                self.task.phase(step / self.plan.steps_per_epoch),
                "" if factor == 1 else f"learning rates x {factor:g}",
            ]

        now = states(step)
        before = states(step - 1) if step else [""] * len(now)
        for was, state in zip(before, now, strict=True):
            if state != was:
                log.record("event", step, {"event": state or f"no longer: {was}"})

    def _freeze_backbone(self, step: int) -> None:
        begin, end = self.settings.optim.frozen_span()
        frozen, model = self._is_frozen(step), self.engine.module
        if frozen != self._frozen and (end or self._frozen):
            if frozen:
                # What stands still computes by these statistics, so they must be the same on all ranks.
                average_batch_norm(model, self.processes)
            model.freeze_backbone(frozen)
            if self.settings.engine.freeze_batch_norm == "after_still":
                model.freeze_batch_norm(begin < end and step >= begin * self.plan.steps_per_epoch)
        self._frozen = frozen

    def _enter_training(self, step: int) -> None:
        self.engine.train()
        self._frozen = None
        self._freeze_backbone(step)

    def _share_of_time(self, seconds: float) -> float:
        return seconds / (60 * self.settings.max_minutes) if self.settings.max_minutes else 0.0

    def _seconds_left(self, rate: float) -> float:
        by_steps = (self.total_steps - self.progress.step) * self.plan.global_batch_size / max(rate, 1e-9)
        if self.settings.max_minutes:
            return min(by_steps, max(0.0, 60 * self.settings.max_minutes - self.progress.seconds))
        return by_steps

    def _save(self) -> Path:
        average_batch_norm(self.engine.module, self.processes)
        return self.checkpoints.save(self.engine, self.progress)

    def _build_engine(self) -> deepspeed.DeepSpeedEngine:
        settings, processes = self.settings, self.processes
        seed_everything(settings.seed)
        model = self.task.build_model()
        self.task.speed_up(model, processes.device)
        if settings.engine.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if settings.engine.compile:
            model.compile_transformer()
        if settings.engine.freeze_batch_norm is True:
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

    def _start_trackers(self) -> Trackers | None:
        log = self.settings.log
        if not log.trackers:
            return None
        return Trackers(
            load_trackers(log.trackers),
            self.folder,
            project=log.project,
            # Numbers of jsonargparse's restricted types are plain ones after JSON.
            config=json.loads(json.dumps(asdict(self.settings))),
            resumed=self.continuation.checkpoint is not None,
            say=self._say,
        )

    def _grouped_plan(self) -> BatchPlan:
        """The plan, by which samples of like shapes share micro-batches where that saves padding or is asked for."""
        grouping = self.settings.batch.group_by_aspect_ratio
        by_kind = grouping == "orientation"
        if not (by_kind or (grouping and self.plan.has_parts)) or not hasattr(self.data, "group_keys"):
            return self.plan
        progress = ProgressLines(self._say, "shapes of images")
        keys = self.processes.gather(self._on_main(lambda: self.data.group_keys(progress)))[0]
        if by_kind:
            return replace(self.plan, kinds=keys > 0)
        return replace(self.plan, group_keys=keys) if keys.min() < keys.max() else self.plan

    def _on_main(self, call: Callable[[], Any]) -> Any:
        """What `call` gives on rank 0, None on the others. A mistake of the user that it finds ends all ranks."""
        result = error = None
        if self.processes.is_main:
            try:
                result = call()
            except UserError as found:
                error = str(found)
        error = self.processes.gather(error)[0]
        if error:
            raise UserError(error)
        return result

    def _say(self, line: str) -> None:
        if self.processes.is_main:
            print(line, flush=True)


def steps_between_snapshots(total_steps: int, log_steps: int) -> int:
    """The smallest multiple of the steps between records of training that gives a run a hundred snapshots at most."""
    return log_steps * -(-total_steps // (_NUM_SNAPSHOTS * log_steps))
