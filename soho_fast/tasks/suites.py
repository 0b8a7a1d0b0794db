"""Evaluates a model on a suite that needs no training: which text belongs to this image? By the ITM head.

    soho suite sugarcrepe runs/mini data/*.json --images val2017.zip
    soho suite winoground runs/mini examples.jsonl --images images.zip

The model is a pre-trained one, or one fine-tuned for image-text retrieval. The published files:

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

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

# Before torch loads OpenMP, as training does; see soho_fast/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.checksums import folder_digest, sha256_of
    from soho_fast.common.command_line import Parser, exit_code, quiet_transformers
    from soho_fast.common.errors import UserError, print_line
    from soho_fast.common.files import write_atomically
    from soho_fast.common.hub import check_name, model_folder, no_such_path
    from soho_fast.common.images import MAX_PIXELS
    from soho_fast.common.versions import cautions, program
    from soho_fast.data.overlap import content_of
    from soho_fast.data.readers.records import (
        AnyPath,
        Format,
        ImageRef,
        Paths,
        Reading,
        ReadReport,
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
        if min(left, top) < 0 or min(width, height) < 1 or width * height > MAX_PIXELS:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="soho suite",
        description="Evaluate a model on a suite that needs no training: which text belongs to this image?",
        epilog="example: soho suite sugarcrepe runs/mini sugar-crepe/data/*.json --images val2017.zip",
    )
    parser.add_argument("suite", choices=list(SUITES), help="The suite whose published files these are.")
    parser.add_argument("model", help="Folder of a run or of a model, pre-trained or for retrieval, or a hub name.")
    parser.add_argument("files", nargs="+", help="The suite's annotation files.")
    parser.add_argument("--images", nargs="+", required=True, help="Folders, .zip or .tar files with the images.")
    parser.add_argument(
        "--missing_images",
        choices=["error", "skip"],
        default="error",
        help="skip leaves out examples whose image is missing (default: error).",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="Number of images encoded together (default: 32).")
    parser.add_argument("--workers", type=int, default=2, help="Number of processes that decode images (default: 2).")
    words = "File to write: one JSON line per example, with its scores; RESULTS.about.json says what they are of."
    parser.add_argument("--results", type=Path, help=words)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.take_modules()
    return parser


def _run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    say = (lambda line: print_line(line, sys.stderr)) if options.json else print_line
    for name, least in (("batch_size", 1), ("workers", 0)):
        if getattr(options, name) < least:
            raise UserError(f"{name}: expected at least {least}, got {getattr(options, name)}")
    if options.results and not options.results.absolute().parent.is_dir():
        raise UserError(f"results: {options.results} can't be written ({no_such_path(options.results.parent)})")
    check_name(options.model, needs_owner=True)
    records = []
    for path in options.files:
        report, missing = ReadReport(), options.missing_images
        records += read_suite(options.suite, path, options.images, missing_images=missing, report=report)
        for line in report.lines():
            say(line)
    folder = os.fspath(model_folder(options.model))
    for line in cautions(folder, options.accept_changes):
        say(line)
    quiet_transformers()
    with from_extra("train"):
        import torch

        from soho_fast.common.tables import Table, print_table
        from soho_fast.tasks.evaluation.loading import load_for_evaluation
        from soho_fast.tasks.evaluation.suites import RULES, score_suite, suite_metrics
        from soho_fast.tasks.retrieval import RetrievalTask
        from soho_fast.tasks.settings import RetrievalData

    task = RetrievalTask(RetrievalData(), say=lambda line: None)
    task.image_batch = options.batch_size
    task.workers = options.workers
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_for_evaluation(task, folder, device)
    about = {
        "suite": options.suite,
        "files": {path: sha256_of(Path(path)) for path in options.files},
        "images": content_of(image for record in records for image in record.images),
        "model": folder_digest(Path(folder)),
        "program": program(),
    }
    scores_NIT = score_suite(task, model, records, say)
    metrics = suite_metrics(options.suite, scores_NIT, [record.group for record in records])
    if options.results:
        lines = zip(records, scores_NIT.tolist(), strict=True)
        write_atomically(options.results, "".join(f"{json.dumps(each.line(scores))}\n" for each, scores in lines))
        beside = options.results.with_name(f"{options.results.name}.about.json")
        write_atomically(beside, json.dumps(about | {"results": sha256_of(options.results)}, indent=1) + "\n")
    chance = RULES[options.suite].chance
    if options.json:
        print_line(json.dumps({"examples": len(records), **metrics._asdict(), "chance": chance, "about": about}))
        return 0
    parts = {**metrics.groups, f"mean of {len(metrics.groups)}": metrics.mean, "all": metrics.all, "chance": chance}
    rows = [[name, *(f"{100 * each[key]:.1f} %" for key in chance)] for name, each in parts.items() if each]
    title = f"{options.suite}: {len(records):,} examples"
    print_table(Table(title, ["", *(name.replace("_", " ") for name in chance)], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
