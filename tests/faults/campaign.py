"""Tries faults, each in a process group of its own, and counts what was lost."""

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
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[2] / part) for part in ("", "tests/data"))

import files
import guard
import hostile
import runs
import tiny_runs
from tiny_runs import PATIENCE, Bench, Case, LostError

_HANGS = 900 * PATIENCE  # seconds after which a fault counts as lost


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
    lost: int = 0
    seconds: float = 0.0

    def in_order(self, bench: Bench) -> list[Case]:
        """The cases, by their seeds; neighbours are of different kinds."""
        cases = self.cases(bench)
        return random.Random(0).sample(cases, len(cases))


CLASSES = (
    FaultClass("kills", "`kill -9` while training, saving, pruning, evaluating", 4, runs.kills),
    FaultClass("disk", "full and read-only disks, at each size and moment", 6, runs.disks),
    FaultClass("limits", "few open files, little shared memory, little memory", 2, runs.limits),
    FaultClass("two_runs", "two commands at once on one folder", 1, runs.twice),
    FaultClass("ranks", "one of two ranks killed, stopped, slow, set otherwise", 3, runs.ranks),
    FaultClass("damage", "each file of runs, models, corpora damaged in seven ways", 4, files.damaged),
    FaultClass("pickles", "code planted wherever something is loaded", 2, files.pickles),
    FaultClass("foreign", "files of others that name modules, paths, programs", 3, files.foreign),
    FaultClass("code", "own code changed between starts, on a rank, before a model is read", 2, guard.code),
    FaultClass("settings", "mistakes in recipes, models' files and arguments", 2, files.settings),
    FaultClass("images", "damaged and hostile images, decoded", 4, hostile.images),
    FaultClass("bombs", "small images and texts that cost minutes or gigabytes", 2, hostile.bombs),
    FaultClass("controls", "names and texts that a terminal obeys", 2, hostile.controls),
    FaultClass("app", "hostile calls of the app", 1, guard.app),
)


def campaign(
    classes: list[FaultClass],
    bench: Bench,
    *,
    minutes: float,
    seed: int = 0,
    count: int | None = None,
    processes: int = 1,
    keep: bool = False,
) -> None:
    """Try faults until the time is over or each class has had `count`; Ctrl-C ends it early."""
    end = time.monotonic() + 60 * minutes
    running: dict[int, tuple[FaultClass, int, Path, float]] = {}

    def spent(kind: FaultClass) -> float:
        # Against its share; what runs counts as a second more, so that classes take turns.
        run_for = [time.monotonic() - began + 1 for other, *_, began in running.values() if other is kind]
        return (kind.seconds + sum(run_for)) / kind.share

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            still_open = [kind for kind in classes if count is None or kind.started < count]
            if time.monotonic() < end and still_open and len(running) < processes:
                kind = min(still_open, key=spent)
                number = seed + kind.started
                folder = bench.folder / f"{kind.name}-{number}"
                folder.mkdir()
                running[_start(kind, number, bench, folder)] = kind, number, folder, time.monotonic()
                kind.started += 1
                continue
            if not running:
                return
            for pid, (kind, number, folder, began) in list(running.items()):
                ended, _ = os.waitpid(pid, os.WNOHANG)
                if ended or time.monotonic() - began > _HANGS:
                    _end(pid, wait=not ended)
                    del running[pid]
                    kind.seconds += time.monotonic() - began
                    is_lost = _count(kind, number, folder)
                    if not (keep and is_lost):
                        _delete(folder)
            time.sleep(0.01)
    except KeyboardInterrupt:
        print("\nended early", flush=True)
    finally:
        for pid, (*_, folder, _) in running.items():
            _end(pid)
            _delete(folder)


def _start(kind: FaultClass, number: int, bench: Bench, folder: Path) -> int:
    """The number of the process that tries a fault, and leaves what it found in `found.json`."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    name = ""
    try:
        os.setpgid(0, 0)
        os.environ["FAULTS_FOLDER"] = str(folder)
        # Libraries warn of damaged files there.
        os.dup2(os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        try:
            cases = kind.in_order(bench)
            name, attempt = cases[number % len(cases)]
            found = {"tried": attempt(folder, random.Random(number)) or 1}
        except LostError as lost:
            found = {"lost": f"{name}: {' '.join(str(lost).split())}", "tried": lost.tried}
        except BaseException:
            found = {"lost": f"the campaign itself: {name}: {' | '.join(traceback.format_exc().splitlines()[-4:])}"}
        (folder / "found.json").write_text(json.dumps(found))
    finally:
        os._exit(0)


def _count(kind: FaultClass, number: int, folder: Path) -> bool:
    try:
        found = json.loads((folder / "found.json").read_text())
    except (OSError, ValueError):
        found = {"lost": f"the process that tried it died, or did not end within {_HANGS} seconds"}
    kind.tried += found.get("tried", 1)
    kind.lost += "lost" in found
    if "lost" in found:
        print(f"lost: {kind.name}, seed {number}: {found['lost']}")
        print(f"  again: python tests/faults --only {kind.name} --seed {number} --count 1", flush=True)
    return "lost" in found


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


@contextlib.contextmanager
def prepared(*, keep: bool = False) -> Iterator[Bench]:
    """A bench in a folder of its own, which is the working directory meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
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
