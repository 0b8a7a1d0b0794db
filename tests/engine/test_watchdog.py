"""A rank that fails ends the others with one line, soon; one that works long, or has ended, does not."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from soho_fast.common.errors import UserError
from soho_fast.engine import watchdog
from soho_fast.engine.watchdog import LOOPBACK, PROCESS_FAILED, Heartbeat

FORK = multiprocessing.get_context("fork")
SCRIPT = Path(__file__).with_name("engine_run.py")


def _rank(rank: int, folder: Path, place: tuple, timeout: float, work: Callable[[Heartbeat], None]) -> None:
    sys.stderr = (folder / f"{rank}.txt").open("w")
    watchdog._REPORTED = 1.0
    port, secret = place

    def look_up() -> str:
        while not port.value:
            time.sleep(0.01)
        return f"{port.value} {secret.value.decode()}"

    def publish(text: str) -> None:
        number, secret.value = text.split()[0], text.split()[1].encode()
        port.value = int(number)

    own = Heartbeat(rank, 3, "127.0.0.1", publish=publish, look_up=look_up, timeout=timeout, speaks=rank == 1)
    (folder / f"{rank}.ready").touch()
    while len(list(folder.glob("*.ready"))) < 3:
        time.sleep(0.01)
    work(own)
    os._exit(0)


@pytest.fixture
def ranks(tmp_path):
    """Start three ranks that do this; returns (processes, what they said until all have ended, or these)."""
    started = []

    def start(work: Callable[[int, Heartbeat], None], timeout: float = 0) -> list:
        place = FORK.Value("i", 0), FORK.Array("c", 100)
        for rank in range(3):
            process = FORK.Process(
                target=_rank, args=(rank, tmp_path, place, timeout, lambda own, rank=rank: work(rank, own)), daemon=True
            )
            process.start()
            started.append(process)
        while len(list(tmp_path.glob("*.ready"))) < 3:
            time.sleep(0.01)
        return started

    yield start
    for process in started:
        process.kill()


def _end(processes: list, seconds: float) -> list[int | None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.exitcode is None for process in processes):
        time.sleep(0.02)
    return [process.exitcode for process in processes]


def _said(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*.txt")) for line in path.read_text().splitlines()]


def _wait(_: int, own: Heartbeat) -> None:
    time.sleep(60)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_killed_rank_ends_the_others_at_once_with_one_line(ranks, tmp_path, lost):
    processes = ranks(_wait)
    time.sleep(0.5)
    processes[lost].kill()
    codes = _end(processes, 20)
    assert [code for rank, code in enumerate(codes) if rank != lost] == [PROCESS_FAILED, PROCESS_FAILED]
    assert codes[lost] == -signal.SIGKILL
    (line,) = _said(tmp_path)
    assert line.startswith(f"error: rank {lost} (") and "has ended (killed, or out of memory): this run ends;" in line
    assert line.endswith("the same command goes on from the newest checkpoint")


@pytest.mark.parametrize("lost", [0, 2])
def test_a_stopped_rank_ends_the_others_after_the_timeout(ranks, tmp_path, lost):
    processes = ranks(_wait, timeout=2.0)
    os.kill(processes[lost].pid, signal.SIGSTOP)
    began = time.monotonic()
    others = [process for rank, process in enumerate(processes) if rank != lost]
    assert _end(others, 30) == [PROCESS_FAILED, PROCESS_FAILED]
    assert time.monotonic() - began > 1.5
    (line,) = _said(tmp_path)
    assert line.startswith(f"error: rank {lost} (") and "no sign of life for 2 s (engine.timeout_seconds)" in line
    # Going on, it finds the others gone.
    os.kill(processes[lost].pid, signal.SIGCONT)
    assert _end([processes[lost]], 20) == [PROCESS_FAILED]


def test_a_rank_that_is_stopped_for_a_moment_or_works_long_is_not_lost(ranks, tmp_path):
    def work(rank: int, own: Heartbeat) -> None:
        if rank == 1:
            sorted(range(500_000), key=lambda number: -number)
        time.sleep(5)
        own.leave(failed=False)

    processes = ranks(work, timeout=4.0)
    os.kill(processes[2].pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(processes[2].pid, signal.SIGCONT)
    assert _end(processes, 30) == [0, 0, 0] and _said(tmp_path) == []


def test_a_run_that_is_suspended_whole_goes_on(ranks, tmp_path):
    """As by Ctrl-Z or a scheduler: who was suspended himself cannot tell whether others did."""

    def work(rank: int, own: Heartbeat) -> None:
        time.sleep(6)
        own.leave(failed=False)

    processes = ranks(work, timeout=2.0)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in processes:
            os.kill(process.pid, number)
        time.sleep(3)
    assert _end(processes, 20) == [0, 0, 0] and _said(tmp_path) == []


def test_ranks_that_end_by_themselves_one_after_another_are_not_lost(ranks, tmp_path):
    def work(rank: int, own: Heartbeat) -> None:
        time.sleep(rank)
        own.leave(failed=False)
        time.sleep(0.5)

    assert _end(ranks(work, timeout=2.0), 20) == [0, 0, 0] and _said(tmp_path) == []


@pytest.mark.parametrize("failed", [0, 1])
def test_a_rank_that_tells_its_own_mistake_ends_the_others_silently(ranks, tmp_path, failed):
    def work(rank: int, own: Heartbeat) -> None:
        if rank == failed:
            own.leave(failed=True)
            time.sleep(0.5)
            os._exit(2)
        time.sleep(60)

    assert _end(ranks(work), 20) == [2, 2, 2] and _said(tmp_path) == []


def test_a_stranger_at_the_door_is_shown_out(ranks, tmp_path):
    """Whoever connects and does not know the run's secret changes nothing, says what he may, and as often as he may."""

    def work(rank: int, own: Heartbeat) -> None:
        if rank == 0:
            place = own._server.getsockname()
            assert place[0] == "127.0.0.1", "all ranks are here, so nobody else has to reach it"
            with contextlib.ExitStack() as silent:
                for _ in range(40):  # These hold the door.
                    silent.enter_context(socket.create_connection(place))
                for words in (
                    b"", b"GET / HTTP/1.0\r\n\r\n", b"x\n", b"1 99 elsewhere\n", b"wrong 1 99 elsewhere\n",
                    b"\xff" * 5000,
                    f"{own._secret} 1 99 elsewhere\n".encode(),  # It is there already.
                    f"{own._secret} 7 99 elsewhere\n".encode(), f"{own._secret} 0 99 elsewhere\n".encode(),
                ):  # fmt: skip
                    with socket.create_connection(place, timeout=5) as stranger:
                        answer = b""
                        with contextlib.suppress(ConnectionError):
                            stranger.sendall(words)
                            answer = stranger.recv(1) if words else b""
                        assert answer == (b"t" if b" 1 99" in words and own._secret.encode() in words else b""), words
        time.sleep(1)
        own.leave(failed=False)

    assert _end(ranks(work, timeout=4.0), 20) == [0, 0, 0] and _said(tmp_path) == []


def test_a_second_process_of_a_rank_is_told_that_its_place_is_taken():
    told = []
    first = Heartbeat(0, 2, LOOPBACK, publish=told.append, look_up=lambda: "", timeout=0, speaks=False)
    other = Heartbeat(1, 2, LOOPBACK, publish=told.append, look_up=lambda: told[0], timeout=0, speaks=False)
    with pytest.raises(UserError, match="rank 1's place is taken: another process has come as this rank"):
        Heartbeat(1, 2, LOOPBACK, publish=told.append, look_up=lambda: told[0], timeout=0, speaks=False)
    other.leave(failed=False)
    first.leave(failed=False)


def test_who_comes_late_is_heard_past_many_strangers(tmp_path):
    """Strangers that say nothing are turned away, oldest first, when there are too many."""
    told = []
    first = Heartbeat(0, 2, LOOPBACK, publish=told.append, look_up=lambda: "", timeout=0, speaks=False)
    port, secret = told[0].split()
    with contextlib.ExitStack() as held:
        for _ in range(100):
            held.enter_context(socket.create_connection((LOOPBACK, int(port))))
        rank = held.enter_context(socket.create_connection((LOOPBACK, int(port)), timeout=10))
        rank.sendall(f"{secret} 1 ".encode())
        time.sleep(0.3)
        rank.sendall(b"99 here\n")
        assert rank.recv(1) == b"."
        rank.sendall(b"l")
        first.leave(failed=False)


def test_a_loader_process_does_not_hold_the_connection_of_a_rank_that_was_killed(ranks, tmp_path):
    def work(rank: int, own: Heartbeat) -> None:
        if rank == 1 and not os.fork():
            (tmp_path / "forked").touch()
            time.sleep(30)
            os._exit(0)
        time.sleep(60)

    processes = ranks(work)
    while not (tmp_path / "forked").exists():
        time.sleep(0.01)
    processes[1].kill()
    assert _end(processes, 10) == [PROCESS_FAILED, -signal.SIGKILL, PROCESS_FAILED]


@pytest.mark.parametrize("lost", [0, 1])
def test_training_ends_when_one_of_two_ranks_is_killed_in_a_step(request_for, port, clean_environment, lost):
    """By no launcher: it would end the other one. Rank 0 waits in a collective, or for its loader."""
    request = request_for("run", task={"delay": 0.05, "size": 400}, max_steps=1000, checkpoint={"every_steps": 5})
    common = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps([request])],
            env={**clean_environment, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + 300
        while not (Path(request["output"]) / "checkpoints" / "step-00000005").exists():
            assert time.monotonic() < deadline and both[0].poll() is None, both[0].communicate()[0]
            time.sleep(0.05)
        both[lost].kill()
        text = both[1 - lost].communicate(timeout=60)[0]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert both[1 - lost].returncode == PROCESS_FAILED, text
    assert [line for line in text.splitlines() if line.startswith("error")] == [text.splitlines()[-1]], text
    assert text.splitlines()[-1].startswith(f"error: rank {lost} ("), text
    assert "Traceback" not in text, text
