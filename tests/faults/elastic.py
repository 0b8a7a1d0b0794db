"""Runs that are killed and go on with another number of processes, at another ZeRO stage; then to the end."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

from ranks import LOST, end_ranks, start_ranks, wait_until_met
from tiny_runs import STEPS, Bench, Command, Finished, LostError, newest_step, start

# What follows from the number of processes: dropout, and BatchNorm's statistics in training.
_SAME = (
    "--engine.freeze_batch_norm", "true", "--model.config.hidden_dropout_prob", "0",
    "--model.config.attention_probs_dropout_prob", "0",
)  # fmt: skip
_RTOL = 1e-5


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """Three parts of a run, each with its number of processes and its stage; the first two are killed at some time."""
    draw, output = random.Random(seed), folder / "run"
    ways = [(1 + (seed + part) % 2, draw.randrange(4)) for part in range(3)]
    for processes, stage in ways[:2]:
        commands = _start(bench, output, processes, stage)
        if processes == 2:
            wait_until_met(output, commands)
        deadline = time.monotonic() + draw.uniform(0.3, 1.0) * bench.seconds["pretraining"]
        while time.monotonic() < deadline and not all([command.poll() for command in commands]):
            time.sleep(0.01)
        which = draw.randrange(processes)
        commands[which].send(signal.SIGKILL)
        for rank, finished in enumerate(end_ranks(commands)):
            if rank != which:
                finished.expect(0, LOST, where=f"rank {rank}, {which} of {processes} was killed at ZeRO {stage}")
    newest = newest_step(output)
    for rank, finished in enumerate(_finish(bench, output, *ways[2])):
        finished.expect(0, where=f"rank {rank} of {ways}, from step {newest}")
        if rank == 0 and 0 < newest < STEPS and f"(step {newest} of" not in finished.text:
            raise LostError(f"{ways}: it did not go on from step {newest}, the newest checkpoint")
    expected, found = _losses(_undisturbed(bench)), _losses(output)
    if len(found) != len(expected):
        raise LostError(f"{ways}: {len(found)} steps in the log, expected {len(expected)}")
    apart = max(abs(one / other - 1) for one, other in zip(found, expected, strict=True))
    if apart > _RTOL:
        raise LostError(f"{ways}: the losses are {apart:.1e} from those of a run that nothing disturbed")
    return 1


def _start(bench: Bench, output: Path, processes: int, stage: int) -> list[Command]:
    arguments = [*bench.train("pretraining", output), *_SAME, "--engine.zero_stage", str(stage)]
    return [start(arguments)] if processes == 1 else start_ranks(arguments, [None, None])


def _finish(bench: Bench, output: Path, processes: int, stage: int) -> list[Finished]:
    return end_ranks(_start(bench, output, processes, stage))


def _losses(output: Path) -> list[float]:
    records = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "train"]


def _undisturbed(bench: Bench) -> Path:
    """One process at stage 0, made by the first fault that asks."""
    known = bench.folder / "elastic"
    if not known.exists():
        made = Path(os.environ["FAULTS_FOLDER"]) / "undisturbed"
        _finish(bench, made, 1, 0)[0].expect(0, where="undisturbed")
        with contextlib.suppress(OSError):  # made by another fault meanwhile
            made.rename(known)
    return known
