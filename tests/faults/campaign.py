"""A campaign of faults against training, evaluating, asking and reading, on tiny runs of the real commands.

python tests/faults --minutes 60
python tests/faults --only kills,disk --seed 17 --count 1     one fault again

Exit code 1 when anything was lost. Faults are given by their class and seed alone.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tiny_runs
from tiny_runs import PATIENCE, Bench, LostError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

Case = tuple[str, Callable[[Path, random.Random], int | None]]
"""Its name, and what tries it in a folder, by draws; returns how many faults that was (None: one), raises LostError."""

_HANGS = 900 * PATIENCE  # seconds after which a fault counts as lost
_SHOWN = 3


@dataclass
class FaultClass:
    """A class of faults and how they fared.

    Args:
        name: Its name on the command line.
        about: What is tried, for the table.
        share: Its share of the time.
        cases: What is tried, on a bench: seed n tries case n, modulo their number.
    """

    name: str
    about: str
    share: float
    cases: Callable[[Bench], list[Case]]
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
        """Try them; Ctrl-C or SIGTERM ends it early and leaves what was found."""
        began = told = time.monotonic()
        end = began + 60 * minutes
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            while True:
                still_open = [kind for kind in self.classes if count is None or kind.started < count]
                if time.monotonic() < end and still_open and len(self._running) < self.processes:
                    self._start(min(still_open, key=self._spent))
                    continue
                if not self._running:
                    return
                self._reap()
                now = time.monotonic()
                if now - told >= 30:
                    told = now
                    counts = ", ".join(f"{kind.name} {kind.tried:,}" for kind in self.classes)
                    lost = sum(len(kind.losses) for kind in self.classes)
                    print(f"{(now - began) / 60:.1f} minutes: {counts}; lost {lost}", flush=True)
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
        if pid := os.fork():
            self._running[pid] = _Running(kind, seed, folder, time.monotonic())
            return
        try:
            os.setpgid(0, 0)
            os.environ["FAULTS_FOLDER"] = str(folder)
            # Libraries warn of damaged files there.
            os.dup2(os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            (folder / "found.json").write_text(json.dumps(self._tried(kind, seed, folder)))
        finally:
            os._exit(0)

    def _tried(self, kind: FaultClass, seed: int, folder: Path) -> dict:
        name = ""
        try:
            cases = in_order(kind, self.bench)
            name, attempt = cases[seed % len(cases)]
            return {"tried": attempt(folder, random.Random(seed)) or 1}
        except LostError as lost:
            return {"lost": f"{name}: {' '.join(str(lost).split())}", "tried": lost.tried}
        except BaseException:
            return {"lost": f"the campaign itself: {name}: {' | '.join(traceback.format_exc().splitlines()[-4:])}"}

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
                found = {"lost": "the process that tried it died" if ended else f"no end within {_HANGS} seconds"}
            kind.tried += found.get("tried", 1)
            if "lost" in found:
                kind.losses.append((running.seed, found["lost"]))
                print(f"lost: {kind.name}, seed {running.seed}: {found['lost']}", flush=True)
                print(f"  again: {again(kind.name, running.seed)}", flush=True)
            if not (self.keep and "lost" in found):
                _delete(running.folder)


def in_order(kind: FaultClass, bench: Bench) -> list[Case]:
    """The cases, by their seeds; neighbours are of different kinds."""
    cases = kind.cases(bench)
    return random.Random(0).sample(cases, len(cases))


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
        if (place := line.split()[1]).startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", place], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def again(name: str, seed: int) -> str:
    """The command line that repeats one fault."""
    return f"python tests/faults --only {name} --seed {seed} --count 1"


def table(classes: list[FaultClass]) -> str:
    """Markdown: a row a class, and the first losses of each below."""
    lines = ["| class | what is tried | tried | held | lost |", "|---|---|---:|---:|---:|"]
    rows = [(f"`{kind.name}`", kind.about, kind.tried, len(kind.losses)) for kind in classes]
    rows.append(("all", "", sum(row[2] for row in rows), sum(row[3] for row in rows)))
    lines += [f"| {name} | {about} | {tried:,} | {tried - lost:,} | {lost:,} |" for name, about, tried, lost in rows]
    for kind in classes:
        for seed, reason in kind.losses[:_SHOWN]:
            lines += ["", f"{kind.name}, seed {seed}: {reason}", f"    {again(kind.name, seed)}"]
        if more := [str(seed) for seed, _ in kind.losses[_SHOWN:]]:
            lines += ["", f"{kind.name}: {len(more)} more: seeds {', '.join(more[:20])}"]
    return "\n".join(lines)


@contextlib.contextmanager
def prepared(parent: str | None = None, *, keep: bool = False) -> Iterator[Bench]:
    """A bench in a folder of its own, which is the working directory meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=parent))
    os.environ["FAULTS_FOLDER"] = str(folder)
    os.chdir(folder)
    try:
        tiny_runs.import_everything()
        bench = Bench(folder)
        bench.prepare()
        yield bench
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    from classes import CLASSES

    parser = argparse.ArgumentParser(prog="tests/faults", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="Seed of each class's first fault; the others follow.")
    parser.add_argument("--only", default="", help=f"Classes, with commas: {', '.join(CLASSES)}.")
    parser.add_argument("--count", type=int, help="At most so many faults of each class.")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="Faults at a time.")
    parser.add_argument("--folder", help="Where the runs go; a temporary folder, deleted afterwards, by default.")
    parser.add_argument("--markdown", type=Path, help="Write the table to this file.")
    parser.add_argument("--keep", action="store_true", help="Keep the folders of what was lost.")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or list(CLASSES)
    if unknown := sorted({*names} - {*CLASSES}):
        parser.error(f"--only: expected some of {', '.join(CLASSES)}, got {', '.join(unknown)}")
    began, classes = time.monotonic(), [CLASSES[name] for name in names]
    with prepared(options.folder, keep=options.keep) as bench:
        print(
            f"the undisturbed runs are made ({time.monotonic() - began:.0f} s); {options.minutes:g} minutes", flush=True
        )
        campaign = Campaign(classes, bench, seed=options.seed, processes=options.processes, keep=options.keep)
        campaign.run(options.minutes, options.count)
    print(text := table(classes))
    if options.markdown is not None:
        options.markdown.write_text(text + "\n")
    return int(any(kind.losses for kind in classes))


if __name__ == "__main__":
    sys.exit(main())
