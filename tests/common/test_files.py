"""Files of a run are written whole or not at all."""

import errno

import pytest

from soho_fast.common.files import write_atomically


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
