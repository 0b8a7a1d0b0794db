"""A folder is what was written: SHA256SUMS beside its files, as `sha256sum -c SHA256SUMS` reads it."""

import hashlib
import os
import re
from pathlib import Path

from soho_fast.common.errors import listed
from soho_fast.common.files import read_json

SUMS = "SHA256SUMS"
# Of models of others there are no sums, and transformers takes for granted that each of these is a JSON object.
_JSON_OBJECTS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS of all files in a folder, and in those within it."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    lines = [f"{sha256_of(files[name])}  {name}\n" for name in sorted(files) if name != SUMS]
    (folder / SUMS).write_text("".join(lines))


def read_checksums(folder: Path) -> dict[str, str] | None:
    """What SHA256SUMS lists: SHA-256 in hexadecimal by name; None where there is no SHA256SUMS.

    Raises:
        ValueError: it is damaged.
    """
    try:
        text = (folder / SUMS).read_bytes().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    sums = {name: digest for digest, name in _LINE.findall(text)}
    # A file that leads out of the folder is no part of it, whatever its checksum.
    inside = not any(name.startswith("/") or ".." in name.split("/") for name in sums)
    # Written again it must be the same text: lines that do not match would otherwise be passed over.
    if not (sums and inside) or "".join(f"{digest}  {name}\n" for name, digest in sums.items()) != text:
        raise ValueError(f"{folder / SUMS} is damaged")
    return sums


def altered_files(folder: Path, *, weights: bool = True) -> str:
    """What is missing or has changed of the files that SHA256SUMS lists, in words; empty where nothing is, or where
    there is no SHA256SUMS. `weights`: those of the weights too, which take the longest.

    Raises:
        ValueError: SHA256SUMS is damaged.
    """
    wrong = []
    for name, digest in (read_checksums(folder) or {}).items():
        if not weights and name.endswith(".safetensors"):
            continue
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif sha256_of(folder / name) != digest:
            wrong.append(f"{name} has changed")
    return listed(wrong)


def check_checksums(folder: str | os.PathLike[str], *, weights: bool = True) -> None:
    """Compare a folder with its SHA256SUMS, and see that its JSON files hold JSON objects.

    Where there is no SHA256SUMS (models of others, hub names), nothing is compared.

    Args:
        folder: A folder, or anything else that a model is loaded from.
        weights: The files of the weights too; they take the longest.

    Raises:
        ValueError: a file is missing or differs, is not what it should be, or SHA256SUMS is damaged itself.
    """
    folder = Path(folder)
    try:
        altered = altered_files(folder, weights=weights)
    except ValueError as error:
        raise ValueError(f"{error}; copy the folder again, or delete that file to load it unchecked") from error
    if altered:
        raise ValueError(
            f"{folder}: {altered} since the model was written ({SUMS}); copy the folder again, or delete {SUMS} if you "
            "changed it yourself"
        )
    for name in _JSON_OBJECTS:
        if (folder / name).is_file():
            _check_json_object(folder / name)


def folder_digest(folder: Path) -> str:
    """A hash of the names and contents of all files in a folder but SHA256SUMS."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    listed = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(listed.encode()).hexdigest()


def _check_json_object(path: Path) -> None:
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: not valid JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, got {content!r:.60}; copy it again")


def digest_of_files(place: Path, pattern: str = "*") -> str:
    """A short digest of a file, or of the files below a folder, wherever it lies; empty if none matches."""
    files = [place] if place.is_file() else sorted(place.rglob(pattern))
    sums = "".join(f"{path.relative_to(place)}\0{sha256_of(path)}" for path in files)
    return hashlib.sha256(sums.encode()).hexdigest()[:12] if files else ""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
