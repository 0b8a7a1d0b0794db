"""Disks that are full, or turn read-only, at each size and at each moment; then the same command with room again."""

import contextlib
import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from kills import same_folders
from tiny_runs import Bench, LostError, run, watch

_ROOM = 400  # megabytes: more than a run needs
_NEEDED = {"pretraining": 250, "vqa": 250, "evaluate": 1}
_NUM_SIZES = 24


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through commands, kinds of fault and moments or sizes: consecutive seeds try them all."""
    cases = _cases(bench)
    what, kind, number = cases[seed % len(cases)]
    disk = folder / "disk"
    disk.mkdir()
    size = f"{_ROOM}m"
    if kind == "size":
        size = f"{max(4, 1024 * _NEEDED[what] * number // _NUM_SIZES)}k"
    with mounted(disk, size) as is_mounted:
        output = disk / "run"
        arguments = bench.evaluate(bench.folder / "vqa", output) if what == "evaluate" else bench.train(what, output)
        act: Callable[[int, str, str], None] | None = None
        if kind == "full":
            act = _fill_at(disk, number, is_mounted)
        elif kind == "read-only" or not is_mounted:
            act = _refuse_from(number, errno.EROFS if kind == "read-only" else errno.ENOSPC)
        done = run(arguments, before=watch(disk, act) if act else None)
        try:
            done.expect(0, 2, where="with the fault")
            (disk / "filler").unlink(missing_ok=True)
            if is_mounted:
                subprocess.run(["mount", "-o", f"remount,size={_ROOM}m", str(disk)], check=True)
            if what == "evaluate":
                run(arguments).expect(0, where="with room again")
                same_folders(bench.folder / "evaluated", output)
            else:
                bench.resume(what, output)
        except LostError as lost:
            moment = f"of {size}" if kind == "size" else f"at event {number} {bench.events[what][number - 1]}"
            raise LostError(f"{what}, {kind} {moment}: {lost}") from None
    return 1


def _cases(bench: Bench) -> list[tuple[str, str, int]]:
    """(command, kind of fault, its moment from 1 or size from 0), in an order that mixes them."""
    cases = [
        (what, kind, number)
        for what, events in sorted(bench.events.items())
        for kind, numbers in (
            ("full", range(1, len(events) + 1)),
            ("read-only", range(1, len(events) + 1)),
            ("size", range(_NUM_SIZES)),
        )
        for number in numbers
    ]
    return random.Random(0).sample(cases, len(cases))


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[bool]:
    """A file system of this size there, where this user can mount one; says whether."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill_at(disk: Path, at: int, is_mounted: bool) -> Callable[[int, str, str], None]:
    if not is_mounted:
        return _refuse_from(at, errno.ENOSPC)

    def act(number: int, event: str, path: str) -> None:
        if number == at:
            with (disk / "filler").open("wb") as file, contextlib.suppress(OSError):
                for size in (2**20, 4096):
                    with contextlib.suppress(OSError):
                        while True:
                            os.write(file.fileno(), bytes(size))

    return act


def _refuse_from(at: int, number: int) -> Callable[[int, str, str], None]:
    def act(count: int, event: str, path: str) -> None:
        if count >= at and (number == errno.EROFS or event in ("open", "mkdir")):
            raise OSError(number, os.strerror(number), path)

    return act
