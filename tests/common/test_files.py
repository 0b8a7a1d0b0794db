"""Files of a run are written whole or not at all."""

import errno
import os
import subprocess
import time

import pytest

from soho_fast.common.files import own_scratch, write_atomically


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_atomically(path, "before")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "after")
    assert path.read_text() == "before"
    write_atomically(path, "after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path):
    path, old = tmp_path / "a[1].index", time.time() - 7200
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {
        "left": f"a[1].index.{ended.pid}.partial", "folder": f"a[1].index.{ended.pid + 10**6}.partial",
        "just now": f"a[1].index.{ended.pid + 2 * 10**6}.partial", "at work": f"a[1].index.{os.getppid()}.partial",
        "own": f"a[1].index.{os.getpid()}.partial", "another's": f"a1.index.{ended.pid}.partial",
        "no process": "a[1].index.old.partial",
    }  # fmt: skip
    for what, name in names.items():
        (tmp_path / name).mkdir() if what == "folder" else (tmp_path / name).touch()
        if what != "just now":
            os.utime(tmp_path / name, (old, old))
    assert own_scratch(path) == tmp_path / f"a[1].index.{os.getpid()}.partial"
    assert {what for what, name in names.items() if not (tmp_path / name).exists()} == {"left", "folder", "own"}
