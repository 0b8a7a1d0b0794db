"""A folder of a model is what was written: SHA256SUMS beside its files, as `sha256sum -c SHA256SUMS` reads it."""

import hashlib
import os
import re
from pathlib import Path

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)\n")


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS of all files in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    (folder / SUMS).write_text("".join(f"{_sha256(folder / name)}  {name}\n" for name in names))


def check_checksums(folder: str | os.PathLike[str], *, weights: bool = True) -> None:
    """Compare a folder with its SHA256SUMS. Where there is none (models of others, hub names), nothing is compared.

    Args:
        folder: A folder, or anything else that a model is loaded from.
        weights: The files of the weights too; they take the longest.

    Raises:
        ValueError: a file is missing or differs, or SHA256SUMS is damaged itself.
    """
    folder = Path(folder)
    try:
        text = (folder / SUMS).read_bytes().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return
    sums = {name: digest for digest, name in _LINE.findall(text)}
    if not sums or "".join(f"{digest}  {name}\n" for name, digest in sums.items()) != text:
        raise ValueError(f"{folder / SUMS} is damaged; copy the folder again, or delete that file to load it unchecked")
    wrong = []
    for name, digest in sums.items():
        if not weights and name.endswith(".safetensors"):
            continue
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif _sha256(folder / name) != digest:
            wrong.append(f"{name} has changed")
    if wrong:
        raise ValueError(
            f"{folder}: {', '.join(wrong)} since the model was written ({SUMS}); copy the folder again, or delete "
            f"{SUMS} if you changed it yourself"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
