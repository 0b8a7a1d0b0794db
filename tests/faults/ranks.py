"""Two processes of which one is killed, stopped for a while, or slow; then both again to the end."""

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_runs import Bench, Command, Finished, LostError, differing, digest, start, watch

_PATIENCE = 90  # seconds in which what is left of a run has to end


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """One rank is lost or late; the losses must be those of two ranks that nothing disturbed."""
    draw = random.Random(seed)
    way = ("killed", "stopped", "slow", "killed")[seed % 4]
    which, output = draw.randrange(2), folder / "run"
    arguments = bench.train("pretraining", output)
    at = draw.randint(1, len(bench.events["pretraining"]))
    stages = ["--engine.zero_stage", draw.choice(("0", "1", "2"))]

    def strike(number: int, event: str, path: str) -> None:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL if way == "killed" else signal.SIGSTOP)

    # Only the first rank changes much in the folder; the other one is struck by the clock.
    befores: list[Callable[[], Any] | None] = [None, None]
    if way == "slow":
        befores[which] = _slow_down
    elif which == 0:
        befores[0] = watch(output, strike)
    both = _start([*arguments, *stages], befores)
    if way != "slow" and which == 1:
        time.sleep(draw.uniform(0.2, 3))
        both[1].send(signal.SIGKILL if way == "killed" else signal.SIGSTOP)
    if way == "stopped":
        while not both[which].poll() and not _is_stopped(both[which].pid):
            time.sleep(0.02)
        time.sleep(draw.uniform(1, 5))
        both[which].send(signal.SIGCONT)
    done = _end(both)
    if way in ("stopped", "slow"):
        for rank, finished in enumerate(done):
            finished.expect(0, where=f"rank {rank}, {way}")
    elif any(finished.code is None for finished in done):
        raise LostError(f"rank {which} was killed, the other one did not end within {_PATIENCE} seconds")
    for rank, finished in enumerate(_end(_start([*arguments, *stages], [None, None]))):
        finished.expect(0, where=f"rank {rank}, resumed after being {way}")
    lines = differing(_undisturbed(bench, stages), digest(output))
    if lines:
        raise LostError(f"rank {which} {way}: another end than undisturbed: " + "; ".join(lines)[:300])
    return 1


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _undisturbed(bench: Bench, stages: list[str]) -> dict[str, Any]:
    """What two ranks come to at a ZeRO stage; made by the first fault that asks."""
    known = bench.folder / f"two-ranks-{stages[1]}"
    if not known.exists():
        made = Path(os.environ["FAULTS_FOLDER"]) / "undisturbed"
        for rank, finished in enumerate(_end(_start([*bench.train("pretraining", made), *stages], [None, None]))):
            finished.expect(0, where=f"rank {rank}, undisturbed")
        with contextlib.suppress(OSError):  # made by another fault meanwhile
            made.rename(known)
    return digest(known)


def _start(arguments: list[str], befores: list[Callable[[], Any] | None]) -> list[Command]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(arguments, before=before, RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank, before in enumerate(befores)
    ]


def _end(commands: list[Command]) -> list[Finished]:
    """As the launcher does: where one has failed, the others are asked to end, a little later."""
    deadline, failed = time.monotonic() + _PATIENCE, None
    while not all([command.poll() for command in commands]) and time.monotonic() < deadline:
        if failed is None and any(command.code not in (None, 0) for command in commands):
            failed = time.monotonic()
        if failed is not None and time.monotonic() - failed > 2:
            for command in commands:
                command.send(signal.SIGTERM)
            failed = float("inf")
        time.sleep(0.02)
    return [command.wait(1) for command in commands]


def _slow_down() -> None:
    """Each forward of the model waits."""
    import torch

    torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: time.sleep(0.4) if type(module).__name__.startswith("SohoFor") else None
    )
