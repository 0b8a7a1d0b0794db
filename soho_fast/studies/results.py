"""Rows: what a run has given, one line of JSON each, in a file that several processes and machines add to."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from soho_fast.common.errors import UserError


class Row(TypedDict):
    """What a run has given.

    Attributes:
        study, condition, seed, stage: Where it stands in the matrix.
        digest: Of its settings.
        recipe: Its name.
        metrics: Metrics of the trained model, by name.
        variant: Of rows of version 0.1, whose stages had several ways to train; empty in those of a single way.
        steps: Steps of training.
        training_seconds: Seconds of training.
        seconds: Seconds of training and evaluation.
        images_per_second: Images per second of training.
        peak_memory_gb: Memory of the largest process, in GB.
        precision: Precision of training.
        launcher: Words before the training command.
        versions: Versions of the packages, and the processor.
        identity: Hash of the settings, from the run's `metrics.json`.
        data: What the data held, from the same file.
        sum: Checksum of the row, by which an altered one is known.
    """

    study: str
    condition: str
    seed: int
    stage: str
    digest: str
    metrics: dict[str, float]
    recipe: NotRequired[str]
    variant: NotRequired[str]
    steps: NotRequired[int]
    training_seconds: NotRequired[float]
    seconds: NotRequired[float]
    images_per_second: NotRequired[float]
    peak_memory_gb: NotRequired[float]
    precision: NotRequired[str]
    launcher: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    identity: NotRequired[str]
    data: NotRequired[dict[str, str]]
    sum: NotRequired[str]


FIELDS = ("study", "condition", "seed", "stage", "digest", "metrics")


def read_rows(paths: Iterable[Path], *, optional: Path | None = None) -> list[Row]:
    """All rows of these files, and of one that may not be there yet.

    A last line without its end is what a full disk or a killed machine left in the latter; it counts as not written.

    Raises:
        UserError: a file can't be read, or holds something else.
    """
    rows: list[Row] = []
    for path in (*paths, *([optional] if optional is not None and optional.exists() else [])):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"results {path}: {getattr(error, 'strerror', None) or error}") from error
        *lines, rest = text.split("\n")
        if path != optional:
            lines.append(rest)
        for number, line in enumerate(lines, 1):
            if line:
                rows.append(_row(line, f"results {path}, line {number}"))
    return rows


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); delete the line, and its run is made again") from error
    missing = [name for name in FIELDS if not isinstance(row, dict) or name not in row]
    if missing:
        raise UserError(f"{where}: expected a study's row, this lacks {', '.join(missing)}")
    if row.get("sum", _sum_of(row)) != _sum_of(row):
        raise UserError(f"{where}: was altered since it was written; delete the line, and its run is made again")
    return row


def _sum_of(row: Mapping[str, Any]) -> str:
    values = {name: value for name, value in row.items() if name != "sum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row, whole or not at all, whoever else adds one meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({**row, "sum": _sum_of(row)}).encode() + b"\n"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        end = os.lseek(file, 0, os.SEEK_END)
        # What was cut off in the middle of a line goes.
        while end and os.pread(file, 1, end - 1) != b"\n":
            end -= 1
        os.ftruncate(file, end)
        try:
            if os.pwrite(file, line, end) != len(line):
                raise OSError(28, "no space for a row", str(path))
            os.fsync(file)
        except OSError:
            os.ftruncate(file, end)
            raise
    finally:
        os.close(file)


def by_digest(rows: Iterable[Row]) -> dict[str, Row]:
    """The newest row of each digest."""
    return {row["digest"]: row for row in rows}
