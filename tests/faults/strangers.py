"""Another user of the machine, who joins the store in a rank's place, says something to the heartbeat or the store, or
names a place of his own; and a rank that comes twice. Told at once, or the run goes on to the same end."""

import contextlib
import encodings.idna  # noqa: F401 - connecting needs it, and another user may not be able to read it
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from ranks import end_ranks, free_port, note_port, start_rank, undisturbed
from tiny_runs import PATIENCE, Bench, Command, LostError, differing, digest

WAYS = ("joins", "crowds", "twice", "names", "noise")
_NOBODY = 65534
_AT_ONCE = 60  # seconds, of which a rank's last words take ten


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through the ways."""
    draw, way, port, output = random.Random(seed), WAYS[seed % len(WAYS)], free_port(), folder / "run"
    stages = ["--engine.zero_stage", "0"]
    begin = partial(start_rank, [*bench.train("pretraining", output), *stages], port=port)
    others: list[int] = []
    try:
        noted = folder / "port"
        first = begin(rank=0, before=partial(note_port, noted))
        if way in ("joins", "names"):  # rank 0 waits for somebody
            act = partial(_join if way == "joins" else _name, port, draw)
            others.append(_stranger(act, stays=way == "names" or draw.random() < 0.5))
        elif way == "noise":
            _wait_for(lambda: _listens(port) or first.poll())
            others.append(_stranger(partial(_crowd, port, draw), stays=True))
        second = begin(rank=1)
        if way == "crowds":
            _wait_for(lambda: (noted.exists() and noted.read_text()) or first.poll())
            others.append(_stranger(partial(_crowd, int(noted.read_text()), draw), stays=True))
        if way == "names":
            _expect_told(second, "start again", "rank 1, told another place")
            first.send(signal.SIGKILL)  # as its launcher would
            first.wait()
            return 1
        if way == "twice":
            time.sleep(draw.uniform(0, 2))
            third = begin(rank=1)
            _wait_for(lambda: second.poll() or third.poll())
            if second.poll() and second.code == 0:  # The run has ended before the other one came.
                third.send(signal.SIGKILL)
                third.wait()
            else:
                late, second = (second, third) if second.poll() and second.code else (third, second)
                _expect_told(late, "place is taken", "rank 1, of which there are two")
        for rank, finished in enumerate(end_ranks([first, second])):
            finished.expect(0, where=f"{way}: rank {rank}")
    finally:
        for pid in others:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if lines := differing(undisturbed(bench, stages), digest(output)):
        raise LostError(f"{way}: another end than undisturbed: " + "; ".join(lines)[:300])
    return 1


def _expect_told(rank: Command, words: str, where: str) -> None:
    """It ends soon, in one line with these words."""
    done = rank.wait(_AT_ONCE).expect(2, where=where)
    if words not in done.errors[0]:
        raise LostError(f"{where}, said: {done.errors[0][:200]}")


def _wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _AT_ONCE * PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise LostError(f"nothing happened within {_AT_ONCE} seconds")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _stranger(act: Callable[[], Any], stays: bool) -> int:
    """A process of another user, where this one may become it, that has acted; it keeps what it got, or drops it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        os.read(read, 1)
        return pid
    with contextlib.suppress(BaseException):
        if os.getuid() == 0:
            os.setuid(_NOBODY)
        kept = act() if stays else (act(), None)[1]  # noqa: F841 - held until it is killed
    os.close(write)
    signal.pause()
    os._exit(0)


def _join(port: int, draw: random.Random) -> Any:
    """Comes as rank 1, reads what is there, and says to the heartbeat what it has learnt."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, 2, False, timedelta(seconds=60))
    place = store.get("start 0/heartbeat").decode()
    with contextlib.suppress(OSError):
        if os.getuid() == _NOBODY:
            place = Path(place).read_text()
    for words in (place.split(), " ".join(map(str, store.list_keys())).split()):
        if len(words) == 2 and words[0].isdigit():
            with socket.create_connection(("127.0.0.1", int(words[0]))) as rank_0:
                rank_0.sendall(f"{words[1]} 1 99 elsewhere\n".encode())
                rank_0.recv(1)
    return store


def _name(port: int, draw: random.Random) -> Any:
    """Names a place of his own, which rank 1 finds."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, 2, False, timedelta(seconds=60))
    store.get("start 0/heartbeat")
    store.set("start 0/heartbeat", draw.choice(("/etc/passwd", "/nowhere/at/all", "1 secret", "/dev/zero", "/tmp")))
    return store


def _crowd(port: int, draw: random.Random) -> Any:
    """Connects many times, says all that a rank might, or nothing, and stays."""
    kept = []
    for number in range(60):
        with contextlib.suppress(OSError):
            kept.append(socket.create_connection(("127.0.0.1", port), 1))
            secret = draw.randbytes(32).hex()
            kept[-1].sendall(draw.choice((
                b"", b"\0", f"{secret} 1 7 here\n".encode(), f"{secret} {number} 7".encode(), draw.randbytes(5000),
                b"\n", "\u0663 1 7 here\n".encode(), b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 8, b"0 -1 \xff here\n",
            )))  # fmt: skip
    return kept
