"""Files that a run leaves: written whole or not at all, and read as far as they are whole."""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soho_fast.common.errors import DISK_ERRORS

PARTIAL = ".partial"
"""What the name of a file or folder that is being written ends with."""

_LEFT_AFTER = 7 * 86400.0  # seconds

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PK\x03\x04": "zip",
}

# What a record of each kind holds beside `kind` and `step`.
_CONTENTS = {"train": ("lr", dict), "evaluation": ("metrics", dict), "event": ("event", str)}


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by a text (UTF-8) or bytes so that a reader sees the old file or the new one, never a part."""
    with scratch_beside(path) as scratch:
        with scratch.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            # Before the rename: after a power cut the name could otherwise stand for a file without its bytes.
            os.fsync(file.fileno())
        os.replace(scratch, path)


def packed_by(beginning: bytes) -> str | None:
    """What packed a file that begins so, as "gzip"; None where it is not packed."""
    return next((kind for start, kind in _PACKED.items() if beginning.startswith(start)), None)


def process_is_alive(process_id: int) -> bool:
    """Whether a process of this machine runs: what it has begun to write is not another's to delete."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    # Another user's process; or a number that none can have, and so no file of ours.
    except (PermissionError, OverflowError):
        pass
    return True


@contextlib.contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A name beside `path` that is this process's own, for a file or folder that is renamed when it is whole.

    What is left there in the end is deleted, and at once what killed processes left, see `delete_left`.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    delete_left(path)
    # Host and process number say whose it is; `delete_left` reads them from the name.
    scratch = path.with_name(f".{path.name}.{this_host()}.{os.getpid()}{PARTIAL}")
    try:
        yield scratch
    except OSError as error:
        if error.errno in DISK_ERRORS and error.filename is None:  # as where the disk is full by now
            error.filename = str(path)
        raise
    finally:
        try:
            delete(scratch)
        # Half deleted, it would be left; a second Ctrl-C ends the process anyway (`Stopping`).
        except KeyboardInterrupt:
            delete(scratch)
            raise


def delete_left(path: Path) -> None:
    """Delete what killed processes of this machine left in the folder of `path`, and what those of others that share
    the disk left of `path` more than a week ago. A folder that one of them was replacing is put back."""
    host, own = this_host(), os.getpid()
    for left in path.parent.glob(f".*{PARTIAL}"):
        of, _, number = left.name[1:].removesuffix(PARTIAL).rpartition(".")
        # NAME.HOST of a file of this machine; of another one the host does not fit, and stays.
        name = of.removesuffix(f".{host}")
        with contextlib.suppress(OSError, ValueError):  # Not of ours; or another process was faster.
            # In a container a process has its predecessor's number.
            is_left = not process_is_alive(int(number)) or (name == path.name and int(number) == own)
            if name == of:  # Of another machine, whose name may hold dots.
                name = path.name
                is_left = of.startswith(f"{name}.") and time.time() - left.stat().st_mtime > _LEFT_AFTER
            if is_left:
                at = path.with_name(name)
                if (left / "old").exists() and not at.exists():  # killed while `new_folder` put the new one in place
                    (left / "old").rename(at)
                delete(left)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, to be filled, which takes its place at the end; nothing is left on errors."""
    with scratch_beside(path) as scratch:
        new = scratch / "new"
        new.mkdir(parents=True)
        yield new
        # The old folder goes with the scratch one.
        put_in_place(new, path, scratch / "old")


def put_in_place(new: Path, path: Path, old: Path) -> None:
    """Rename a folder to `path`, and one that is there to `old`; back again where that fails or is interrupted."""
    try:
        if path.exists():
            # A rename cannot replace a folder that holds something. Killed before the next one, `delete_left` puts
            # `old` back.
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise


def this_host() -> str:
    """Whose process numbers they are: a container of this machine has its own."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # no Linux
        namespace = 0
    return f"{socket.gethostname()}-{namespace}"


def delete(path: Path) -> None:
    """Delete a file or folder as far as it can be, if it is there. A folder is renamed to `NAME.partial` first: half
    deleted it is not taken for a whole one, and is deleted by what deletes those."""
    with contextlib.suppress(OSError):
        if path.is_symlink():
            return  # A user's: what it leads to is.
        if not path.is_dir():
            path.unlink()
            return
        if not path.name.endswith(PARTIAL):
            path = path.rename(path.with_name(path.name + PARTIAL))
    shutil.rmtree(path, ignore_errors=True)


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Records of a log.jsonl, and how many lines hold none; a last line that a crash cut short is not counted."""
    try:
        # What follows the last line break: nothing, unless a crash cut the line short.
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    records = [record for record in map(_record, lines) if record is not None]
    num_damaged = len(lines) - len(records)
    return records + [record for record in [_record(last)] if record is not None], num_damaged


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError; ValueError: it is no JSON, or nested too deeply."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("kind"), str):
        return None
    name, kind = _CONTENTS.get(record["kind"], ("kind", str))
    return record if isinstance(record.get(name), kind) else None
