"""One run, one folder: who holds it, who is refused, and what a killed process leaves."""

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from soho_fast import evaluate, train
from soho_fast.common import lock
from soho_fast.common.errors import UserError
from soho_fast.common.lock import LOCK, only_user
from soho_fast.common.processes import Processes
from soho_fast.engine import distributed
from soho_fast.tasks.recipe import Recipe

HOLD = """
import signal, sys
from pathlib import Path
import torch
from soho_fast.common.lock import only_user
from soho_fast.common.processes import Processes
with only_user(Path(sys.argv[1]), Processes(0, 1, 0, torch.device("cpu")), print):
    print("held", flush=True)
    signal.pause()
"""
ALONE = Processes(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "run"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_until_the_first_is_dead(holder, tmp_path):
    run, lines = tmp_path / "run", []
    (run / "recipe.yaml").write_text("epochs: 1\n")
    for _ in range(2):
        with pytest.raises(UserError) as refused, only_user(run, ALONE, lines.append):
            pass
        words = f"{run} is in use by process {holder.pid} on {socket.gethostname()} since 20"
        assert words in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(os.listdir(run)) == [LOCK, "recipe.yaml"] and lines == []
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with only_user(run, ALONE, lines.append):
        assert f"process {os.getpid()} on " in (run / LOCK).read_text()
    assert len(lines) == 1 and f"taken over from process {holder.pid} on " in lines[0]
    assert os.listdir(run) == ["recipe.yaml"]


def test_a_holder_that_has_not_written_its_name_yet_is_waited_for(tmp_path, monkeypatch):
    """Two runs started at once: the second may look between the first one's lock and its line."""
    slow = HOLD.replace("import signal, sys", "import os, signal, sys\nwrite = os.pwrite").replace(
        "with only",
        "os.pwrite = lambda *a: (print('locked', flush=True), sys.stdin.readline(), write(*a))[2]\nwith only",
    )
    looks = []

    def sleep(seconds: float) -> None:
        """It has looked once: now the name is written."""
        if not looks:
            print(file=first.stdin, flush=True)
        looks.append(time.sleep(seconds))
        assert len(looks) < 6000

    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", slow, str(tmp_path)], text=True, **piped) as first:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"is in use by process {first.pid} on "), only_user(tmp_path, ALONE, print):
            pass
        first.kill()


def test_a_second_evaluation_into_one_folder_is_refused(holder, tmp_path, monkeypatch, capsys):
    task = SimpleNamespace(
        name="vqa",
        default_split="val",
        load_model=lambda folder: torch.nn.Linear(1, 1),
        speed_up=lambda model, device: None,
    )
    monkeypatch.setattr(Recipe, "make_task", lambda self, say: task)
    monkeypatch.setattr(distributed, "start_processes", lambda *_: ALONE)
    (tmp_path / "best").mkdir()
    (tmp_path / "recipe.yaml").write_text("task: vqa\n")
    assert evaluate.main(["--run", str(tmp_path), "--into", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'run'} is in use by process {holder.pid} on ")
    assert os.listdir(tmp_path / "run") == [LOCK]


def test_a_folder_is_free_again_after_an_error_and_is_not_left_behind(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), only_user(tmp_path / "run", ALONE, print):
            raise KeyError
        assert not (tmp_path / "run").exists()
    with only_user(tmp_path / "run", ALONE, print):
        (tmp_path / "run" / "log.jsonl").touch()
    assert os.listdir(tmp_path / "run") == ["log.jsonl"]


def test_a_file_that_its_holder_deletes_at_its_end_is_no_lock(tmp_path, monkeypatch):
    """Another run may end between the opening of its file and the lock."""
    path, lock, asked = tmp_path / LOCK, fcntl.lockf, []

    def late(file, how):
        if not asked:
            path.unlink()
        asked.append(file)
        lock(file, how)

    monkeypatch.setattr("fcntl.lockf", late)
    with only_user(tmp_path, ALONE, print):
        assert len(asked) == 2 and f"process {os.getpid()} on " in path.read_text()
    assert os.listdir(tmp_path) == []


def test_forked_loader_processes_do_not_hold_on(tmp_path):
    """A loader process of a run that was killed lives on for seconds."""

    def wait(pipe) -> None:
        pipe.recv()

    ours, theirs = multiprocessing.Pipe()
    with only_user(tmp_path / "run", ALONE, print):
        loader = multiprocessing.get_context("fork").Process(target=wait, args=(theirs,))
        loader.start()
    probe = [sys.executable, "-c", HOLD.replace("signal.pause()", ""), str(tmp_path / "run")]
    try:
        assert subprocess.run(probe, capture_output=True, text=True).stdout == "held\n"
    finally:
        ours.send(None)
        loader.join()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
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


def test_a_disk_that_becomes_read_only_hides_no_error(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(KeyError), only_user(tmp_path / "run", ALONE, print):
        raise KeyError


def test_two_runs_at_once_lose_no_line_of_the_log(small_recipe, start, losses):
    run = {"output": str(small_recipe.parent / "run")}
    arguments = ["--recipe", str(small_recipe), "--max_steps", "8", "--evaluation.at_end", "false"]
    first, second = (start(train.__file__, arguments) for _ in range(2))
    texts = [process.communicate(timeout=600)[0] for process in (first, second)]
    codes = [first.returncode, second.returncode]
    assert sorted(codes) == [0, 2], "\n".join(texts)
    refused = texts[codes.index(2)].splitlines()[-1]
    held_by = (first, second)[codes.index(0)].pid
    assert refused.startswith(f"error: {run['output']} is in use by process {held_by} on "), refused
    assert len(losses(run)) == 8
    assert LOCK not in os.listdir(run["output"])
