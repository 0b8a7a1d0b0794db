"""The explorer of any codebook, from files: what `build` takes in the place of a model, see `build_from_arrays`.

Images, and whatever else they have, may also be columns of a data set of Hugging Face's `datasets`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from soho_fast.common.command_line import Parser
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import from_extra

with from_extra("explore"):
    import numpy as np
    from PIL import Image

    from soho_fast.common.images import FORMATS
    from soho_fast.explore.licences import read_licences

_ARRAYS = {
    "features": "Features, floating point (images, rows, columns, channels).",
    "index": "Codes that the quantiser chose, integers (images, rows, columns) or (images, rows, columns, levels).",
    "codebook": "Codebook, (codes, channels) or (levels, codes, channels).",
    "decoded": "What a decoder makes of each code, uint8 (codes, height, width, 3).",
}
_TEXTS = {
    "captions": "Text file: the caption of each image, one a line.",
    "labels": "Text file: what each code is called, one a line; an empty line is no name.",
}
_VALUES = ("metric", "num_codes", "window")
OPTIONS = (*_ARRAYS, *_TEXTS, *_VALUES)
"""What `add_arguments` adds."""


def add_arguments(parser: Parser) -> None:
    """The files that stand for a model."""
    group = parser.add_argument_group("any codebook, from files, in the place of a model")
    for name, what in _ARRAYS.items():
        group.add_argument(f"--{name}", metavar="FILE.npy", help=what)
    for name, what in _TEXTS.items():
        group.add_argument(f"--{name}", metavar="FILE.txt", help=what)
    group.add_argument("--metric", choices=["euclidean", "cosine"], help="What is nearest (default: euclidean).")
    group.add_argument("--num-codes", type=int, help="Codes of each level, where no codebook tells.")
    group.add_argument("--window", type=float, help="Side of what tiles show around a patch, in patches.")


def run(options: argparse.Namespace) -> int:
    """Build, and say where to look."""
    from soho_fast.explore.from_arrays import build_from_arrays

    required = "the following arguments are required: RUN_OR_MODEL, or --index or --features of a codebook"
    if options.images is None:
        is_missing = options.features or options.index
        raise UserError("images: expected a folder of images or a data set, got none" if is_missing else required)
    given: dict[str, Any] = {name: _read(name, getattr(options, name), _array, "an array of numpy") for name in _ARRAYS}
    given |= {name: _read(name, getattr(options, name), _lines, "a text file") for name in _TEXTS}
    if given["labels"] is not None:
        given["labels"] = [label or None for label in given["labels"]]
    given |= {name: getattr(options, name) for name in ("title", *_VALUES)}
    path, into = Path(options.images).resolve(), Path(options.into or "explorer")
    if path.suffix == ".parquet" or any((path / f"dataset_{name}.json").is_file() for name in ("info", "dict")):
        given = _columns(path) | {name: value for name, value in given.items() if value is not None}
    else:
        images = _images(path, into.resolve())
        given |= {"images": images, "names": [image.relative_to(path).as_posix() for image in images]}
        _tell_order(given["names"])
    if given.get("features") is None and given.get("index") is None:
        raise UserError(required)
    given["licences"] = options.licence or read_licences(str(path))
    try:
        into = build_from_arrays(folder=into, **{name: value for name, value in given.items() if value is not None})
    except TypeError as error:
        raise UserError(str(error)) from error
    print_line(f"open {into / 'index.html'}")
    return 0


def _array(path: str) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # Features may be more than memory holds.
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise ValueError("expected a .npy file of one array, of one dimension or more")
    return array


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def _read(name: str, path: str | None, read: Callable[[str], Any], what: str) -> Any:
    try:
        return None if path is None else read(path)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{name}: {path} can't be read as {what} ({error})") from error


def _images(folder: Path, into: Path) -> list[Path]:
    """Images in a folder, but for those of the explorer that is built; both are resolved."""
    if not folder.is_dir():
        raise UserError(f"images: there is no folder {folder}")
    endings = [ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS] + [".wav"]
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    found = [path for path in found if not path.is_relative_to(into)]
    if not found:
        raise UserError(f"images: {folder} holds no image; expected files that end in {', '.join(endings)}")
    return found


def _tell_order(names: Sequence[str]) -> None:
    """Which image is the first: features are not always in the order of names as texts, where 10 is before 2."""
    by_number = sorted(names, key=lambda name: re.sub(r"\d+", lambda n: n[0].zfill(20), name.replace("/", "\0")))
    other = next((f"; {one} before {two}" for one, two in zip(names, by_number, strict=True) if one != two), "")
    print_line(f"{len(names):,} files in the order of their names: {names[0]} to {names[-1]}{other}")


def _columns(path: Path) -> dict[str, Any]:
    """The columns of a .parquet file, or of what `save_to_disk` wrote, as arguments of `build_from_arrays`."""
    from soho_fast.data.importing import CAPTION_COLUMNS, IMAGE_COLUMNS, image_content, load_parts

    with from_extra("datasets"):
        import datasets
    parts = load_parts(path)
    columns = {
        split: ", ".join(f"{name}: {part.features[name]}" for name in sorted(part.features))
        for split, part in parts.items()
    }
    if len(set(columns.values())) > 1:
        each = "; ".join(f"{split}: {names}" for split, names in columns.items())
        raise UserError(f"images: {path}: expected splits of the same columns, got {each}")
    part = datasets.concatenate_datasets(list(parts.values()))
    images, captions = (
        next((name for name in usual if name in part.features), "") for usual in (IMAGE_COLUMNS, CAPTION_COLUMNS)
    )
    try:
        files = part.select_columns([images]).cast_column(images, datasets.Image(decode=False))
    except Exception as error:  # Of any kind: ValueError, arrow's own.
        expected = f"expected a column of images, {', '.join(IMAGE_COLUMNS)}"
        raise UserError(f"images: {path}: {expected}; its columns are {next(iter(columns.values()))}") from error
    given = {"images": _Column(files, images, lambda file: image_content(file or {}, path, str(path)) or b"")}
    if captions:
        given["captions"] = _Column(part, captions, lambda text: "" if text is None else text)
    for name in ("features", "index"):
        if not isinstance(part.features.get(name), (datasets.Value, type(None))):  # One value is a row's number.
            given[name] = _Column(part.with_format("numpy"), name, lambda array: array)
    return given


class _Column:
    """A column of a data set, read when it is asked for, and what `made` makes of each row."""

    def __init__(self, part: Any, name: str, made: Callable[[Any], Any]) -> None:
        self._part, self._name, self._made = part.select_columns([name]), name, made

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, int):
            return self[place : place + 1][0]
        return [self._made(each) for each in self._part[place][self._name]]
