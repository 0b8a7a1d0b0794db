"""What a run shows and leaves behind while it trains: progress, log.jsonl, TensorBoard, trackers. Rank 0 only."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from soho_fast.common.files import read_log, write_atomically
from soho_fast.engine.settings import LogSettings
from soho_fast.engine.trackers import Trackers

PHASES = ("wait", "copy", "forward", "backward", "optimizer")


class RunLog:
    """Writes records and shows progress.

    log.jsonl holds one JSON object a line. `kind` "train": step (1-based, steps done), epoch, loss and the task's own
    losses (exact float32 values of this step, mean over ranks and micro-batches), lr by group, grad_norm, loss_scale,
    images_per_second and the milliseconds of each phase (means since the last record), seconds of training so far.
    `kind` "evaluation": step and measures. `kind` "event": the steps done when something changed, and what: the run was
    resumed, the backbone stands still, learning rates fell. Curves jump there. `kind` "snapshot": step and what the
    task's `snapshot` gives, as `values`, about a hundred times over a run.

    Args:
        folder: the run's folder.
        settings: the recipe's log part.
        first_step: steps already done; later records of an earlier, cut-off run are dropped.
        total_steps: steps of the whole run.
        trackers: get every record too.
    """

    def __init__(
        self,
        folder: Path,
        settings: LogSettings,
        first_step: int,
        total_steps: int,
        trackers: Trackers | None = None,
    ) -> None:
        self.settings = settings
        self.path = folder / "log.jsonl"
        # An event is told before the step that follows it, and will be told again.
        last_of = {"event": first_step - 1}
        records, num_skipped = read_log(self.path)
        kept = [record for record in records if record["step"] <= last_of.get(record["kind"], first_step)]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        # A run that was killed between its last evaluation and its end measures again, and finds the same.
        self._told = {json.dumps(record) for record in kept if record["kind"] == "evaluation"}
        self._file = self.path.open("a")
        self._trackers, self._board = trackers, None
        if settings.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self._total = total_steps
        self._bar = None
        if settings.bar and sys.stderr.isatty():
            self._bar = tqdm(initial=first_step, total=total_steps, unit="step", dynamic_ncols=True)
        self._last_line = 0.0
        if num_skipped:
            self.say(f"{self.path}: {num_skipped} damaged lines were left out")
        if first_step:
            self.record("event", first_step, {"event": "resumed"})

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one record to log.jsonl; its numbers go to TensorBoard, these and texts to trackers."""
        line = json.dumps({"kind": kind, "step": step, **values})
        if line not in self._told:
            self._file.write(line + "\n")
            self._file.flush()
        numbers = {f"{kind}/{name}": value for name, value in _flat(values)}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._trackers is not None and (numbers or kind == "event"):
            self._trackers.log(step, numbers | ({"event": values["event"]} if kind == "event" else {}))

    def show(self, step: int, losses: Mapping[str, float], images_per_second: float, seconds_left: float) -> None:
        """Bring the bar, or now and then a line, up to date."""
        text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(f"{text} | {images_per_second:.1f} images/s", refresh=False)
        elif time.monotonic() - self._last_line >= self.settings.line_seconds or step == self._total:
            self._last_line = time.monotonic()
            left = f"{int(seconds_left) // 60}:{int(seconds_left) % 60:02d}"
            self.say(f"step {step}/{self._total}  {text}  {images_per_second:.1f} images/s  {left} left")

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Flush to disk and take the bar down."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.close()
        if self._trackers is not None:
            self._trackers.finish()


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            pairs.append((prefix + name, float(value)))
    return pairs


class PhaseTimer:
    """Time spent in each phase of a step. On a GPU the phases are launch times unless `synchronize` waits for it."""

    def __init__(self, synchronize: Any = None) -> None:
        self._synchronize = synchronize
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps = 0
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Begin a phase here."""
        self._mark = time.perf_counter()

    def stop(self, phase: str) -> None:
        """End `phase`, which began at the last `start` or `stop`."""
        if self._synchronize is not None:
            self._synchronize()
        now = time.perf_counter()
        self._seconds[phase] += now - self._mark
        self._mark = now

    def step(self) -> None:
        """Count one optimiser step."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Mean milliseconds of each phase per step since the last call."""
        means = {phase: 1000 * seconds / max(self._steps, 1) for phase, seconds in self._seconds.items()}
        self._seconds, self._steps = dict.fromkeys(PHASES, 0.0), 0
        return means
