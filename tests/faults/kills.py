"""Processes killed while they train, save, prune, export or evaluate; then the same command to the end."""

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tiny_runs import Bench, LostError, run, start, watch

_WAYS = ("event", "event", "time", "write")


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """Kill a command once to three times and resume it. Returns how many kills struck."""
    draw = random.Random(seed)
    if seed % 4 == 3:
        return _evaluation(bench, draw, folder)
    task = ("pretraining", "vqa")[seed % 2]
    output, struck = folder / "run", 0
    for _ in range(draw.choice((1, 1, 2, 3))):
        arguments = bench.train(task, output)
        struck += _killed(arguments, output, draw, bench.seconds[task], len(bench.events[task]))
    bench.resume(task, output, before=draw.choice((None, lambda: _set_clock_back(output))))
    return max(struck, 1)


def _evaluation(bench: Bench, draw: random.Random, folder: Path) -> int:
    into, evaluated = folder / "evaluated", bench.folder / "evaluated"
    arguments = bench.evaluate(bench.folder / "vqa", into)
    struck = 0
    for _ in range(draw.choice((1, 2, 3))):
        struck += _killed(arguments, into, draw, bench.seconds["evaluate"], len(bench.events["evaluate"]))
    run(arguments).expect(0, where="evaluated after a kill")
    same_folders(evaluated, into)
    return max(struck, 1)


def same_folders(expected: Path, found: Path) -> None:
    """Raises LostError: files of two folders differ, by name or content."""
    contents = [
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (expected, found)
    ]
    names = [name for name in {**contents[0], **contents[1]} if contents[0].get(name) != contents[1].get(name)]
    if names:
        raise LostError(f"another evaluation than undisturbed: {', '.join(names)}")


def only_event(bench: Bench, seed: int) -> tuple[str, int]:
    """Of a seed that kills a training once, at an event: the task and the event's number from 1; else 0."""
    draw, task = random.Random(seed), ("pretraining", "vqa")[seed % 2]
    if seed % 4 == 3 or draw.choice((1, 1, 2, 3)) > 1 or draw.choice(_WAYS) != "event":
        return task, 0
    return task, draw.randint(1, len(bench.events[task]))


def _killed(arguments: list[str], folder: Path, draw: random.Random, seconds: float, events: int) -> bool:
    way = draw.choice(_WAYS)
    if way == "event":
        at = draw.randint(1, events)
        return run(arguments, before=watch(folder, _kill_at(at))).code == -signal.SIGKILL
    if way == "write":
        size = int(2 ** draw.uniform(6, 26))
        return run(arguments, before=lambda: kill_beyond(size)).code == -signal.SIGXFSZ
    command = start(arguments)
    deadline = time.monotonic() + draw.uniform(0.1, 1.1) * seconds
    while time.monotonic() < deadline and not command.poll():
        time.sleep(0.002)
    command.send(signal.SIGKILL)
    return command.wait().code == -signal.SIGKILL


def _kill_at(at: int) -> Callable[[int, str, str], None]:
    def act(number: int, event: str, path: str) -> None:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def kill_beyond(size: int) -> None:
    """The kernel kills in the middle of a write: the one that would make a file longer than this many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _set_clock_back(output: Path) -> None:
    """It is yesterday, and all files are of next week."""
    now = time.time
    time.time = lambda: now() - 86400
    for path in [output, *output.rglob("*")]:
        if path.exists():
            os.utime(path, (now() + 7 * 86400,) * 2)
