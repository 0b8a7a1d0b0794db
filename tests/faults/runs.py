"""Runs that are killed, whose disk fills up, that are started twice, or of whose two ranks one fails; then the same
command to its end.

Held: losses, metrics, weights and files are those of a run that nothing disturbed, bit for bit, or one line refuses.
"""

import contextlib
import ctypes
import errno
import os
import random
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tiny_runs
from tiny_runs import Bench, Case, Command, Finished, LostError, at_event, digest, kill_at, run, same, start, watch

LOST = os.EX_TEMPFAIL
_RANKS_END = 90  # seconds in which what is left of a run has to end
_NEW_MOUNTS = 0x20000  # of sched.h
_ROOM, _NEEDED, _NUM_SIZES = 400, {"pretraining": 250, "vqa": 250, "evaluate": 1}, 24  # megabytes


def kills(bench: Bench) -> list[Case]:
    """At each event, at some time, or in the middle of a write; perhaps more than once."""
    every = []
    for what, events in bench.events.items():
        ways = [(f"before {at}, {' '.join(event)}", at) for at, event in enumerate(events, 1)]
        ways += [(way, way) for way in ("time", "write") for _ in range(len(events) // 2)]
        every += [(f"{what}, killed {name}", partial(_killed, bench, what, way)) for name, way in ways]
    return every


def _killed(bench: Bench, what: str, way: int | str, folder: Path, draw: random.Random) -> int:
    output, struck = folder / "run", 0
    for number in range(draw.choice((1, 1, 2, 3))):
        struck += _kill(bench, what, draw.choice((way, "time", "write")) if number else way, output, draw)
    bench.finish(what, output, before=draw.choice((None, lambda: _set_clock_back(output))))
    return max(struck, 1)


def _kill(bench: Bench, what: str, way: int | str, output: Path, draw: random.Random) -> bool:
    arguments = bench.command(what, output)
    if way == "write":
        size = int(2 ** draw.uniform(6, 26))
        return run(arguments, before=lambda: kill_beyond(size)).code == -signal.SIGXFSZ
    if isinstance(way, int):
        return run(arguments, before=kill_at(output, way)).code == -signal.SIGKILL
    command, deadline = start(arguments), time.monotonic() + draw.uniform(0.1, 1.1) * bench.seconds[what]
    while time.monotonic() < deadline and not command.poll():
        time.sleep(0.002)
    command.send(signal.SIGKILL)
    return command.wait().code == -signal.SIGKILL


def kill_beyond(size: int) -> None:
    """The kernel kills in the middle of a write: the one that would make a file longer than this many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _set_clock_back(output: Path) -> None:
    """It is yesterday, and all files are of next week."""
    now = time.time
    time.time = lambda: now() - 86400
    for path in output.rglob("*"):
        os.utime(path, (now() + 7 * 86400,) * 2)


def disks(bench: Bench) -> list[Case]:
    """A disk that fills up, or turns read-only, at each event; a disk of each size."""
    return [
        (f"{what}, {kind} {number}", partial(_on_a_disk, bench, what, kind, number))
        for what, events in bench.events.items()
        for kind, numbers in (
            ("full", range(1, len(events) + 1)), ("read-only", range(1, len(events) + 1)), ("size", range(_NUM_SIZES)),
        )
        for number in numbers
    ]  # fmt: skip


def _on_a_disk(bench: Bench, what: str, kind: str, number: int, folder: Path, draw: random.Random) -> None:
    disk = folder / "disk"
    disk.mkdir()
    size = f"{max(4, 1024 * _NEEDED[what] * number // _NUM_SIZES)}k" if kind == "size" else f"{_ROOM}m"
    with _mounted(disk, size) as is_mounted:
        act: tiny_runs.Act | None = _refuse_from(number, errno.EROFS if kind == "read-only" else errno.ENOSPC)
        if is_mounted and kind != "read-only":
            act = at_event(number, lambda: _fill(disk / "filler")) if kind == "full" else None
        done = run(bench.command(what, disk / "run"), before=watch(disk, act) if act else None)
        done.expect(0, 2, where="with the fault")
        (disk / "filler").unlink(missing_ok=True)
        if is_mounted:
            subprocess.run(["mount", "-o", f"remount,size={_ROOM}m", str(disk)], check=True)
        bench.finish(what, disk / "run")


@contextlib.contextmanager
def _mounted(folder: Path, size: str) -> Iterator[bool]:
    """A file system of this size there, where this user can mount one; says whether."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def _refuse_from(at: int, number: int) -> tiny_runs.Act:
    def act(count: int, event: str, path: str) -> None:
        if count >= at and (number == errno.EROFS or event in ("open", "mkdir")):
            raise OSError(number, os.strerror(number), path)

    return act


def limits(bench: Bench) -> list[Case]:
    """Trainings with loader processes, from their beginning or a checkpoint on, that may open few files, or have little
    shared memory or little memory."""
    values = {
        "files": (8, 12, 14, 16, 18, 20, 24, 28, 32, 48),
        "shared memory": ("ro", "size=4k", "size=12k", "size=16k", "size=32k", "size=48k", "size=64k", "size=1m"),
        "memory": (0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.2),  # gigabytes
    }
    return [
        (f"{what}: {value}", partial(_limited, bench, what, value)) for what, each in values.items() for value in each
    ]


def _limited(bench: Bench, what: str, value: Any, folder: Path, draw: random.Random) -> None:
    before = {
        "files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (value, value)),
        "shared memory": lambda: _mount_here("/dev/shm", value),
        "memory": lambda: tiny_runs.limit_memory(value),
    }[what]
    if draw.random() < 0.5:
        bench.copy("pretraining-half", folder / "run")
    workers = ("--batch.workers", "2")
    done = run(bench.command("pretraining", folder / "run", *workers), before=before)
    done.expect(0, 2, where="with the limit")
    named = {"files": "open files", "shared memory": "error: /dev/shm: ", "memory": "error: memory: "}[what]
    if done.code and (named not in done.errors[0] or "Delete" in done.errors[0]):
        raise LostError(f"said: {done.errors[0]}")
    bench.finish("pretraining", folder / "run", *workers)


def _mount_here(place: str, options: str) -> None:
    """Mount memory there for this process alone, where this user can."""
    if ctypes.CDLL(None).unshare(_NEW_MOUNTS) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)


def twice(bench: Bench) -> list[Case]:
    """Two commands at once on one folder: one does the work, the other refuses."""

    def both(what: str, folder: Path, draw: random.Random) -> None:
        arguments = bench.command(what, folder / "run")
        first = start(arguments)
        time.sleep(draw.choice((0, 1)) * draw.uniform(0, 1.2) * bench.seconds[what])
        codes = [each.wait().expect(0, 2, where="one of two").code for each in (first, start(arguments))]
        if codes == [2, 2]:
            raise LostError("both refused")
        bench.finish(what, folder / "run")

    return [(what, partial(both, what)) for what in bench.events]


def ranks(bench: Bench) -> list[Case]:
    """One of two ranks killed, stopped for a while or for good, slow, or set otherwise."""
    every = [
        (f"rank {which} {way}", partial(_struck, bench, way, which))
        for way in ("killed", "stopped", "silent", "slow")
        for which in range(2)
    ]
    others = (("optim.lr", "0.5"), ("seed", "7"), ("batch.global_batch_size", "8"), ("epochs", "3"))
    return every + [(f"another {name}", partial(_disagreeing, bench, name, value)) for name, value in others]


def _struck(bench: Bench, way: str, which: int, folder: Path, draw: random.Random) -> None:
    output, stage = folder / "run", draw.choice("0123")
    number = signal.SIGKILL if way == "killed" else signal.SIGSTOP
    strike = at_event(draw.randint(1, len(bench.events["pretraining"])), lambda: os.kill(os.getpid(), number))
    # Only the first rank changes much in the folder; the other one is struck by the clock.
    before = _slow_down if way == "slow" else watch(output, strike) if which == 0 else None
    befores = [before if rank == which else None for rank in range(2)]
    both = start_two(
        bench, output, *(["--engine.timeout_seconds", "30"] if way == "silent" else []), stage=stage, befores=befores
    )
    if way != "slow" and which == 1:
        # A rank that is lost before they have met is the launcher's to notice.
        _wait(lambda: (output / "log.jsonl").exists(), both)
        time.sleep(draw.uniform(0, 3))
        both[1].send(number)
    if way == "stopped":
        _wait(lambda: _is_stopped(both[which].pid), [both[which]])
        time.sleep(draw.uniform(1, 5))
        both[which].send(signal.SIGCONT)
    if way == "silent":
        both[1 - which].wait(_RANKS_END).expect(0, LOST, where=f"rank {1 - which}, whose partner stood still")
        both[which].send(signal.SIGKILL)
        both[which].wait()
    else:
        for rank, finished in enumerate(end_all(both)):
            if (way, rank) != ("killed", which):
                finished.expect(*((0, LOST) if way == "killed" else (0,)), where=f"rank {rank}")
    for rank, finished in enumerate(end_all(start_two(bench, output, stage=stage))):
        finished.expect(0, where=f"rank {rank}, again")
    same(digest(_two_ranks(bench, stage)), digest(output))


def _disagreeing(bench: Bench, name: str, value: str, folder: Path, draw: random.Random) -> None:
    """Both end at once, in one line that names the field."""
    own = draw.choice((([f"--{name}", value], []), ([], [f"--{name}", value])))
    done = [each.expect(2, where="one of two") for each in end_all(start_two(bench, folder / "run", own=own))]
    lines = [line for finished in done for line in finished.errors]
    if not all(name in line and "rank" in line for line in lines):
        raise LostError(f"said: {' | '.join(lines)[:200]}")


def _two_ranks(bench: Bench, stage: str = "0") -> Path:
    """What two ranks come to at a ZeRO stage when nothing disturbs them."""

    def make(new: Path) -> None:
        for rank, finished in enumerate(end_all(start_two(bench, new, stage=stage))):
            finished.expect(0, where=f"rank {rank}, undisturbed")

    return bench.once(f"two-ranks-{stage}", make)


def start_two(
    bench: Bench,
    output: Path,
    *more: str,
    stage: str = "0",
    own: tuple[list[str], list[str]] = ([], []),
    befores: list[tiny_runs.Before] | tuple[None, None] = (None, None),
) -> list[Command]:
    """Start two ranks of a training; each may have arguments of its own, and something called before."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    whole = ["--optim.rule", "adamw"] if stage == "3" else []  # Muon, the recipe's, needs whole matrices
    arguments = bench.command("pretraining", output, "--engine.zero_stage", stage, *whole, *more)
    common = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start([*arguments, *own[rank]], before=befores[rank], RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(2)
    ]


def _wait(is_so: Callable[[], bool], commands: list[Command]) -> None:
    """Wait for it, or until one of them has ended."""
    while not is_so() and not any([command.poll() for command in commands]):
        time.sleep(0.02)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def end_all(commands: list[Command]) -> list[Finished]:
    """Wait for them; nobody ends the one when the other is gone."""
    deadline = time.monotonic() + _RANKS_END
    return [command.wait(max(1.0, deadline - time.monotonic())) for command in commands]


def _slow_down() -> None:
    """Each forward of the model waits from now on."""
    import torch

    def wait(module: Any, inputs: Any) -> None:
        if type(module).__name__.startswith("SohoFor"):
            time.sleep(0.4)

    torch.nn.modules.module.register_module_forward_pre_hook(wait)
