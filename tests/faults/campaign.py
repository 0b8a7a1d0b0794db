"""Faults by class, each in a fork of its own, for so many minutes; what was tried, held and lost."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tiny_runs import PATIENCE, Bench, LostError

Attempt = Callable[[Bench, int, Path], int]
_HANGS = 900 * PATIENCE  # seconds after which a fault counts as lost
_SHOWN = 3


@dataclass
class FaultClass:
    """A class of faults and how they fared.

    Args:
        name: Its name on the command line.
        about: What is tried, for the table.
        attempt: Tries the fault of a seed in a folder; returns how many faults that was, raises LostError.
        share: Its share of the time.
    """

    name: str
    about: str
    attempt: Attempt
    share: float
    started: int = 0
    tried: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class _Running:
    kind: FaultClass
    seed: int
    folder: Path
    began: float


class Campaign:
    """Tries faults until the time is over or each class has had `count`, in so many processes at a time."""

    def __init__(self, classes: list[FaultClass], bench: Bench, *, seed: int, processes: int, keep: bool) -> None:
        self.classes, self.bench, self.seed, self.processes, self.keep = classes, bench, seed, processes, keep
        self._running: dict[int, _Running] = {}

    def run(self, minutes: float, count: int | None = None) -> None:
        """Try them; Ctrl-C ends it early and leaves what was found."""
        began = told = time.monotonic()
        end = began + 60 * minutes
        # Asked to end, it ends as by Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            while True:
                open_classes = [kind for kind in self.classes if count is None or kind.started < count]
                if time.monotonic() < end and open_classes and len(self._running) < self.processes:
                    self._start(min(open_classes, key=self._spent))
                    continue
                if not self._running:
                    return
                self._reap()
                now = time.monotonic()
                if now - told >= 30:
                    told = now
                    self._tell(now - began, end - now)
                time.sleep(0.01)
        except KeyboardInterrupt:
            print("\nended early", flush=True)
        finally:
            for pid, running in self._running.items():
                _end(pid)
                _delete(running.folder)

    def _spent(self, kind: FaultClass) -> float:
        """Its time so far against its share; what runs counts as a second, so that classes take turns."""
        running = [at for at in self._running.values() if at.kind is kind]
        return (kind.seconds + sum(time.monotonic() - at.began + 1 for at in running)) / kind.share

    def _start(self, kind: FaultClass) -> None:
        seed = self.seed + kind.started
        folder = self.bench.folder / f"{kind.name}-{seed}"
        folder.mkdir()
        kind.started += 1
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            self._running[pid] = _Running(kind, seed, folder, time.monotonic())
            return
        try:
            os.setpgid(0, 0)
            os.environ["FAULTS_FOLDER"] = str(folder)
            # Libraries warn of damaged files there.
            os.dup2(os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            try:
                found = {"tried": kind.attempt(self.bench, seed, folder)}
            except LostError as lost:
                found = {"lost": " ".join(str(lost).split()), "tried": lost.tried}
            except BaseException:
                found = {"lost": "the campaign itself: " + " | ".join(traceback.format_exc().splitlines()[-4:])}
            (folder / "found.json").write_text(json.dumps(found))
        finally:
            os._exit(0)

    def _reap(self) -> None:
        for pid, running in list(self._running.items()):
            ended, _ = os.waitpid(pid, os.WNOHANG)
            seconds = time.monotonic() - running.began
            if not ended and seconds < _HANGS:
                continue
            _end(pid, wait=not ended)
            del self._running[pid]
            kind = running.kind
            kind.seconds += seconds
            try:
                found = json.loads((running.folder / "found.json").read_text())
            except (OSError, ValueError):
                found = {"lost": f"no end within {_HANGS} seconds" if not ended else "the process that tried it died"}
            kind.tried += found.get("tried", 1)
            if "lost" in found:
                kind.losses.append((running.seed, found["lost"]))
                print(f"lost: {kind.name}, seed {running.seed}: {found['lost']}", flush=True)
                print(f"  again: {again(kind.name, running.seed)}", flush=True)
            if not (self.keep and "lost" in found):
                _delete(running.folder)

    def _tell(self, seconds: float, left: float) -> None:
        counts = ", ".join(f"{kind.name} {kind.tried:,}" for kind in self.classes)
        lost = sum(len(kind.losses) for kind in self.classes)
        print(f"{_clock(seconds)} done, {_clock(max(left, 0))} left: {counts}; lost {lost}", flush=True)


def _end(pid: int, wait: bool = True) -> None:
    """Kill what is left of a fault's processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if wait:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _delete(folder: Path) -> None:
    """Delete a fault's folder, and what a killed fault left mounted there."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        place = line.split()[1]
        if place.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", place], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def again(name: str, seed: int) -> str:
    """The command line that repeats one fault."""
    return f"python tests/faults --only {name} --seed {seed} --count 1"


def table(classes: list[FaultClass]) -> str:
    """Markdown: a row a class, and the first losses of each below."""
    lines = ["| class | what is tried | tried | held | lost |", "|---|---|---:|---:|---:|"]
    for kind in classes:
        lost = len(kind.losses)
        lines.append(f"| `{kind.name}` | {kind.about} | {kind.tried:,} | {kind.tried - lost:,} | {lost:,} |")
    tried, lost = sum(kind.tried for kind in classes), sum(len(kind.losses) for kind in classes)
    lines.append(f"| all | | {tried:,} | {tried - lost:,} | {lost:,} |")
    for kind in classes:
        for seed, reason in kind.losses[:_SHOWN]:
            lines += ["", f"{kind.name}, seed {seed}: {reason}", f"    {again(kind.name, seed)}"]
        if len(kind.losses) > _SHOWN:
            lines += ["", f"{kind.name}: {len(kind.losses) - _SHOWN} more: seeds {_seeds(kind)}"]
    return "\n".join(lines)


def _seeds(kind: FaultClass) -> str:
    return ", ".join(str(seed) for seed, _ in kind.losses[_SHOWN:][:20])
