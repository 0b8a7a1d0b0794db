"""What a run finds in its output folder: nothing, a checkpoint to resume from, or a run that is finished.

Nothing is deleted here before `begin`, so that a run which is refused leaves all as it was.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deepspeed import DeepSpeedEngine

from soho_fast.common.errors import UserError, print_line
from soho_fast.common.files import read_json
from soho_fast.common.processes import Processes
from soho_fast.common.versions import is_told, program
from soho_fast.engine.changes import (
    OF_A_RANK,
    SHARDING,
    Change,
    all_fields,
    changes_between,
    matches,
    refuse_changes,
    refuse_disagreement,
    settings_identity,
)
from soho_fast.engine.checkpoint import Checkpoints, Progress
from soho_fast.engine.distributed import choose_precision, zero_stage
from soho_fast.engine.settings import TrainSettings
from soho_fast.engine.task import Task

RUN_FILES = (
    "checkpoints", "tensorboard", "model", "best", "evaluation", "log.jsonl", "metrics.json", "curves.png",
    "recipe.yaml", "trackers.json",
)  # fmt: skip

# What a run leaves at its end; without a checkpoint it could only be trained over. `best` is not of the end: a run may
# die before its first checkpoint with one.
_RESULTS = ("model", "metrics.json")

_PROGRAM = "program."


class ResumePoint:
    """The output folder of a run, and how what it holds goes together with the run's settings.

    Args:
        task: what is trained; nothing is read of it yet.
        settings: the recipe.
        processes: this run's ranks.

    Attributes:
        checkpoint: the one to resume from, None where the run begins.
        progress: where the run stands.
        changes: settings other than the checkpoint was trained with, which was asked for.
        resharded: of `SHARDING`, what is otherwise than when it was saved.
        versions: of the program, what is otherwise than when it was saved.

    Raises:
        UserError: the folder holds a run of other settings, or one where a new one begins.
    """

    def __init__(self, task: Task, settings: TrainSettings, processes: Processes) -> None:
        self.task, self.settings, self.processes = task, settings, processes
        # Before anything is read: what differs here may end in ranks that wait for each other.
        free = (*OF_A_RANK, *task.identity.places)
        fields = {name: value for name, value in all_fields(settings).items() if not matches(name, free)}
        refuse_disagreement(processes, fields | program())
        self.folder = Path(settings.output)
        self.precision = choose_precision(settings.engine)
        self._recipe = settings_identity(settings, task.identity.not_compared) | {
            "engine.precision": self.precision,
            "engine.zero_stage": zero_stage(settings.engine, self.precision),
            # This and the line above are `SHARDING`: where they differ, the checkpoint is resharded.
            "processes": processes.world,
            # One rule by a name for all has the state of the other.
            **({} if settings.optim.rule.isidentifier() else {"optimiser's state": settings.optim.rule}),
            **{f"{_PROGRAM}{name}": value for name, value in program().items()},
        }
        self.checkpoints = Checkpoints(self.folder / "checkpoints", processes, settings.checkpoint.keep)
        self.changes: list[Change] = []
        self.resharded: list[Change] = []
        self.versions: list[Change] = []
        self.progress = Progress()
        self._before: dict[str, Any] = {}
        self.checkpoint = self._choose_checkpoint()
        if self.checkpoint is not None:
            self._before, self.progress = self.checkpoints.about(self.checkpoint)
            # More is compared when the data are read; a change that is known now is refused before that takes its time.
            # What is null may follow from them.
            self._compare(self._before | {name: value for name, value in self._recipe.items() if value is not None})

    def compare(self, contents: Mapping[str, Any]) -> None:
        """Compare all, now that it is known what the recipe's paths hold and what follows from its fields.

        Raises:
            UserError: the checkpoint was trained with other settings, and these were not asked for or cannot change;
                or the ranks have other data.
        """
        refuse_disagreement(self.processes, contents)
        # As a checkpoint gives it back: tuples are lists in JSON, and would differ from the lists that were saved.
        self.checkpoints.identity = now = json.loads(json.dumps(self._recipe | dict(contents)))
        if self.checkpoint is not None:
            self._compare(now)

    def begin(self) -> None:
        """Called when all is ready to train: make the folder if it is missing.

        Raises:
            UserError: the folder cannot be written.
        """
        self.processes.on_main(self._change_folder)

    def restore(self, engine: DeepSpeedEngine) -> None:
        """Load the checkpoint. The optimiser's values are the recipe's: its state brings those of the run that was
        saved, and ZeRO's the largest gradient norm.

        Raises:
            UserError: the checkpoint does not fit the changed settings, or as `Checkpoints.load`.
        """
        assert self.checkpoint is not None, "there is nothing to resume from"
        groups = engine.basic_optimizer.param_groups
        values = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        try:
            self.checkpoints.load(engine, self.checkpoint)
        except (RuntimeError, ValueError, KeyError) as error:
            # A UserError is a ValueError, and says already what is wrong.
            if not self.changes or isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.checkpoint} does not fit the changed settings ({self.changes_in_words()}): "
                f"{' '.join(str(error).split())[:200]}; give the same values or another --output"
            ) from error
        # Read again: loading a state may have put other groups, with the values of the file, in their place.
        for group, value in zip(engine.basic_optimizer.param_groups, values, strict=True):
            group.update(value)
        if hasattr(engine.optimizer, "clip_grad"):
            engine.optimizer.clip_grad = engine.gradient_clipping()

    def changes_in_words(self) -> str:
        """The changed settings, for an error."""
        return "; ".join(map(str, self.changes))

    def events(self) -> list[str]:
        """What is said of the changes, and logged, when the run goes on."""
        kinds = (
            ("settings changed", self.changes), ("resharded", self.resharded), ("another version", self.versions)
        )  # fmt: skip
        return [f"{what}: {', '.join(change.event() for change in changes)}" for what, changes in kinds if changes]

    def results(self, table: Callable[[dict[str, float]], Any] = len) -> dict[str, Any] | None:
        """The metrics.json of the finished run that is here; None when its end was not evaluated or exported, as far as
        the settings ask for that, or `table` cannot show its metrics."""
        found = None
        if self.processes.is_main and (self.folder / "model").is_dir():
            try:
                found = read_json(self.folder / "metrics.json")
                # An earlier end's do not count where the run has trained on since.
                complete = found["step"] == self.progress.step and isinstance(found["metrics"], dict | None)
                complete = complete and (self.has_best or not found.get("best"))
                if not complete or (found["metrics"] is None and self.settings.evaluation.at_end):
                    found = None
                elif found["metrics"]:
                    table(found["metrics"])
            except (OSError, ValueError, KeyError, TypeError):
                found = None
        # Rank 0 alone has looked; whether there is anything left to do must be the same on all.
        return self.processes.gather(found)[0]

    @property
    def has_best(self) -> bool:
        """Whether the best model is there."""
        return (self.folder / "best").is_dir()

    def _compare(self, now: Mapping[str, Any]) -> None:
        changes = changes_between(self._before, now)
        self.resharded = [change for change in changes if change.name in SHARDING]
        of_program = [change for change in changes if change.name.startswith(_PROGRAM)]
        self.versions = [c for c in of_program if is_told(c.name.removeprefix(_PROGRAM), c.before, c.now)]
        self.changes = [change for change in changes if change not in (*self.resharded, *self.versions)]
        allowed, fixed = self.settings.resume == "changed", self.task.identity.fixed
        refuse_changes(str(self.checkpoint), self.progress.step, self.changes, fixed, allowed=allowed)
        # Otherwise a step has the same samples however they are divided, so any number of processes may go on.
        sizes = [_micro_batch(values) for values in (self._before, now)]
        if self.settings.batch.group_by_aspect_ratio == "orientation" and sizes[0] != sizes[1]:
            raise UserError(
                f"{self.checkpoint}: by batch.group_by_aspect_ratio orientation the order of the samples follows from "
                f"how many are in a micro-batch, {sizes[0]:g} until now; processes and "
                f"batch.gradient_accumulation_steps make it {sizes[1]:g}, and some samples of the epoch would come "
                "twice, others never: give as many as before"
            )

    def _change_folder(self) -> None:
        try:
            if self.checkpoint is None:
                self.checkpoints.delete_partial()
            else:  # A disk that was read-only by then has kept older ones.
                self.checkpoints.prune(self.checkpoint)
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            # Of a link to a folder there is no strerror.
            what, why = error.filename or self.folder, error.strerror or " ".join(map(str, error.args))
            raise UserError(f"output: {what} cannot be written: {why}") from error

    def _present(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if (self.folder / name).exists()]

    def _choose_checkpoint(self) -> Path | None:
        resume = self.settings.resume
        path = None if resume is False else self.checkpoints.choose(print_line)
        self.processes.on_main(lambda: self._check_folder(path))
        return path

    def _check_folder(self, checkpoint: Path | None) -> None:
        resume, present, results = self.settings.resume, self._present(RUN_FILES), self._present(_RESULTS)
        if resume is False and present:
            raise UserError(
                f"output: {self.folder} already holds a run ({', '.join(present)}); delete it, give another "
                "--output, or --resume auto to continue it"
            )
        if resume in (True, "changed") and checkpoint is None:
            raise UserError(
                f"resume: no complete checkpoint is in {self.checkpoints.folder}; give --resume auto to start again"
            )
        if resume == "auto" and checkpoint is None and results:
            raise UserError(
                f"output: {self.folder} holds the results of a run ({', '.join(results)}) but no complete checkpoint "
                "to go on from; delete it or give another --output"
            )


def _micro_batch(identity: Mapping[str, Any]) -> float:
    """Samples in one forward of one process."""
    parts = identity["batch.gradient_accumulation_steps"] * identity["processes"]
    return identity["batch.global_batch_size"] / parts
