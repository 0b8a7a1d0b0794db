"""A rank that is killed, suspended or raises ends the others, with one line that names it; one that works does not."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from soho_fast.engine import watchdog
from soho_fast.engine.watchdog import PROCESS_FAILED, Peers

SCRIPT = Path(__file__).with_name("engine_run.py")
BIN = Path(sys.executable).parent

CLOSED = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer")
TIMED_OUT = RuntimeError("[../gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv")
RUNS, OWN_ERROR, WAITED = range(3)


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen]:
    """Another process of this machine."""
    monkeypatch.setattr(watchdog, "_PATIENCE", 0.2)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def peers(rank: int, board: list[int], *process_numbers: int) -> Peers:
    """Ranks of this machine with these process numbers, and two more of another."""
    here = [("here", number, "one") for number in process_numbers]
    return Peers(rank, [*here, ("there", 7, "two"), ("there", 8, "two")], board, 5)


@pytest.mark.parametrize(
    ("signal_number", "error", "told"),
    [
        (signal.SIGKILL, CLOSED, "rank 1 (process {} on one) has ended (killed, or out of memory)"),
        (signal.SIGKILL, TIMED_OUT, "rank 1 (process {} on one) has ended (killed, or out of memory)"),
        (signal.SIGSTOP, TIMED_OUT, "rank 1 (process {} on one) is suspended, and has not come within 5 s"),
        (signal.SIGSTOP, CLOSED, "rank 1 (process {} on one) is suspended, and has not come within 5 s"),
        (signal.SIGCONT, TIMED_OUT, "rank 1 (process {} on one) runs, but has not come within 5 s"),
        # It computes; the connection that broke was to another machine.
        (signal.SIGCONT, CLOSED, "rank 2 (process 7 on two) or rank 3 (process 8 on two) has failed, or can no more"),
    ],
)
def test_who_failed_is_told_by_what_the_system_says_of_it(sleeper, signal_number, error, told):
    sleeper.send_signal(signal_number)
    if signal_number == signal.SIGSTOP:
        while psutil.Process(sleeper.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
    code, line = peers(0, [RUNS] * 4, os.getpid(), sleeper.pid).tell(error)
    assert code == PROCESS_FAILED and line.startswith(told.format(sleeper.pid)), line


def test_one_rank_of_a_machine_speaks(sleeper):
    """The first that has not failed itself, though it may have ended since."""
    sleeper.kill()
    numbers = os.getpid(), sleeper.pid, os.getpid()
    assert peers(2, [RUNS] * 5, *numbers).tell(CLOSED) == (PROCESS_FAILED, None)
    code, line = peers(1, [RUNS] * 5, sleeper.pid, os.getpid(), os.getpid()).tell(CLOSED)
    assert code == PROCESS_FAILED and line.startswith("rank 0 (process ")
    # Rank 0 has waited too, spoken, and ended.
    board = [WAITED, RUNS, RUNS, RUNS]
    told = peers(1, board, sleeper.pid, os.getpid()).tell(CLOSED)
    assert board[1] == WAITED and told == (PROCESS_FAILED, None)


def test_a_rank_that_goes_on_when_the_others_have_ended_ends_too(sleeper):
    sleeper.kill()
    alone = Peers(1, [("here", sleeper.pid, "one"), ("here", os.getpid(), "one")], [WAITED, RUNS], 5)
    assert alone.tell(CLOSED) == (PROCESS_FAILED, None)


def test_a_rank_that_reports_its_own_error_leaves_the_others_silent(sleeper):
    board = [RUNS] * 4
    assert peers(1, board, os.getpid(), os.getpid()).tell(RuntimeError("shapes do not fit")) is None
    assert board[1] == OWN_ERROR
    assert peers(0, board, os.getpid(), sleeper.pid).tell(CLOSED) == (2, None)


# How two processes are started, each by a launcher of its own where they stand for two machines.
def deepspeed(port: int, request: str) -> list[list[object]]:
    return [[BIN / "deepspeed", "--num_accelerators", 2, "--master_port", port, SCRIPT, request]]


def torchrun(port: int, request: str) -> list[list[object]]:
    return [[BIN / "torchrun", "--nproc_per_node", 2, "--master_port", port, SCRIPT, request]]


def deepspeed_twice(port: int, request: str) -> list[list[object]]:
    world = base64.urlsafe_b64encode(json.dumps({"one": [0], "two": [0]}).encode()).decode()
    launch = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}", "--master_addr=127.0.0.1"]
    return [[*launch, f"--master_port={port}", f"--node_rank={number}", SCRIPT, request] for number in range(2)]


def torchrun_twice(port: int, request: str) -> list[list[object]]:
    meet = ["--nnodes", 2, "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "run"]
    return [[BIN / "torchrun", *meet, "--nproc_per_node", 1, SCRIPT, request] for _ in range(2)]


def _of_run(output: str) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if output in str(each.info["cmdline"])]


@pytest.mark.parametrize(
    ("start", "what", "rank", "codes"),
    [
        (deepspeed, "SIGKILL", 0, {75, 247}),
        (deepspeed, "SIGSTOP", 1, {75}),
        (torchrun, "SIGKILL", 1, {1}),
        (torchrun, "error", 0, {1}),
        (deepspeed_twice, "SIGSTOP", 0, {75, 247}),
        (deepspeed_twice, "error", 1, {1, 75}),
        (torchrun_twice, "SIGKILL", 0, {1}),
        (torchrun_twice, "SIGSTOP", 1, {1}),
    ],
)
def test_the_launcher_ends_a_run_of_which_a_rank_fails(
    request_for, port, clean_environment, tmp_path, start, what, rank, codes
):
    """In the eighth step; the launcher kills a rank that is suspended after half a minute."""
    fault = {"size": 400, "poison": [what, 8, rank]}
    run = request_for(
        "run", task=fault, max_steps=1000, checkpoint={"every_steps": 3}, engine={"timeout_seconds": 5.0},
        batch={"workers": 1},
    )  # fmt: skip
    launchers = []
    for number, command in enumerate(start(port, json.dumps([run]))):
        with (tmp_path / f"said-{number}").open("w") as said:
            launchers.append(
                subprocess.Popen(
                    list(map(str, command)), env=clean_environment, stdout=said, stderr=said, start_new_session=True
                )
            )
    try:
        if what == "SIGSTOP" and len(launchers) > 1:
            # On its machine nobody is left who could notice; it ends when it goes on.
            launchers[1 - rank].wait(300)
            for process in _of_run(run["output"]):
                process.resume()
        found = {launcher.wait(300) for launcher in launchers}
        text = "".join((tmp_path / f"said-{number}").read_text() for number in range(len(launchers)))
        assert found <= codes, text
        assert _of_run(run["output"]) == []
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    assert sorted(os.listdir(f"{run['output']}/checkpoints")) == ["step-00000003", "step-00000006"]
    told = [line for line in text.splitlines() if line.startswith("error")]
    why = {
        "SIGKILL": "has ended (killed, or out of memory)",
        "SIGSTOP": "is suspended, and has not come within 5 s (engine.timeout_seconds)",
    }
    if what == "error":
        assert told == [] and text.count(f"[rank{rank}]: KeyError: 'of this rank alone'") == 1, text
        assert f"[rank{1 - rank}]: Traceback" not in text, text
    else:
        (line,) = told
        assert line.startswith(f"error: rank {rank} (process ") and line.endswith(
            f"{why[what]}: this run ends; the same command continues from the newest checkpoint"
        ), line
        assert "[rank" not in text, "a stack trace of a rank"
