"""Two processes of which one is killed, stopped, slow, or started with another setting; then both again to the end."""

import contextlib
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tiny_runs import Bench, Command, Finished, LostError, differing, digest, start, watch

_PATIENCE = 90  # seconds in which what is left of a run has to end
LOST = os.EX_TEMPFAIL
WAYS = ("killed", "stopped", "disagreeing", "slow", "killed", "silent")


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """One rank is lost or late; the losses must be those of two ranks that nothing disturbed."""
    draw = random.Random(seed)
    way = WAYS[seed % len(WAYS)]
    if way == "disagreeing":
        return _disagreeing(bench, draw, folder)
    which, output = draw.randrange(2), folder / "run"
    arguments = bench.train("pretraining", output)
    at = draw.randint(1, len(bench.events["pretraining"]))
    stages = ["--engine.zero_stage", draw.choice(("0", "1", "2", "3"))]
    timeout = ["--engine.timeout_seconds", "5"] if way == "silent" else []

    def strike(number: int, event: str, path: str) -> None:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL if way == "killed" else signal.SIGSTOP)

    # Only the first rank changes much in the folder; the other one is struck by the clock.
    befores: list[Callable[[], Any] | None] = [None, None]
    if way == "slow":
        befores[which] = slow_down
    elif which == 0:
        befores[0] = watch(output, strike)
    both = start_ranks([*arguments, *stages, *timeout], befores)
    if way != "slow" and which == 1:
        wait_until_met(output, both)
        time.sleep(draw.uniform(0, 3))
        both[1].send(signal.SIGKILL if way == "killed" else signal.SIGSTOP)
    if way == "stopped":
        while not both[which].poll() and not _is_stopped(both[which].pid):
            time.sleep(0.02)
        time.sleep(draw.uniform(1, 5))
        both[which].send(signal.SIGCONT)
    if way == "silent":
        survivor = both[1 - which].wait(_PATIENCE)
        both[which].send(signal.SIGKILL)
        both[which].wait()
        survivor.expect(0, LOST, where=f"rank {1 - which}, whose partner stood still")
    else:
        done = end_ranks(both)
        for rank, finished in enumerate(done):
            if way == "killed" and rank == which:
                continue
            finished.expect(*((0, LOST) if way == "killed" else (0,)), where=f"rank {rank}, {which} was {way}")
    for rank, finished in enumerate(end_ranks(start_ranks([*arguments, *stages], [None, None]))):
        finished.expect(0, where=f"rank {rank}, resumed after being {way}")
    lines = differing(undisturbed(bench, stages), digest(output))
    if lines:
        raise LostError(f"rank {which} {way}: another end than undisturbed: " + "; ".join(lines)[:300])
    return 1


def _disagreeing(bench: Bench, draw: random.Random, folder: Path) -> int:
    """One rank is started with another value of a field: both end at once, in one line that names the field."""
    field, value = draw.choice((("optim.lr", "0.5"), ("seed", "7"), ("batch.global_batch_size", "8"), ("epochs", "3")))
    other = draw.randrange(2)
    arguments = bench.train("pretraining", folder / "run")
    own = [[f"--{field}", value] if rank == other else [] for rank in range(2)]
    done = end_ranks(start_ranks(arguments, [None, None], own))
    for rank, finished in enumerate(done):
        if finished.code != 2 or "Traceback" in finished.text:
            raise LostError(
                f"rank {rank} of two with another {field}: exit code {finished.code}: {finished.text[-200:]}"
            )
    lines = [line for finished in done for line in finished.errors]
    if not lines or not all(field in line and "rank" in line for line in lines):
        raise LostError(f"two ranks with another {field} said: {' | '.join(lines)[:200] or 'nothing'}")
    return 1


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def undisturbed(bench: Bench, stages: list[str]) -> dict[str, Any]:
    """What two ranks come to at a ZeRO stage; made by the first fault that asks."""
    known = bench.folder / f"two-ranks-{stages[1]}"
    if not known.exists():
        made = Path(os.environ["FAULTS_FOLDER"]) / "undisturbed"
        both = start_ranks([*bench.train("pretraining", made), *stages], [None, None])
        for rank, finished in enumerate(end_ranks(both)):
            finished.expect(0, where=f"rank {rank}, undisturbed")
        with contextlib.suppress(OSError):  # made by another fault meanwhile
            made.rename(known)
    return digest(known)


def start_ranks(
    arguments: list[str],
    befores: Sequence[Callable[[], Any] | None],
    own: Sequence[list[str]] = ([], []),
) -> list[Command]:
    """Start two ranks of one command; each has something called before, and may have arguments of its own."""
    port = free_port()
    return [
        start_rank([*arguments, *own[rank]], rank=rank, port=port, before=before) for rank, before in enumerate(befores)
    ]


def start_rank(arguments: list[str], *, rank: int, port: int, before: Callable[[], Any] | None = None) -> Command:
    """Start one of two ranks."""
    number = str(rank)
    common = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return start(arguments, before=before, RANK=number, LOCAL_RANK=number, **common)


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_met(output: Path, commands: list[Command]) -> None:
    """Wait until the ranks have found each other. One that is lost before that is the launcher's to notice."""
    lock, first = output / "in-use.lock", re.compile(rf"\b{commands[0].pid}\b")  # A killed run may have left one.
    while not (lock.exists() and first.search(lock.read_text())) and not any([command.poll() for command in commands]):
        time.sleep(0.01)


def end_ranks(commands: list[Command]) -> list[Finished]:
    """Wait for them; nobody ends the one when the other is gone."""
    deadline = time.monotonic() + _PATIENCE
    return [command.wait(max(1.0, deadline - time.monotonic())) for command in commands]


def slow_down() -> None:
    """Each forward of the model waits from now on."""
    import torch

    torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: time.sleep(0.4) if type(module).__name__.startswith("SohoFor") else None
    )
