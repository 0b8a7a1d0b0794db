"""Suites that need no training: which of two texts belongs to an image?

SugarCrepe (Hsieh et al. 2023), `add_att.json` and six others: {id: {"filename", "caption", "negative_caption"}} over
COCO val2017; ids have gaps.

VALSE (Parcalabescu et al. 2022), a file for each phenomenon: {id: {"image_file", "caption", "foil", "mturk":
{"caption", "foil", "other"}}}. Used are those for which at least two of three annotators chose the caption alone. In
some releases `caption` is a list, whose first text counts.

ARO (Yuksekgonul et al. 2023), `visual_genome_relation.json` and `visual_genome_attribution.json`: a list of
{"image_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "true_caption", "false_caption"} with "relation_name", or with
"attributes", two of them. The image is cropped to its box.

Winoground (Thrush et al. 2022), `examples.jsonl`: JSON lines with "image_0", "image_1" (names without a suffix),
"caption_0", "caption_1" and "collapsed_tag".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from soho_fast.data.readers.records import (
    AnyPath,
    Format,
    ImageRef,
    Paths,
    Reading,
    Words,
    field_of,
    find_records,
    load_each,
    load_lines,
    shown,
)

_TEXT = Words("a text")
_NAME = Words("the name of an image")
_SUGARCREPE = Format(
    'a file of SugarCrepe, {id: {"filename", "caption", "negative_caption"}}',
    {"filename": _NAME, "caption": _TEXT, "negative_caption": _TEXT},
)
_VALSE = Format(
    'a file of VALSE, {id: {"image_file", "caption", "foil", "mturk"}}',
    {"image_file": _NAME, "caption": str | list, "foil": _TEXT, "mturk": dict},
)
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
_ARO: dict[str, Any] = {"image_path": _NAME, "true_caption": _TEXT, "false_caption": _TEXT, **dict.fromkeys(_BOX, int)}
_RELATION = Format("ARO's visual_genome_relation.json, a list of cases", {**_ARO, "relation_name": Words("a relation")})
_ATTRIBUTION = Format("ARO's visual_genome_attribution.json, a list of cases", {**_ARO, "attributes": list})
_WINOGROUND = Format(
    'Winoground\'s examples.jsonl, {"image_0", "image_1", "caption_0", "caption_1"} on each line',
    {"image_0": _NAME, "image_1": _NAME, "caption_0": _TEXT, "caption_1": _TEXT, "collapsed_tag": str | None},
)
# Of VALSE's three annotators, so many chose the caption alone.
_VOTES = 2

Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels of the image's own size."""


@dataclass(frozen=True, slots=True)
class SuiteRecord:
    """One image or two, and two texts: the first belongs to the first image, and the second to the second one alone.

    `group` is what accuracies are given for: a file, a relation, attributes, a tag. Images are cropped to the `box`.
    """

    images: tuple[ImageRef, ...]
    texts: tuple[str, str]
    group: str
    box: Box | None = None

    def line(self, log_odds_IT: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Its line in a file of results."""
        images = [image.name for image in self.images]
        return {"group": self.group, "images": images, "box": self.box, "texts": self.texts, "log_odds": log_odds_IT}


_Row = tuple[list[tuple[str, ...]], tuple[str, str], str, Box | None]
"""The names under which each image may be found, then the fields of a `SuiteRecord`."""


def _sugarcrepe(path: AnyPath) -> Iterator[_Row]:
    for entry in load_each(path, _SUGARCREPE, by_name=True):
        name = entry["filename"]
        yield [(name, f"val2017/{name}")], (entry["caption"], entry["negative_caption"]), Path(path).stem, None


def _valse(path: AnyPath) -> Iterator[_Row]:
    for entry in load_each(path, _VALSE, by_name=True):
        if field_of(entry["mturk"], "caption", int, f"{entry}.mturk") < _VOTES:
            continue
        given = entry["caption"]
        caption = field_of(
            {"caption": given[0] if given and isinstance(given, list) else given}, "caption", _TEXT, entry
        )
        yield [(entry["image_file"],)], (caption, entry["foil"]), Path(path).stem, None


def _aro(path: AnyPath, format: Format) -> Iterator[_Row]:
    for entry in load_each(path, format):
        left, top, width, height = box = (entry["bbox_x"], entry["bbox_y"], entry["bbox_w"], entry["bbox_h"])
        if min(left, top) < 0 or min(width, height) < 1:
            raise ValueError(f"{entry}: the box (x, y, w, h) is {box}; expected pixels of the image, at least one")
        if format is _RELATION:
            group = entry["relation_name"]
        else:
            attributes = entry["attributes"]
            if len(attributes) != 2 or not all(isinstance(each, str) for each in attributes):
                raise ValueError(f"{entry}: field 'attributes' is {shown(attributes)}, expected two texts")
            group = "_".join(attributes)
        name = entry["image_path"]
        yield [(name, f"images/{name}")], (entry["true_caption"], entry["false_caption"]), group, box


def _winoground(path: AnyPath) -> Iterator[_Row]:
    for line in load_lines(path, _WINOGROUND):
        names: list[tuple[str, ...]] = [
            (name, f"{name}.png", f"images/{name}.png") for name in (line["image_0"], line["image_1"])
        ]
        yield names, (line["caption_0"], line["caption_1"]), line["collapsed_tag"] or "without a tag", None


SUITES: dict[str, Callable[[AnyPath], Iterator[_Row]]] = {
    "sugarcrepe": _sugarcrepe,
    "valse": _valse,
    "aro_relation": lambda path: _aro(path, _RELATION),
    "aro_attribution": lambda path: _aro(path, _ATTRIBUTION),
    "winoground": _winoground,
}
"""What reads a file of each suite, by the suite's name."""


def read_suite(suite: str, annotations: AnyPath, images: Paths, **reading: Unpack[Reading]) -> list[SuiteRecord]:
    """The examples of one file of a suite that its rules count, in file order.

    Args:
        suite: One of `SUITES`.
        annotations: The published file.
        images: Folder or .zip (or several) in which the images are found, by the names that the file has.
        reading: See `Reading`.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A record does not follow the format, or the file has no example that counts.
    """
    rows = list(SUITES[suite](annotations))
    if not rows:
        raise ValueError(f"{annotations}: no example of {suite} counts; expected at least one")

    def record(*fields: Any) -> SuiteRecord:
        *found, texts, group, box = fields
        return SuiteRecord(tuple(found), texts, group, box)

    names_of = [names for row in rows for names in row[0]]
    name, values_of = f"{suite} {Path(annotations).stem}", [row[1:] for row in rows]
    return find_records(record, names_of, values_of, images, annotations, name, "examples", **reading)
