"""One run, one folder: who holds it, who is refused, and what a killed process leaves."""

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from soho_fast.common.errors import UserError
from soho_fast.common.lock import LOCK, only_user
from soho_fast.common.processes import Processes

ALONE = Processes(0, 1, 0, torch.device("cpu"))
FORK = multiprocessing.get_context("fork")


def hold(folder: Path, told: Connection, forks: bool) -> None:
    os.setsid()
    with only_user(folder, ALONE, print):
        if forks:
            os.fork()
        told.send("held")
        signal.pause()


def started(folder: Path, forks: bool = False) -> multiprocessing.Process:
    """A process that holds a folder, or two of which the first does."""
    mine, others = FORK.Pipe()
    process = FORK.Process(target=hold, args=(folder, others, forks), daemon=True)
    process.start()
    for _ in range(1 + forks):
        assert mine.poll(60) and mine.recv() == "held"
    return process


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "run"`."""
    process = started(tmp_path / "run")
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_until_the_first_is_dead(holder, tmp_path):
    run, lines = tmp_path / "run", []
    (run / "recipe.yaml").write_text("epochs: 1\n")
    for _ in range(2):
        with pytest.raises(UserError) as refused, only_user(run, ALONE, lines.append):
            pass
        words = f"{run} is in use by process {holder.pid} on {socket.gethostname()} since 20"
        assert words in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(os.listdir(run)) == [LOCK, "recipe.yaml"]
    holder.kill()
    holder.join()
    with only_user(run, ALONE, lines.append):
        assert (run / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert os.listdir(run) == ["recipe.yaml"] and lines == []


def test_a_folder_is_free_again_after_an_error_and_is_not_left_behind(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), only_user(tmp_path / "run", ALONE, print):
            raise KeyError
        assert not (tmp_path / "run").exists()
    with only_user(tmp_path / "run", ALONE, print):
        (tmp_path / "run" / "log.jsonl").touch()
    assert os.listdir(tmp_path / "run") == ["log.jsonl"]


def test_forked_loader_processes_do_not_hold_on(tmp_path):
    """A loader process of a run that was killed lives on for seconds."""
    first = started(tmp_path / "forked", forks=True)
    try:
        with pytest.raises(UserError, match=f"is in use by process {first.pid} on "):
            only_user(tmp_path / "forked", ALONE, print).__enter__()
        first.kill()
        first.join()
        with only_user(tmp_path / "forked", ALONE, print):
            pass
    finally:
        os.killpg(first.pid, signal.SIGKILL)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    lines = []
    with only_user(tmp_path / "run", ALONE, lines.append):
        pass
    assert len(lines) == 1 and "has no locks (No locks available)" in lines[0]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.* cannot be written"), only_user(tmp_path / "file" / "a", ALONE, print):
        pass


def test_a_full_disk_is_one_line_and_leaves_nothing_held(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with (
            pytest.raises(UserError, match=r"run cannot be written: No space left"),
            only_user(tmp_path / "run", ALONE, print),
        ):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
    with only_user(tmp_path / "run", ALONE, lambda line: pytest.fail(line)):
        pass
