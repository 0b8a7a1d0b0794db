"""What every image-and-text reader returns, and the checks they share."""

import codecs
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import IO, Any, Literal, NamedTuple, TypedDict, TypeVar, get_args

from soho_fast.common.files import packed_by
from soho_fast.data.stores import ImageStore, check_name, open_stores

AnyPath = str | os.PathLike[str]
Paths = AnyPath | Sequence[AnyPath]
MissingImages = Literal["error", "skip"]
"""What a reader does where files of images are missing: refuse the set, or leave out their records and count them."""

_NUM_SHOWN = 5

MOST_CHARACTERS = 100_000
"""Of a text: a tokenizer reads all of it in each pass, and a model hundreds of tokens."""

_MOST = 2**63
# Letters and digits: what nearly every text holds, found at once.
_VISIBLE = re.compile(r"[^\W_]")


R = TypeVar("R")

_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.2, 5000


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image by store and name; nothing is read until `read`."""

    store: ImageStore
    name: str

    def read(self) -> bytes:
        """The file's bytes. Raises OSError."""
        return self.store.read(self.name)

    def open(self) -> IO[bytes]:
        """The file, to read no more of it than is needed. Raises OSError or what its archive raises."""
        return self.store.open(self.name)

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

    `texts` says what `num_captions` counts: captions, questions, statements or hypotheses. `not_excluded`: data sets
    whose held-out images may be among these.
    """

    source: str = ""
    texts: str = "captions"
    num_images: int = 0
    num_captions: int = 0
    num_missing: int = 0
    first_missing: str = ""
    num_without_caption: int = 0
    num_empty_captions: int = 0
    num_without_label: int = 0
    num_excluded: int = 0
    not_excluded: Sequence[str] = ()
    splits: dict[str, int] = field(default_factory=dict)

    def count_split(self, name: str) -> None:
        """Count an image of a split; one that is of none has no name."""
        if name:
            self.splits[name] = self.splits.get(name, 0) + 1

    def lines(self) -> list[str]:
        """What the set holds, one fact a line; only the first line when nothing was left out."""
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        lines = [
            f"{self.source}: {self.num_images:,} images, {self.num_captions:,} {self.texts}"
            + (f" ({splits})" if splits else "")
        ]
        example = f", as {self.first_missing:.100}" if self.first_missing else ""
        left_out = (
            (self.num_excluded, "images left out: held out in COCO or Flickr30K"),
            (self.num_missing, f"images left out: no file{example}"),
            (self.num_without_caption, f"images left out: no {self.texts.removesuffix('s')}"),
            (self.num_empty_captions, "captions left out: empty"),
            (self.num_without_label, f"{self.texts} left out: gold label '-', no majority among the annotators"),
        )
        lines += [f"{self.source}: {count:,} {what}" for count, what in left_out if count]
        return lines + [
            f"{self.source}: exclude_held_out_of names no file of {name}, so its val and test images may be among "
            f"these; results on {name} would be too good"
            for name in self.not_excluded
        ]


class Reading(TypedDict, total=False):
    """What every reader takes by keyword.

    Args:
        missing_images: "error" (default) refuses a set with missing files; "skip" leaves their records out and counts
            them.
        report: Filled with what was found and left out.
    """

    missing_images: MissingImages
    report: ReadReport | None


class CaptionReading(Reading, total=False):
    """What every reader of captions takes by keyword.

    Args:
        max_captions: Keep only the first so many captions of an image; None keeps all.
    """

    max_captions: int | None


class Words(str):
    """Of a field: a text of which something shows; what it is expected to be, for messages."""


Fields = Mapping[str, Any]
"""What is asked of the fields of a record, by name: a type or a union of types (with None: it may be missing or null),
`Words`, a tuple of the texts that it may be, or the `Fields` of the records of which it is a list."""


class Format(NamedTuple):
    """A published format: what a file of it is, for messages, and its fields or, of a list, those of its records."""

    what: str
    fields: Fields


class Entry:
    """A record of an annotation file, whose fields are checked when they are asked for; printed, its place in the file.

    Args:
        content: The record.
        fields: What is asked of it.
        file: The file, or the file and the line.
        path: Names and numbers that lead from there to the record.
    """

    __slots__ = ("content", "fields", "file", "path")

    def __init__(self, content: Any, fields: Fields, file: str, path: tuple[str | int, ...] = ()) -> None:
        self.content, self.fields, self.file, self.path = content, fields, file, path

    def __str__(self) -> str:
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return f"{self.file}: {steps.removeprefix('.')}" if steps else self.file

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def __getitem__(self, name: str) -> Any:
        """A field's value; of a list of records, these as they lie there. Raises ValueError: as `field_of`."""
        kind = self.fields[name]
        return field_of(self.content, name, list if isinstance(kind, dict) else kind, self)

    def each(self, name: str) -> Iterator["Entry"]:
        """The records in a list."""
        fields, file, path = self.fields[name], self.file, (*self.path, name)
        return (Entry(record, fields, file, (*path, number)) for number, record in enumerate(self[name]))

    def texts(self, name: str) -> list[str]:
        """A list of texts. Raises ValueError: an item is none, or as `check_text`."""
        for number, text in enumerate(self[name]):
            if not isinstance(text, str):
                raise ValueError(f"{self}: {name}[{number}] is {shown(text)}, expected a text")
            check_text(text, f"{self}: {name}[{number}]")
        return self[name]

    def first(self, *names: str) -> Any:
        """The first of these fields that the record has."""
        # Without any, `field_of` below raises, naming all of them.
        there = [name for name in names if isinstance(self.content, dict) and name in self.content]
        return self[there[0]] if there else field_of(self.content, "' or '".join(names), str, self)

    def once(self, seen: Container[Any], *names: str) -> Any:
        """As `first`. Raises ValueError too: the value is among those that came before."""
        value = self.first(*names)
        if value in seen:
            raise ValueError(f"{self}: {names[0]} {value!s:.60} comes twice; expected every {names[0]} once")
        return value


def load(path: AnyPath, format: Format) -> Entry:
    """A JSON file. Raises FileNotFoundError, ValueError: as `load_json`."""
    return Entry(load_json(path, format.what), format.fields, str(path))


def load_each(path: AnyPath, format: Format, by_name: bool = False) -> Iterator[Entry]:
    """The records of a JSON file that is a list, or a dict of them. Raises FileNotFoundError, ValueError: as
    `load_json`."""
    content = load_json(path, format.what)
    if not isinstance(content, dict if by_name else list):
        raise ValueError(f"{path}: expected {format.what}, got a JSON {type(content).__name__}")
    places = content.items() if isinstance(content, dict) else enumerate(content)
    return (Entry(record, format.fields, str(path), (place,)) for place, record in places)


def load_lines(path: AnyPath, format: Format) -> Iterator[Entry]:
    """The records of a file of JSON lines. Raises FileNotFoundError, ValueError: as `load_json_lines`."""
    return (Entry(record, format.fields, where) for where, record in load_json_lines(path, format.what))


def load_json(path: AnyPath, what: str) -> Any:
    """Parse a JSON file. Raises FileNotFoundError or ValueError naming the file, the place and what was expected."""
    return _parse(_read(path, what), str(path), what)


def _read(path: AnyPath, what: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; expected {what}") from None
    except IsADirectoryError:
        raise FileNotFoundError(f"{path} is a folder; expected a file: {what}") from None
    if packing := packed_by(content):
        raise ValueError(f"{path}: a {packing} file; unpack it first: expected {what}")
    return content.removeprefix(codecs.BOM_UTF8)


def _parse(text: bytes | str, where: str, what: str) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error}); save the file as UTF-8: expected {what}") from error
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply; expected {what}") from None
    except ValueError as error:  # a number of too many digits is one that is no JSONDecodeError
        raise ValueError(f"{where}: not valid JSON ({error}); expected {what}") from error


def parse_object(text: bytes | str, where: str, what: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError, with where it is and what was expected: it is not a JSON object."""
    parsed = _parse(text, where, what)
    if not isinstance(parsed, dict):
        raise ValueError(f"{where}: a JSON {type(parsed).__name__}; expected {what}")
    return parsed


def field_of(record: Any, name: str, kind: Any, where: object) -> Any:
    """`record[name]`, checked for its kind, one of `Fields` but no list of records.

    Raises ValueError naming the file and record (`where`), the field, what was expected and what came.
    """
    if kind is str and type(record) is dict and type(value := record.get(name)) is str and _is_plain(value):
        return value  # as nearly all of the millions that there are
    # The slow way, which finds out what to say.
    types = str if isinstance(kind, (Words, tuple)) else kind
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object with a field '{name}', got {type(record).__name__}")
    value = record.get(name)
    if name not in record and not isinstance(None, types):
        raise ValueError(f"{where}: no field '{name}' (the record has: {', '.join(sorted(record)) or 'nothing'})")
    # To Python true is a number.
    if not isinstance(value, types) or isinstance(value, bool):
        expected = " or ".join("null" if each is NoneType else each.__name__ for each in get_args(types) or [types])
        raise ValueError(f"{where}: field '{name}' is {shown(value)}, expected {expected}")
    if isinstance(value, str):
        if not _is_plain(value):
            check_text(value, f"{where}: field '{name}'")
        if isinstance(kind, Words) and is_blank(value):
            raise ValueError(f"{where}: field '{name}' is empty; expected {kind}")
        if isinstance(kind, tuple) and value not in kind:
            expected = ", ".join(map(repr, kind))
            raise ValueError(f"{where}: field '{name}' is {shown(value)}, expected one of {expected}")
    elif isinstance(value, int) and not -_MOST <= value < _MOST:
        raise ValueError(f"{where}: field '{name}' is {shown(value)}, expected a number of 64 bits")
    return value


def shown(value: Any) -> str:
    """A value of a file, for messages: in a line, and short."""
    try:
        return f"{value!r:.60}"
    except RecursionError:
        return f"a {type(value).__name__}, nested deeply"


def _is_plain(text: str) -> bool:
    return text.isascii() and len(text) <= MOST_CHARACTERS


def check_text(text: str, where: str) -> None:
    """Raises ValueError: a text that holds half a character, which neither a tokenizer nor a file takes, or one that is
    longer than `MOST_CHARACTERS`."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{where} has {len(text):,} characters; expected at most {MOST_CHARACTERS:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is {text!r:.60}, which holds half a surrogate pair; expected Unicode") from None


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or all blanks, control characters, zero-width ones and lone accents,
    of which a tokenizer leaves nothing."""
    return not _VISIBLE.search(text) and all(unicodedata.category(character)[0] in "CZM" for character in text)


def load_json_lines(path: AnyPath, what: str) -> list[tuple[str, dict[str, Any]]]:
    """Parse a file with one JSON object a line; blank lines are passed over.

    Returns:
        (where, object) for each line; `where` names the file and the line, for messages.

    Raises:
        FileNotFoundError, ValueError: as `load_json`; a line that is no JSON object, or no line at all.
    """
    records = []
    # Bytes: a text's `splitlines` would also break at U+2028 and its like, which JSON may hold within a line.
    for number, line in enumerate(_read(path, what).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        records.append((where, parse_object(line, where, what)))
    if not records:
        raise ValueError(f"{path}: holds no record; expected {what}")
    return records


def find_images(
    names_of: Sequence[tuple[str, ...]],
    images: Paths,
    *,
    annotations: AnyPath,
    missing_images: MissingImages = "error",
    report: ReadReport,
) -> list[ImageRef | None]:
    """The image of each tuple of names under which it may be found, in order; None where there is no file.

    The same names give the same `ImageRef`. `report` gets the number of distinct images found and missing.

    Raises:
        FileNotFoundError: Images are missing and `missing_images` is "error", or none is found.
        ValueError: A name leads out of the images' folders.
    """
    stores = open_stores(images)
    # Of an image with many questions once; in order, so that the first missing one is that of the file.
    distinct = dict.fromkeys(names_of)
    all_names = {name for names in distinct for name in names}
    for name in all_names:
        try:
            check_name(name, stores)
        except ValueError as error:
            raise ValueError(f"{annotations}: {error}") from None
    found = [(store, store.existing(all_names)) for store in stores]
    image_by_names = {
        # Names before stores: the first name counts in whatever store it lies.
        names: next((ImageRef(store, name) for name in names for store, there in found if name in there), None)
        for names in distinct
    }
    missing = [names[0] for names, image in image_by_names.items() if image is None]
    report.num_missing, report.first_missing = len(missing), missing[0] if missing else ""
    report.num_images = len(image_by_names) - len(missing)
    if missing and (missing_images == "error" or not report.num_images):
        where = ", ".join(dict.fromkeys(map(str, stores)))
        first = ", ".join(f"{name:.100}" for name in missing[:_NUM_SHOWN])
        otherwise = ", or set missing_images to 'skip'" if missing_images == "error" else ""
        raise FileNotFoundError(
            f"{annotations}: {len(missing)} of {len(image_by_names)} images are not in {where}; first: "
            f"{first}. Check the images path{otherwise}."
        )
    return [image_by_names[names] for names in names_of]


def find_records(
    kind: Callable[..., R],
    names_of: Sequence[tuple[str, ...]],
    values_of: Sequence[tuple[Any, ...]],
    images: Paths,
    annotations: AnyPath,
    name: str,
    texts: str,
    *,
    missing_images: MissingImages = "error",
    report: ReadReport | None = None,
) -> list[R]:
    """Records of texts: `kind` called with the images of each and with what else it holds.

    Args:
        kind: Makes a record.
        names_of: The names under which each image may be found: as many images for each record.
        values_of: What each record holds beside its images.
        images, annotations: As of `find_images`.
        name, texts: Of the set, and what its texts are called, for messages.
        missing_images, report: See `Reading`.

    Raises:
        FileNotFoundError, ValueError: As `find_images`; no record has all of its images.
    """
    report = report or ReadReport()
    report.source, report.texts = name, texts
    found = find_images(names_of, images, annotations=annotations, missing_images=missing_images, report=report)
    num_images = len(names_of) // len(values_of)
    records = []
    for number, values in enumerate(values_of):
        # A record's images stand together in `names_of`.
        own = found[number * num_images : (number + 1) * num_images]
        if None not in own:
            records.append(kind(*own, *values))
    if not records:
        raise FileNotFoundError(f"{annotations}: of no example both images are there; check the images path")
    report.num_captions = len(records)
    return records


@dataclass(slots=True)
class Candidate:
    """An image on its way to becoming a record: the names under which its file may be found, in order."""

    names: tuple[str, ...]
    captions: list[str]
    image_id: str
    split: str = ""


def find_captioned(
    candidates: Iterable[Candidate],
    images: Paths,
    annotations: AnyPath,
    name: str,
    *,
    num_excluded: int = 0,
    missing_images: MissingImages = "error",
    report: ReadReport | None = None,
    max_captions: int | None = None,
) -> list[ImageTextRecord]:
    """Records of images that have a caption and a file; what can't be used is left out and counted.

    Args:
        candidates: The images.
        images, annotations: As of `find_images`.
        name: The set's, for messages.
        num_excluded: Images that are in another set, and not among these.
        missing_images, report, max_captions: See `CaptionReading`.

    Raises:
        FileNotFoundError, ValueError: As `find_images`; no image has a caption.
    """
    report = report or ReadReport()
    report.source, report.num_excluded = name, num_excluded
    described: list[tuple[Candidate, tuple[str, ...]]] = []
    for candidate in candidates:
        kept = tuple(caption.strip() for caption in candidate.captions if not is_blank(caption))
        report.num_empty_captions += len(candidate.captions) - len(kept)
        report.num_without_caption += not kept
        if kept:
            described.append((candidate, kept[:max_captions]))
    if not described:
        raise ValueError(f"{annotations}: no image with a caption was found for {report.source}; expected at least one")
    names_of = [candidate.names for candidate, _ in described]
    found = find_images(names_of, images, annotations=annotations, missing_images=missing_images, report=report)
    records: list[ImageTextRecord] = []
    for (candidate, captions), image in zip(described, found, strict=True):
        if image is None:
            continue
        records.append(ImageTextRecord(image, captions, candidate.image_id, report.source))
        report.num_captions += len(captions)
        report.count_split(candidate.split)
    return records


def fingerprint(*parts: Iterable[str]) -> str:
    """A hash that differs where a string differs, or their order, or to which part one belongs."""
    digest = hashlib.sha256()
    for part in parts:
        for text in part:
            # An end mark behind each, or "ab", "c" would be as "a", "bc".
            digest.update(text.encode() + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()


def drawn_split(name: str, num_images: int) -> str:
    """Where nothing names splits: `val` for a fifth of so many images, about 5,000 at most, else `train`. By the hash
    of the image's name, so that it stays where it is when others are added (up to 25,000)."""
    share = min(_HELD_OUT_SHARE, _MOST_HELD_OUT / num_images)
    drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return "val" if drawn < share * 2**64 else "train"
