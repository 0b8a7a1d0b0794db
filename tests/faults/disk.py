"""Disks that are full, or turn read-only, at each size and at each moment; then the same command with room again."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from kills import same_folders
from runs import STEPS, Bench, LostError, newest_step, run, watch

_ROOM = 400  # megabytes: more than a run needs


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through tasks, kinds of fault and moments: consecutive seeds try them all."""
    kinds = ("full", "read-only", "size")
    what = ("vqa", "pretraining", "evaluate")[seed % 3]
    kind, number = kinds[seed // 3 % 3], seed // 9
    events = len(bench.events[what])
    disk = folder / "disk"
    disk.mkdir()
    size = f"{_ROOM}m"
    if kind == "size":
        need = 1 if what == "evaluate" else 250
        size = f"{max(4, int(1024 * need * (number * 0.618034 % 1)))}k"
    with mounted(disk, size) as is_mounted:
        output = disk / "run"
        arguments = bench.evaluate(bench.folder / "vqa", output) if what == "evaluate" else bench.train(what, output)
        act: Callable[[int, str, str], None] | None = None
        if kind == "full":
            act = _fill_at(disk, 1 + number % events, is_mounted)
        elif kind == "read-only" or not is_mounted:
            act = _refuse_from(1 + number % events, errno.EROFS if kind == "read-only" else errno.ENOSPC)
        done = run(arguments, before=watch(disk, act) if act else None)
        done.expect(0, 2, where=f"{kind}, {what}, {size if kind == 'size' else f'event {1 + number % events}'}")
        (disk / "filler").unlink(missing_ok=True)
        if is_mounted:
            subprocess.run(["mount", "-o", f"remount,size={_ROOM}m", str(disk)], check=True)
        newest = newest_step(output)
        if done.code == 2 and newest and f"step-{newest:08d}" not in done.text and "intact" not in done.text:
            raise LostError(f"the error does not say what is intact: {' '.join(done.errors)[:200]}")
        assert newest <= STEPS
        if what == "evaluate":
            run(arguments).expect(0, where="evaluated with room again")
            same_folders(bench.folder / "evaluated", output)
        else:
            bench.resume(what, output)
    return 1


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
