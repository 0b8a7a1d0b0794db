"""Files of a run are written whole or not at all."""

import contextlib
import errno
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from soho_fast.common.files import delete, new_folder, scratch_beside, this_host, write_atomically


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_atomically(path, "before")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*metrics.json'"):
            write_atomically(path, "after")
        with pytest.raises(OSError, match=r"No space left on device: '.*corpus'"), new_folder(tmp_path / "corpus"):
            full(0)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, "after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path):
    path, old, host = tmp_path / "a.index", time.time() - 8 * 86400, this_host()
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {
        "left": f".a.index.{host}.{ended.pid}.partial", "folder": f".a.index.{host}.{ended.pid + 10**6}.partial",
        "at work": f".a.index.{host}.{os.getppid()}.partial", "own": f".a.index.{host}.{os.getpid()}.partial",
        "of another machine": f".a.index.x{host}.{ended.pid}.partial", "of that, old": f".a.index.x{host}.7.partial",
        "of another file": f".a.indexes.{host}.{ended.pid}.partial", "of no process": f".a.index.{host}.old.partial",
        "another, at work": f".b.{host}.{os.getppid()}.partial", "another, own": f".b.{host}.{os.getpid()}.partial",
        "another of that, old": f".b.x{host}.7.partial", "a folder put in place": f".b.c.{host}.{ended.pid}.partial",
    }  # fmt: skip
    for what, name in names.items():
        (tmp_path / name).mkdir() if "folder" in what else (tmp_path / name).touch()
        if "old" in what:
            os.utime(tmp_path / name, (old, old))
    (tmp_path / names["a folder put in place"] / "old").mkdir()
    with scratch_beside(path) as scratch:
        assert scratch.name == names["own"] and not scratch.exists()
        removed = {what for what, name in names.items() if not (tmp_path / name).exists()}
        assert removed == {"left", "folder", "own", "of that, old", "of another file", "a folder put in place"}
        assert (tmp_path / "b.c").is_dir()
        scratch.mkdir()
    assert not scratch.exists()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_new_folder_takes_the_place_of_the_old_one_at_the_end(tmp_path, error):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "before").touch()
    with contextlib.suppress(KeyboardInterrupt), new_folder(folder) as new:
        (new / "after").touch()
        assert os.listdir(folder) == ["before"]
        if error is not None:
            raise error
    assert os.listdir(folder) == ["before" if error else "after"] and os.listdir(tmp_path) == ["folder"]


def test_what_is_half_deleted_is_not_taken_for_whole(tmp_path, monkeypatch):
    (tmp_path / "step-1").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)  # As if it were killed.
    delete(tmp_path / "step-1")
    delete(tmp_path / "nothing")
    assert os.listdir(tmp_path) == ["step-1.partial"]


def test_ctrl_c_while_scratch_is_deleted_leaves_none(tmp_path, monkeypatch):
    unlink, struck = Path.unlink, iter([True])

    def once(path):
        if next(struck, False):
            raise KeyboardInterrupt
        unlink(path)

    monkeypatch.setattr(Path, "unlink", once)
    with pytest.raises(KeyboardInterrupt), scratch_beside(tmp_path / "a") as scratch:
        scratch.touch()
    assert not scratch.exists()
