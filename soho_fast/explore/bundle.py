"""The folder that the explorer is: what lies where in it, written and read.

A bundle is a folder of static files. Its data lie in `data/` as scripts that hand over one value each,
`explorer.receive("meta", {...});`, since a page opened from a disk (file://) may run scripts beside it and may not
fetch files. The value is JSON, so Python reads the same files.

    index.html, app/         the pages, copied from this package
    images/0000/000000.jpg   small copies of the images shown, number // 256 and number
    decoded/0000/000000.png  of each code what a decoder makes of it, where one was given
    data/meta.js             what this is a bundle of
    data/wall.js             a column for each metric, K long: what the first page shows of every code
    data/codes-0000.js       a list of CODES_PER_FILE codes, number // 64
    data/words.js            what each word of the captions has to do with codes
    data/images-0000.js      a list of IMAGES_PER_FILE images
    SHA256SUMS               checksums of all of these

Statistics come from all images; a bounded number of them is shown, the gallery, numbered from 0. An occurrence is one
patch of one image, [image, row, column, distance, rows, columns]: where it lies in the grid of patches that the
visual tokens are, the distance of its feature to the code, and the image's height and width in patches, fractions
included where the last patches reach beyond the image.

data/meta.js:
    schema: SCHEMA, by which the pages know what they read
    title: what the heading says
    model: where the model came from, or what the arrays were called
    weights: SHA-256 of the codebook's first level, hexadecimal; empty where the codebook is not known
    run: of which step of which run the model is, as run.json in its folder says; null where that is not known
    program: versions of this package and of torch by which it was built, and the commit
    num_codes: K, of all levels
    num_levels: Q, of K / Q codes each; a token of level q has the code q K / Q or one of those that follow
    num_channels: C; 0 where the codebook is not known
    num_active: codes with at least one token here
    num_images: images that statistics come from
    num_tokens: tokens of these
    num_shown: images that are shown
    has_captions: bool
    has_distances: bool; without, no patch is nearest: nearest and quantiles are empty
    has_decoded: bool, whether there is decoded/
    window: side of what tiles show around a patch, in patches
    sources: list of {name, num_images}: the data sets
    licences: list of {what, credit, licence}; an image names the entries that hold for it
    position_rows, position_columns: size of the heat map of positions
    histogram_edges: list of distances, one more than there are bins
    interval: {level, num_tests}: how intervals of lifts were made
    measures: {name: number}: the share of active codes that are associated with a word, where there are captions
    figure: list of codes that the figure shows

data/wall.js, columns, each K long:
    tokens, images: how many have the code
    mean_distance, spread: mean and standard deviation of the distances of its features; null where it has none
    word, lift, lift_low, lift_high: the word that it is associated with most, see a code's words; null where none
    precision: share of the code's images with captions that have the word in them; null where none
    label: what the code is called; null where it has no name
    near_code, near_distance: the nearest other code of its level, and how far; null without a codebook
    x, y: place in a plane by PCA of its level, 0 to 1, from which its colour follows; null without a codebook
    medoid: the occurrence that stands for the code; null where it has none

data/codes-0000.js, each code:
    code: number
    tokens, images, rank: how many have it, and its place by tokens in its level, from 1
    nearest, quantiles, random: occurrences, of distinct images; quantiles from the nearest to the farthest
    histogram: tokens by distance, as meta's histogram_edges
    positions: tokens by position, row by row, meta's position_rows x position_columns; a patch that lies in several
        of these counts in each by its share of the area
    words: list of {word, both, images, lift, low, high}: captions of `images` images have the word, `both` of them
        have the code; lift = P(word | code) / P(word) among images with captions, its interval; those first whose
        interval lies highest
    neighbours: list of {code, count, lift}: codes of the patches beside its patches; lift = their share of these over
        their share of all patches
    near: list of {code, distance}: nearest codes of its level
    next: list of {code, tokens}: the next level's codes that most of the code's tokens have, at most 8

data/words.js, each word, in alphabetical order:
    word: spelling
    images: images whose captions have it
    forms: list of other spellings that are counted with it, as its plural
    codes: list of {code, both, images, lift, low, high}, `images` those of the code with captions; where low > 1,
        best first, at most 32

data/images-0000.js, each image:
    image: number
    name: as the data set calls it
    source: number in meta's sources
    licences: list of numbers in meta's licences
    captions: list of texts
    width, height: of the small copy, pixels
    patches_high, patches_wide: height and width in patches, fractions included
    rows, columns: of the grid of visual tokens
    index: the code of each patch, level by level and row by row; null where there is none
    masked: null, or {code, patches: [{patch, guesses: [[code, probability], ...]}]}: what masked visual modelling
        hides together, and what the model predicts there
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from soho_fast.common.checksums import SUMS, altered_files, read_checksums
from soho_fast.common.errors import UserError
from soho_fast.common.spelling import did_you_mean
from soho_fast.common.versions import read_run_of

PAGES = Path(__file__).parent / "pages"
FOLDER = "explorer"
"""Where the explorer goes within a run's folder."""
SCHEMA = 4
KINDS = ("nearest", "quantiles", "random")
"""Of the occurrences of a code."""
CODES_PER_FILE = 64
IMAGES_PER_FILE = 256

_FORM = re.compile(r'explorer\.receive\("([\w-]+)", (.*)\);\n', re.DOTALL)


class BundleError(UserError):
    """A damaged bundle; the message names the file, and what to do."""

    def __init__(self, told: str) -> None:
        super().__init__(f"{told}; build the explorer again")


def write_value(folder: Path, name: str, value: Any) -> None:
    """Write data/<name>.js. Raises ValueError where a number is not finite."""
    # NaN is no JSON, and U+2028 ended a line in older JavaScript: so neither is written.
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    (folder / "data" / f"{name}.js").write_text(f'explorer.receive("{name}", {text});\n', encoding="ascii")


def value_in(content: bytes, name: str) -> Any:
    """The value of data/<name>.js. Raises ValueError, RecursionError: it does anything but hand one over."""
    found = _FORM.fullmatch(content.decode("ascii"))
    if found is None or found[1] != name:
        raise ValueError("it does not hand over one value")
    return json.loads(found[2])


def write_in_files(folder: Path, name: str, values: Iterable[Any], per_file: int) -> None:
    """Write values in files of `per_file` each, data/<name>-0000.js and on; a file's are in memory at a time."""
    values = iter(values)
    # `iter` ends at the first empty list.
    for number, some in enumerate(iter(lambda: list(itertools.islice(values, per_file)), [])):
        write_value(folder, f"{name}-{number:04d}", some)


def image_path(number: int) -> str:
    """Where the small copy of an image lies in a bundle, with forward slashes."""
    return f"images/{number // IMAGES_PER_FILE:04d}/{number:06d}.jpg"


def decoded_path(code: int) -> str:
    """Where what a decoder makes of a code lies in a bundle."""
    return f"decoded/{code // IMAGES_PER_FILE:04d}/{code:06d}.png"


def copy_pages(folder: Path) -> None:
    """Put the pages beside the data."""
    for path in PAGES.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(PAGES)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


class Bundle:
    """A bundle that was written before. Each file that is read is compared with its checksum, where there are some.

    Args:
        folder: Where it lies, or the folder of a run that has one.

    Attributes:
        sums: SHA-256 of its files by name; None where it has no SHA256SUMS.

    Raises:
        FileNotFoundError: there is no explorer.
        BundleError: it is damaged, or of another version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        # A run's folder, with the explorer in it.
        if not (self.folder / "data").is_dir() and (self.folder / FOLDER).is_dir():
            self.folder /= FOLDER
        if not (self.folder / "data" / "meta.js").is_file():
            raise FileNotFoundError(
                f"{folder} is no explorer (it has no data/meta.js); make one: soho explore build RUN"
            )
        try:
            self.sums = read_checksums(self.folder)
        except ValueError as error:
            raise BundleError(str(error)) from error
        self.meta: Mapping[str, Any] = self.read("meta")

    def read(self, name: str) -> Any:
        """The value of data/<name>.js. Raises BundleError: it is missing or damaged."""
        content, path = self.content(f"data/{name}.js"), self.folder / "data" / f"{name}.js"
        try:
            value = value_in(content, name)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path} can't be read ({error})") from error
        if name == "meta" and isinstance(value, dict) and value.get("schema") != SCHEMA:
            raise BundleError(f"{path}: expected schema {SCHEMA}, got {value.get('schema')!r}")
        return value

    def content(self, name: str) -> bytes:
        """A file, by its name in the bundle. Raises BundleError: it is missing, or was altered."""
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.folder / name} can't be read ({error.strerror})") from error
        # There are none yet while a build reads its own bundle.
        if self.sums and hashlib.sha256(content).hexdigest() != self.sums.get(name):
            raise BundleError(f"{self.folder}: {name} has changed since it was built")
        return content

    def check(self) -> None:
        """Compare all files with their checksums. Raises BundleError: one was altered, or there are no checksums."""
        altered = altered_files(self.folder) if self.sums else f"{SUMS} is missing"
        if altered:
            raise BundleError(f"{self.folder}: {altered} since it was built")

    def of_another_model(self) -> list[str]:
        """A line where the model that it was built of, which lies beside it, is another one by now."""
        run, beside = self.meta.get("run"), self.folder.parent
        # In a run's folder its model lies beside; else the explorer lies in the model's own folder.
        for folder in (beside / Path(self.meta["model"]).name, beside):
            now = read_run_of(folder)
            if run and now and run != now:
                other = "" if run["step"] != now["step"] else "another one "
                was = f"{self.folder} was built of the model of step {run['step']:,}"
                return [f"{was}; {folder} is {other}of step {now['step']:,} by now"]
        return []

    def window_of(self, occurrence: Sequence[float]) -> tuple[float, float, float]:
        """What is shown around a patch, in patches: (top, left, side), a square, moved into the image at its edge."""
        _, row, column, _, *sizes = occurrence
        side = min(self.meta["window"], *sizes)
        top, left = (
            max(0.0, min(place + 0.5 - side / 2, size - side)) for place, size in zip((row, column), sizes, strict=True)
        )
        return top, left, side

    def name(self, code: int) -> str:
        """As the pages call a code: 2.17 is code 17 of the second level."""
        levels = self.meta["num_levels"]
        level, number = divmod(code, self.meta["num_codes"] // levels)
        return f"{level + 1}.{number}" if levels > 1 else str(code)

    def code(self, number: int) -> Mapping[str, Any]:
        """All of a code, as the top of this file describes it. Raises IndexError: there is no such code."""
        return self._item("code", number, self.meta["num_codes"], CODES_PER_FILE)

    def image(self, number: int) -> Mapping[str, Any]:
        """All of an image. Raises IndexError: there is no such image."""
        return self._item("image", number, self.meta["num_shown"], IMAGES_PER_FILE)

    def word(self, spelling: str) -> Mapping[str, Any]:
        """All of a word, in lower case. Raises KeyError: no caption has it, too few have, or it is a stop word."""
        found = {entry["word"]: entry for entry in self.read("words")}
        if spelling not in found:
            raise KeyError(f"{spelling!r} is not among the {len(found)} words counted{did_you_mean(spelling, found)}")
        return found[spelling]

    def _item(self, what: str, number: int, count: int, per_file: int) -> Mapping[str, Any]:
        if not 0 <= number < count:
            raise IndexError(f"{what}: expected 0 to {count - 1}, got {number}")
        file, place = divmod(number, per_file)
        name = f"{what}s-{file:04d}"
        values = self.read(name)
        if len(values) != min(per_file, count - file * per_file):
            raise BundleError(f"{self.folder / 'data' / name}.js ends too early")
        return values[place]
