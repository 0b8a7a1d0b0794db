"""What a run shows and writes while it trains: progress, log.jsonl, TensorBoard, trackers. Rank 0 only."""

import importlib
import inspect
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from soho_fast.common.errors import GONE_ERRORS, UserError, as_line, print_line, say_nothing_more
from soho_fast.common.files import read_json, read_log, write_atomically
from soho_fast.common.import_path import is_import_path, load_imported, search_here
from soho_fast.engine.settings import TrainSettings

_SHAPE = ("init", "log", "finish")
# By which TensorBoard knows its files.
_EVENTS_VERSION = "brain.Event:2"
RUNS_FILE = "trackers.json"
"""What the trackers call this run, in its folder: a resumed run goes on in the same."""


def load_tracker(name: str) -> Any:
    """The module of a tracker, or the class of an import path, whose module is imported already. Raises UserError: it
    is not there, or not of that shape."""
    folder = search_here()
    try:
        module = load_imported(name, "log.trackers") if is_import_path(name) else importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # an import runs what it likes
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
            raise UserError(
                f"log.trackers: there is no module {name}, neither in the current folder {folder} nor installed; leave "
                "it out, or name one that is"
            ) from error
        raise UserError(f"log.trackers: {name!r} cannot be imported: {_one_line(error)}") from error
    absent = [part for part in _SHAPE if not callable(getattr(module, part, None))]
    if absent:
        # A folder of that name in the working directory, as wandb leaves one, passes for an empty module.
        raise UserError(
            f"log.trackers: {name} has no {', '.join(absent)}; expected a module or class of wandb's shape, or leave "
            "it out"
        )
    return module


class Trackers:
    """Runs of several trackers that get what the log gets.

    One that fails while training goes on is reported once and asked no more.

    Args:
        settings: the recipe, which names them.
        run: what is trained, `trainer.Run`, for the `init` of a user's class.
        folder: the run's folder; its name is the run's.
        resumed: whether the training goes on from a checkpoint: then the trackers' runs do too, where they can.
        say: called with a line for a tracker that fails.

    Raises:
        UserError: one could not start a run.
    """

    def __init__(
        self, settings: TrainSettings, run: Any, folder: Path, *, resumed: bool, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._working: dict[str, Any] = {}
        # Numbers of jsonargparse's restricted types are plain ones after JSON.
        config = json.loads(json.dumps(asdict(settings)))
        known = _known_runs(folder) if resumed else {}
        runs = {}
        for name in settings.log.trackers:
            options = {"project": "soho_fast", "name": folder.name, "config": config, "dir": str(folder)}
            if name in known:
                # A tracker without these keywords starts another run: `_accepted` leaves them out.
                options |= {**known[name], "resume": "allow"}
            try:
                module = load_tracker(name)
                if isinstance(module, type):
                    module, options = module(), options | {"run": run}
                found = module.init(**_accepted(module.init, options))
            except Exception as error:
                self.finish()
                raise UserError(
                    f"log.trackers: {name} could not start a run: {_one_line(error)}; see to that, or leave it out"
                ) from error
            # Only now: `finish` above ends those that have begun a run.
            self._working[name] = module
            called = {part: getattr(found, part, None) for part in ("id", "name")}
            runs[name] = {part: value for part, value in called.items() if isinstance(value, str)}
        write_atomically(folder / RUNS_FILE, json.dumps(runs, indent=1))

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Tell all of `values` by name, after `step` steps."""
        self._each(lambda module: module.log(dict(values), step=step))

    def finish(self) -> None:
        """End the runs; a resumed run takes them up again."""
        self._each(lambda module: module.finish())

    def _each(self, call: Callable[[Any], Any]) -> None:
        for name, module in list(self._working.items()):
            try:
                call(module)
            except Exception as error:  # whatever it is, the training is worth more
                del self._working[name]
                self._say(f"log.trackers: {name} failed and is left out from here on: {_one_line(error)}")


def _known_runs(folder: Path) -> dict[str, dict[str, str]]:
    try:
        runs = read_json(folder / RUNS_FILE)
        return {name: {part: run[part] for part in ("id", "name") if part in run} for name, run in runs.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _accepted(function: Callable, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keywords that the function takes: not every tracker has all of wandb's."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options)
    return {name: value for name, value in options.items() if name in parameters}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


_SECONDS_BETWEEN_LINES = 15.0
PHASES = ("wait", "copy", "forward", "backward", "optimizer")


class RunLog:
    """Writes records and shows progress.

    log.jsonl holds one JSON object a line. `kind` "train": step (1-based, steps done), epoch, loss and the task's own
    losses (exact float32 values of this step, mean over ranks and micro-batches), lr by group, grad_norm, loss_scale,
    images_per_second and the milliseconds of each phase (means since the last record), seconds of training so far.
    `kind` "evaluation": step and metrics. `kind` "event": the steps done when something changed, and what: the run was
    resumed, the backbone is frozen, learning rates fell. Curves jump there.

    Args:
        folder: the run's folder.
        first_step: steps already done; later records of an earlier, cut-off run are dropped.
        total_steps: steps of the whole run.
        trackers: get every record too.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        total_steps: int,
        trackers: Trackers | None = None,
    ) -> None:
        self.path = folder / "log.jsonl"
        # An event is recorded before the step that follows it, and will be recorded again.
        last_of = {"event": first_step - 1}
        records, num_skipped = read_log(self.path)
        earlier = [record for record in records if record["step"] <= last_of.get(record["kind"], first_step)]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in earlier))
        # A run that was killed between its last evaluation and its end evaluates again, and finds the same.
        self._recorded = {json.dumps(record) for record in earlier if record["kind"] == "evaluation"}
        self._file = self.path.open("a")
        self._trackers = trackers
        self._board = _Board(folder / "tensorboard", first_step)
        self._total = total_steps
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(initial=first_step, total=total_steps, unit="step", dynamic_ncols=True)
        self._last_line = 0.0
        if num_skipped:
            self.say(f"{self.path}: {num_skipped} damaged lines were left out")
        if first_step:
            self.record("event", first_step, {"event": "resumed"})

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one record to log.jsonl; its numbers go to TensorBoard, these and texts to trackers."""
        line = json.dumps({"kind": kind, "step": step, **values})
        if line not in self._recorded:
            self._file.write(line + "\n")
            self._file.flush()
        numbers = {f"{kind}/{name}": value for name, value in _flat(values)}
        self._board.add(numbers, step)
        if self._trackers is not None and (numbers or kind == "event"):
            self._trackers.log(step, numbers | ({"event": values["event"]} if kind == "event" else {}))

    def show(self, step: int, losses: Mapping[str, float], images_per_second: float, seconds_left: float) -> None:
        """Bring the bar, or now and then a line, up to date."""
        text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(f"{text} | {images_per_second:.1f} images/s", refresh=False)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or step == self._total:
            self._last_line = time.monotonic()
            left = f"{int(seconds_left) // 60}:{int(seconds_left) % 60:02d}"
            self.say(f"step {step}/{self._total}  {text}  {images_per_second:.1f} images/s  {left} left")

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        try:
            if self._bar is not None:
                self._bar.write(as_line(line), file=sys.stdout)
            else:
                print_line(line)
        except OSError as error:
            if error.errno not in GONE_ERRORS:
                raise
            say_nothing_more()
            if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
                os.kill(os.getpid(), signal.SIGTERM)  # The next step saves and stops; outside of steps the run goes on.

    def close(self) -> None:
        """Flush to disk and take the bar down."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._board.close()
        if self._bar is not None:
            self._bar.close()
        if self._trackers is not None:
            self._trackers.finish()


class _Board:
    """A file of TensorBoard. torch's `SummaryWriter` writes in a thread: there a full disk ends in a trace, and in a
    queue for which the run waits for ever."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # They take a second, and only rank 0 has a log.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter((folder / name).open("wb"))
        self._write(file_version=_EVENTS_VERSION)
        # TensorBoard hides what an earlier, cut-off run wrote from that step on.
        self._write(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        if values:
            self._write(step=step, summary=self._summary(value=values))

    def _write(self, **content: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            pairs.append((prefix + name, float(value)))
    return pairs


class PhaseTimer:
    """Time spent in each phase of a step. On a GPU the phases are launch times."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Begin a phase here."""
        self._mark = time.perf_counter()

    def stop(self, phase: str) -> None:
        """End `phase`, which began at the last `start` or `stop`."""
        now = time.perf_counter()
        self._seconds[phase] += now - self._mark
        self._mark = now

    def take(self, num_steps: int) -> dict[str, float]:
        """Mean milliseconds of each phase in each of the steps since the last call."""
        means = {phase: 1000 * seconds / num_steps for phase, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return means
