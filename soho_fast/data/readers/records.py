"""What every image-and-text reader returns, and the checks they share."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from soho_fast.data.stores import ImageStore, check_name, open_stores

MissingImages = Literal["error", "skip"]
_NUM_SHOWN = 5

_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_MOST = 2**63
# Letters and digits: what nearly every text holds, found at once.
_VISIBLE = re.compile(r"[^\W_]")


# The stream of random numbers that draws a share of the records; engine/batches.py lists the others.
_SHARE_STREAM = 7


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image by store and name; nothing is read until `read`."""

    store: ImageStore
    name: str

    def read(self) -> bytes:
        """The file's bytes. Raises OSError."""
        return self.store.read(self.name)

    def __str__(self) -> str:
        return self.store.locate(self.name)


@dataclass(frozen=True, slots=True)
class ImageTextRecord:
    """One image and the texts that describe it.

    `image_id` is unique within its source; `source` names the data set it came from.
    """

    image: ImageRef
    captions: tuple[str, ...]
    image_id: str
    source: str


@dataclass
class ReadReport:
    """What a reader found and what it left out, filled while it reads.

    `texts` says what `num_captions` counts: captions, questions, statements or hypotheses.
    """

    source: str = ""
    texts: str = "captions"
    num_images: int = 0
    num_captions: int = 0
    num_missing: int = 0
    num_failed: int = 0
    num_without_caption: int = 0
    num_empty_captions: int = 0
    num_without_label: int = 0
    num_excluded: int = 0
    splits: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What the set holds, one fact a line; only the first line when nothing was left out."""
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        lines = [
            f"{self.source}: {self.num_images:,} images, {self.num_captions:,} {self.texts}"
            + (f" ({splits})" if splits else "")
        ]
        left_out = (
            (self.num_excluded, "images left out: held out in COCO or Flickr30K"),
            (self.num_missing, "images left out: no file"),
            (self.num_failed, "images left out: their download failed"),
            (self.num_without_caption, f"images left out: no {self.texts.removesuffix('s')}"),
            (self.num_empty_captions, "captions left out: empty"),
            (self.num_without_label, f"{self.texts} left out: gold label '-', no majority among the annotators"),
        )
        return lines + [f"{self.source}: {count:,} {what}" for count, what in left_out if count]


def load_json(path: str | os.PathLike[str], what: str) -> Any:
    """Parse a JSON file. Raises FileNotFoundError or ValueError naming the file, the place and what was expected."""
    return _parse(_read(path, what), str(path), what)


def _read(path: str | os.PathLike[str], what: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; expected {what}") from None
    except IsADirectoryError:
        raise FileNotFoundError(f"{path} is a folder; expected a file: {what}") from None
    for start, kind in _PACKED.items():
        if content.startswith(start):
            raise ValueError(f"{path}: a {kind} file; unpack it first: expected {what}")
    return content.removeprefix(codecs.BOM_UTF8)


def _parse(text: bytes, where: str, what: str) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error}); save the file as UTF-8: expected {what}") from error
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply; expected {what}") from None
    except ValueError as error:  # a number of too many digits is one that is no JSONDecodeError
        raise ValueError(f"{where}: not valid JSON ({error}); expected {what}") from error


def field_of(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`record[name]`, checked. Raises ValueError naming the file and record (`where`), the field and what came."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object with a field '{name}', got {type(record).__name__}")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if name not in record:
        raise ValueError(f"{where}: no field '{name}' (the record has: {', '.join(sorted(record)) or 'nothing'})")
    value = record[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(k.__name__ for k in kinds)
        raise ValueError(f"{where}: field '{name}' is {shown(value)}, expected {expected}")
    if isinstance(value, str):
        check_text(value, f"{where}: field '{name}'")
    elif isinstance(value, int) and not -_MOST <= value < _MOST:
        raise ValueError(f"{where}: field '{name}' is {shown(value)}, expected a number of 64 bits")
    return value


def shown(value: Any) -> str:
    """A value of a file, for messages: in a line, and short."""
    try:
        return f"{value!r:.60}"
    except RecursionError:
        return f"a {type(value).__name__}, nested deeply"


def check_text(text: str, where: str) -> None:
    """Raises ValueError: a text that holds half a character, which neither a tokenizer nor a file takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where} is {text!r:.60}, which holds half a surrogate pair; expected Unicode") from None


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or all blanks, control characters, zero-width ones and lone accents,
    of which a tokenizer leaves nothing."""
    return not _VISIBLE.search(text) and all(unicodedata.category(character)[0] in "CZM" for character in text)


def load_json_lines(path: str | os.PathLike[str], what: str) -> list[tuple[str, Any]]:
    """Parse a file with one JSON object a line; blank lines are passed over.

    Returns:
        (where, object) for each line; `where` names the file and the line, for messages.

    Raises:
        FileNotFoundError, ValueError: as `load_json`; a line that is no JSON object, or no line at all.
    """
    records = []
    for number, line in enumerate(_read(path, what).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        record = _parse(line, where, what)
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a JSON {type(record).__name__}; expected {what}")
        records.append((where, record))
    if not records:
        raise ValueError(f"{path}: holds no record; expected {what}")
    return records


def find_images(
    names_of: Sequence[tuple[str, ...]],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    annotations: str | os.PathLike[str],
    missing_images: MissingImages = "error",
    report: ReadReport,
) -> list[ImageRef | None]:
    """The image of each tuple of names under which it may be found, in order; None where there is no file.

    The same names give the same `ImageRef`. `report` gets the number of distinct images found and missing.

    Raises:
        FileNotFoundError: Images are missing and `missing_images` is "error", or none is found.
        ValueError: A name leads out of the images' folders.
    """
    if missing_images not in ("error", "skip"):
        raise ValueError(f"missing_images: expected 'error' or 'skip', got {missing_images!r}")
    stores = open_stores(images)
    distinct = dict.fromkeys(names_of)
    all_names = {name for names in distinct for name in names}
    for name in all_names:
        try:
            check_name(name, stores)
        except ValueError as error:
            raise ValueError(f"{annotations}: {error}") from None
    found = [(store, store.existing(all_names)) for store in stores]
    image_by_names = {names: _find(names, found) for names in distinct}
    missing = [names[0] for names, image in image_by_names.items() if image is None]
    report.num_missing = len(missing)
    report.num_images = len(image_by_names) - len(missing)
    if missing and (missing_images == "error" or not report.num_images):
        where = ", ".join(map(str, stores))
        first = ", ".join(f"{name:.100}" for name in missing[:_NUM_SHOWN])
        otherwise = ", or set missing_images to 'skip'" if missing_images == "error" else ""
        raise FileNotFoundError(
            f"{annotations}: {len(missing)} of {len(image_by_names)} images are not in {where}; first: "
            f"{first}. Check the images path{otherwise}."
        )
    return [image_by_names[names] for names in names_of]


@dataclass(slots=True)
class Candidate:
    """An image on its way to becoming a record: the names under which its file may be found, in order."""

    names: tuple[str, ...]
    captions: list[str]
    image_id: str
    split: str = ""


def finish_records(
    candidates: Sequence[Candidate],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    source: str,
    annotations: str | os.PathLike[str],
    missing_images: MissingImages = "error",
    max_captions: int | None = None,
    report: ReadReport | None = None,
) -> list[ImageTextRecord]:
    """Find every image's file, drop what can't be used (counted in `report`), refuse an empty result.

    Raises FileNotFoundError when images are missing and `missing_images` is "error", or when none is found.
    """
    report = report if report is not None else ReadReport()
    report.source = source
    described: list[tuple[Candidate, tuple[str, ...]]] = []
    for candidate in candidates:
        captions = [caption.strip() for caption in candidate.captions]
        kept = tuple(caption for caption in captions if not is_blank(caption))
        report.num_empty_captions += len(captions) - len(kept)
        if kept:
            described.append((candidate, kept[:max_captions]))
        else:
            report.num_without_caption += 1
    if not described:
        raise ValueError(f"{annotations}: no image with a caption was found for {source}; expected at least one")
    names_of = [candidate.names for candidate, _ in described]
    found = find_images(names_of, images, annotations=annotations, missing_images=missing_images, report=report)
    records: list[ImageTextRecord] = []
    for (candidate, captions), image in zip(described, found, strict=True):
        if image is None:
            continue
        records.append(ImageTextRecord(image, captions, candidate.image_id, source))
        report.num_captions += len(captions)
        if candidate.split:
            report.splits[candidate.split] = report.splits.get(candidate.split, 0) + 1
    return records


def _find(names: Iterable[str], found: Sequence[tuple[ImageStore, set[str]]]) -> ImageRef | None:
    for name in names:
        for store, present in found:
            if name in present:
                return ImageRef(store, name)
    return None


def fingerprint(*parts: Iterable[str]) -> str:
    """A hash that differs where a string differs, or their order, or to which part one belongs."""
    digest = hashlib.sha256()
    for part in parts:
        for text in part:
            digest.update(text.encode() + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()


def share_of_records(records: Sequence[Any], share: float, seed: int) -> list[Any]:
    """So much of the records (at least one) in their order, drawn by the seed; of two shares the smaller one's records
    are among those of the larger one."""
    drawn = np.random.default_rng([_SHARE_STREAM, seed]).permutation(len(records))
    return [records[number] for number in np.sort(drawn[: max(1, round(share * len(records)))])]
