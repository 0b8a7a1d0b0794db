"""Two machines, made of network namespaces, of which one is cut off from the other; then both again to the end.

Needs the right to make network namespaces; without it nothing is tried.
"""

import contextlib
import ctypes
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ranks import LOST, end_ranks, slow_down, undisturbed
from tiny_runs import STEPS, Bench, Command, LostError, differing, digest, start

_CLONE_NEWNET = 0x40000000
_FIRST = "198.18.0.1"  # of the range for tests of networks (RFC 2544)


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The line between them is cut for good, or for some seconds."""
    draw, output = random.Random(seed), folder / "run"
    for_good = seed % 2 == 0
    stages = ["--engine.zero_stage", draw.choice(("0", "1", "2", "3"))]
    arguments = [*bench.train("pretraining", output), *stages, "--engine.timeout_seconds", "30"]
    with _two_machines() as names:
        if not names:
            return 0
        both = _start(arguments, names)
        at = draw.randint(1, STEPS - 2)
        while _steps(output) < at and not any([command.poll() for command in both]):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1))
        _line(names, "down")
        if not for_good:
            time.sleep(draw.uniform(1, 8))
            _line(names, "up")
        for rank, finished in enumerate(end_ranks(both)):
            finished.expect(*((0, LOST) if for_good else (0,)), where=f"machine {rank}, cut off")
        _line(names, "up")
        for rank, finished in enumerate(end_ranks(_start(arguments, names))):
            finished.expect(0, where=f"machine {rank}, back again")
    lines = differing(undisturbed(bench, stages), digest(output))
    if lines:
        raise LostError("cut off: another end than undisturbed: " + "; ".join(lines)[:300])
    return 1


@contextlib.contextmanager
def _two_machines() -> Iterator[list[str]]:
    """Names of two network namespaces with a line between them; none where they may not be made."""
    names = [f"faults-{os.getpid()}-{number}" for number in range(2)]
    try:
        made = all(_ip("netns", "add", name) for name in names) and _ip(
            "link", "add", "line", "netns", names[0], "type", "veth", "peer", "name", "line", "netns", names[1]
        )
        for number, name in enumerate(names if made else ()):
            made &= _ip("-n", name, "address", "add", f"198.18.0.{number + 1}/30", "dev", "line")
            made &= _ip("-n", name, "link", "set", "lo", "up")
        yield names if made and _line(names, "up") else []
    finally:
        for name in names:
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> bool:
    try:
        return not subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


def _line(names: list[str], state: str) -> bool:
    return all([_ip("-n", name, "link", "set", "line", state) for name in names])


def _start(arguments: list[str], names: list[str]) -> list[Command]:
    common = {
        "WORLD_SIZE": "2", "LOCAL_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": _FIRST, "MASTER_PORT": "29500",
        "GLOO_SOCKET_IFNAME": "line",
    }  # fmt: skip
    return [start(arguments, before=_within(name), RANK=str(rank), **common) for rank, name in enumerate(names)]


def _steps(output: Path) -> int:
    """How many lines the log has."""
    log = output / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def _within(name: str) -> Callable[[], Any]:
    def enter() -> None:
        # os.setns is there from Python 3.12 on.
        with open(f"/var/run/netns/{name}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        slow_down()

    return enter
