"""Files that a run leaves: written whole or not at all, and read as far as they are whole."""

import contextlib
import glob
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""What the name of a file or folder that is being written ends with."""

_LEFT_AFTER = 3600.0  # seconds

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PK\x03\x04": "zip",
}

# What a record of each kind holds beside `kind` and `step`.
_CONTENTS = {
    "train": ("lr", dict), "evaluation": ("metrics", dict), "event": ("event", str), "snapshot": ("values", dict),
}  # fmt: skip


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by a text (UTF-8) or bytes so that a reader sees the old file or the new one, never a part."""
    scratch = path.with_name(path.name + PARTIAL)
    with scratch.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
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
    except (PermissionError, OverflowError):
        pass
    return True


def own_scratch(path: Path) -> Path:
    """A name beside `path` that is this process's own, `NAME.PID.partial`, to write there and to rename.

    What killed processes left of that name is deleted: those that no process of this machine has and that nobody, as on
    another machine that shares the disk, has touched for an hour.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL}"):
        process_id = left.name.removeprefix(f"{path.name}.").removesuffix(PARTIAL)
        if not (process_id.isascii() and process_id.isdigit()):
            continue
        own = int(process_id) == os.getpid()  # In a container a process has its predecessor's number.
        if own or not process_is_alive(int(process_id)):
            with contextlib.suppress(OSError):
                if own or time.time() - left.stat().st_mtime > _LEFT_AFTER:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Records of a log.jsonl, and how many lines hold none; a last line that a crash cut short is not counted."""
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    records = [record for record in map(_record, lines) if record is not None]
    num_damaged = len(lines) - len(records)
    return records + [record for record in [_record(last)] if record is not None], num_damaged


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("kind"), str):
        return None
    name, kind = _CONTENTS.get(record["kind"], ("kind", str))
    return record if isinstance(record.get(name), kind) else None
