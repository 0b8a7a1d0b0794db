"""The paper's figures 3 and 4 of an explorer: rows of codes, the patches that have them, and the word of each."""

from __future__ import annotations

import argparse
import io
import math
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soho_fast.common.command_line import Parser
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import from_extra
from soho_fast.explore.bundle import KINDS, Bundle, BundleError, image_path
from soho_fast.explore.sources import ImageError, open_image

with from_extra("explore"):
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

ROWS, COLUMNS, DPI = 12, 8, 150

_ENDINGS = (".png", ".pdf")
_GAP = 0.06  # between tiles, in tiles
_TILE_INCHES = 1.0
_LABEL_INCHES = 1.85
_EDGE_INCHES = 0.12


def add_arguments(parser: Parser) -> None:
    """What `figure` takes."""
    parser.add_argument("explorer", metavar="RUN_OR_EXPLORER", help="Folder of an explorer, or of a run that has one.")
    parser.add_argument("--codes", help="Comma-separated numbers of codes (default: those with the surest words).")
    for name, default, what in (
        ("rows", ROWS, "Number of codes where --codes names none"),
        ("columns", COLUMNS, "Number of patches of each code"),
        ("dpi", DPI, f"Pixels per inch; a patch and its surroundings are {_TILE_INCHES:g} inch wide"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default}).")
    parser.add_argument("--kind", choices=KINDS, default="nearest", help="Which patches of a code (default: nearest).")
    parser.add_argument("--into", help="PNG or PDF to write (default: codes.png beside the explorer).")


def run(options: argparse.Namespace) -> int:
    """Draw, and say where it lies."""
    codes = None if options.codes is None else _numbers(options.codes)
    path = draw_figure(**{**vars(options), "codes": codes})
    for line in Bundle(options.explorer).of_another_model():
        print_line(line)
    print_line(f"the codes as a figure: {path}")
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"codes: expected numbers with commas between, as 191,107; got {text!r}") from None


def choose_codes(bundle: Bundle, rows: int = ROWS, columns: int = COLUMNS) -> list[int]:
    """Codes that a figure shows best: those whose word is surest, each word once, with enough distinct images.

    A word counts where the whole interval of its lift lies above 1, the higher the better. Where fewer codes
    have one, those that follow are the most frequent ones.

    Returns:
        At most `rows` codes, fewer where fewer have `columns` images.
    """
    wall = bundle.read("wall")
    order = sorted(
        range(bundle.meta["num_codes"]),
        key=lambda code: (-max(wall["lift_low"][code] or 0.0, 1.0), -wall["tokens"][code], code),
    )
    chosen: list[int] = []
    shown: set[str] = set()
    for code in order:
        if len(chosen) == rows:
            break
        word = wall["word"][code] if (wall["lift_low"][code] or 0.0) > 1 else None
        # Of a code with fewer images the file, which takes a while to read, says nothing more.
        if word in shown or wall["images"][code] < columns or len(_shown_of(bundle.code(code), "nearest")) < columns:
            continue
        chosen.append(code)
        if word is not None:
            shown.add(word)
    return chosen


def draw_figure(
    explorer: str | Path,
    codes: Sequence[int] | None = None,
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
    kind: str = "nearest",
    dpi: int = DPI,
    into: str | Path | None = None,
) -> Path:
    """Draw codes with their patches and words.

    Args:
        explorer: Folder of an explorer, or of a run that has one.
        codes: Which; `choose_codes` says if None.
        rows: So many codes, where none are named.
        columns: So many patches of each.
        kind: nearest, quantiles or random.
        dpi: Pixels an inch of the file.
        into: A .png or .pdf; codes.png beside the explorer if None.

    Returns:
        The file.

    Raises:
        FileNotFoundError: there is no explorer.
        UserError: one of them can't be used; the message says which.
    """
    if kind not in KINDS:
        raise UserError(f"kind: expected {' or '.join(KINDS)}, got {kind!r}")
    for name, value in (("rows", rows), ("columns", columns), ("dpi", dpi)):
        if value < 1:
            raise UserError(f"{name}: expected at least 1, got {value}")
    bundle = Bundle(explorer)
    path = bundle.folder.parent / "codes.png" if into is None else Path(into)
    if path.suffix.lower() not in _ENDINGS:
        raise UserError(f"into: expected a name that ends in {' or '.join(_ENDINGS)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise UserError(f"into: there is no folder {path.parent}")
    if codes is None:
        chosen = choose_codes(bundle, rows, columns)
        if not chosen:
            raise UserError(f"columns: no code of {bundle.folder} has {columns} distinct images; give fewer")
    else:
        chosen = list(dict.fromkeys(codes))
    found = [_of_code(bundle, code) for code in chosen]
    try:
        tiles, licences = _tiles(bundle, found, columns, kind)
        credits = [bundle.meta["licences"][number] for number in licences]
    except (OSError, IndexError, KeyError, TypeError, ImageError) as error:
        raise BundleError(f"{bundle.folder}: {error}") from error
    _draw(path, bundle, found, tiles, credits, columns, dpi)
    return path


def _of_code(bundle: Bundle, code: int) -> Mapping[str, Any]:
    try:
        found = bundle.code(code)
    except IndexError as error:
        raise UserError(str(error)) from error
    if not found["tokens"]:
        raise UserError(f"code {code} is unused: none of the {bundle.meta['num_tokens']:,} tokens here has it")
    return found


def _shown_of(code: Mapping[str, Any], kind: str) -> Sequence[Sequence[Any]]:
    """Occurrences of a kind; without distances those at random."""
    return code[kind] or code["random"]


def _tiles(
    bundle: Bundle, codes: Sequence[Mapping[str, Any]], columns: int, kind: str
) -> tuple[list[list[tuple[np.ndarray, Sequence[Any]]]], list[int]]:
    """Images, uint8 (H, W, 3), and occurrences in them of each code, and the images' licences, by number in meta."""
    images: dict[int, np.ndarray] = {}
    licences: dict[int, None] = {}
    rows = []
    for code in codes:
        occurrences = _shown_of(code, kind)
        if kind == "quantiles" and len(occurrences) > columns:
            places = np.linspace(0, len(occurrences) - 1, columns).round().astype(int)
            occurrences = [occurrences[place] for place in places]
        for number, *_ in occurrences[:columns]:
            if number not in images:
                path = image_path(number)
                images[number] = np.asarray(open_image(io.BytesIO(bundle.content(path)), path, least=None))
                licences |= dict.fromkeys(bundle.image(number)["licences"])
        rows.append([(images[occurrence[0]], occurrence) for occurrence in occurrences[:columns]])
    return rows, sorted(licences)


def _draw(
    path: Path,
    bundle: Bundle,
    codes: Sequence[Mapping[str, Any]],
    tiles: Sequence[Sequence[tuple[np.ndarray, Sequence[Any]]]],
    credits: Sequence[Mapping[str, str]],
    columns: int,
    dpi: int,
) -> None:
    wall = bundle.read("wall")
    credit = [_drawable("{what}: {credit}; {licence}".format_map(entry)) for entry in credits]
    step = (1 + _GAP) * _TILE_INCHES
    width = _LABEL_INCHES + columns * step + _EDGE_INCHES
    lines = textwrap.wrap("Images: " + " · ".join(credit), int(width * 19)) if credit else []
    below = _EDGE_INCHES + 0.12 * len(lines)
    height = _EDGE_INCHES + len(codes) * step + below
    with rc_context({"font.size": 8, "pdf.fonttype": 42, "text.parse_math": False}):
        # White, whatever the page or the reader's style: images and outlines look alike on light and dark pages.
        figure = Figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for number, (code, row) in enumerate(zip(codes, tiles, strict=True)):
            top = _EDGE_INCHES + number * step
            for place, (image, occurrence) in enumerate(row):
                _draw_tile(axes, image, occurrence, bundle.window_of(occurrence), _LABEL_INCHES + place * step, top)
            for (text, size, style), y in zip(_label(bundle, wall, code), (0.2, 0.44, 0.59, 0.81), strict=True):
                axes.text(_EDGE_INCHES, top + y, text, fontsize=size, va="center", **style)
        for number, text in enumerate(lines):
            axes.text(_EDGE_INCHES, height - below + 0.06 + 0.12 * number, text, fontsize=6, color="0.35", va="center")
        axes.set(xlim=(0, width), ylim=(height, 0))
        try:
            figure.savefig(path, dpi=dpi, facecolor="white", metadata={"Title": _drawable(bundle.meta["title"])})
        except OSError as error:
            raise UserError(f"into: {path} can't be written ({error.strerror or error})") from error
        except ValueError as error:  # 65,536 pixels or more a side
            raise UserError(f"{error}; give fewer rows or columns, or a smaller --dpi") from error


def _draw_tile(
    axes: Axes, image_HWC: np.ndarray, occurrence: Sequence[float], window: Sequence[float], x: float, y: float
) -> None:
    """A window of an image, see `Bundle.window_of`, in the unit square from (x, y) on, the patch outlined."""
    _, row, column, _, rows, columns = occurrence
    if not (0 <= row < rows and 0 <= column < columns):
        raise BundleError(f"row {row}, column {column} lies outside an image of {rows:g} x {columns:g} patches")
    top, left, side = window
    # The whole image, so placed and scaled that its window fills the tile; the rest is clipped.
    extent = (x - left / side, x + (columns - left) / side, y + (rows - top) / side, y - top / side)
    drawn = axes.imshow(image_HWC, extent=extent, interpolation="antialiased", aspect="auto")
    drawn.set_clip_path(Rectangle((x, y), 1, 1, transform=axes.transData))
    # The last patches may reach beyond the image. The lines lie around the patch, which is seen whole, but within the
    # tile: a light one, and a dark one around it, are seen on any image.
    right, below = min(column + 1, columns), min(row + 1, rows)
    for colour, points in (("black", 2.2), ("white", 1.2)):
        out = points / 2 / 72 / _TILE_INCHES
        x0, x1 = max((column - left) / side - out, out), min((right - left) / side + out, 1 - out)
        y0, y1 = max((row - top) / side - out, out), min((below - top) / side + out, 1 - out)
        corner, size = (x + x0, y + y0), (x1 - x0, y1 - y0)
        axes.add_patch(Rectangle(corner, *size, fill=False, ec=colour, lw=points, joinstyle="miter"))


def _label(bundle: Bundle, wall: Mapping[str, Any], code: Mapping[str, Any]) -> list[tuple[str, float, dict[str, Any]]]:
    """Four lines and their size and style: what the code is called, how much of the captions name it, its number."""
    number = code["code"]
    label, word, share = (wall[column][number] for column in ("label", "word", "precision"))
    called = f"code {bundle.name(number)}"
    told = ["associated with no word" if code["words"] and word is None else "", ""]
    if word is not None and label is None:
        of_all = _percent(share / wall["lift"][number])
        told = [f"in the captions of {_percent(share)}", f"of its images, {of_all} of all"]
    name = label or word or called
    return [
        (_drawable(name if len(name) <= 20 else name[:19] + "…"), 13 if len(name) <= 13 else 9, {"fontweight": "bold"}),
        *((line, 7.5, {"color": "0.2"}) for line in told),
        (f"{called} · {code['images']:,} images", 7, {"color": "0.4"}),
    ]


def _percent(share: float) -> str:
    """What is not all is not called 100 %."""
    percent = math.floor(1000 * share) / 10
    return f"{round(percent) if 10 <= percent <= 99 else percent:g} %"


def _drawable(text: str) -> str:
    """Without what no font has: control characters and halves of surrogate pairs."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in text)
