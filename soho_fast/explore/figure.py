"""The paper's figures 3 and 4 of an explorer: rows of codes, the patches that have them, and their words by lift."""

from __future__ import annotations

import argparse
import io
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soho_fast.common.command_line import Parser
from soho_fast.common.errors import UserError
from soho_fast.common.extras import from_extra
from soho_fast.explore.bundle import KINDS, Bundle, BundleError, image_path, window_start

with from_extra("explore"):
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from PIL import Image

ROWS, COLUMNS, DPI = 12, 8, 150
AROUND = 1.0
"""How much of its surroundings a patch is shown with on each side, in patches; they are faded."""

_FADED = 0.45
_ENDINGS = (".png", ".pdf")
_NUM_WORDS = 3
_TIMES = "\N{MULTIPLICATION SIGN}"
_GAP = 0.08  # between tiles, in tiles
_MOST_PIXELS = 200_000_000
_TILE_INCHES = 0.62
_LABEL_INCHES = 2.5


def add_arguments(parser: Parser) -> None:
    """What `figure` takes."""
    parser.add_argument("explorer", metavar="RUN_OR_EXPLORER", help="Folder of an explorer, or of a run that has one.")
    parser.add_argument("--codes", help="Comma-separated numbers of codes (default: those with the surest words).")
    for name, default, what in (
        ("rows", ROWS, "Number of codes where --codes names none"),
        ("columns", COLUMNS, "Number of patches of each code"),
        ("dpi", DPI, f"Pixels per inch; a patch is drawn {_TILE_INCHES} inches wide"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default}).")
    parser.add_argument("--kind", choices=KINDS, default="nearest", help="Which patches of a code (default: nearest).")
    parser.add_argument("--into", help="PNG or PDF to write (default: codes.png beside the explorer).")


def run(options: argparse.Namespace) -> int:
    """Draw, and say where it lies."""
    codes = None if options.codes is None else _numbers(options.codes)
    names = ("rows", "columns", "kind", "dpi", "into")
    path = draw_figure(options.explorer, codes, **{name: getattr(options, name) for name in names})
    for line in Bundle(options.explorer).of_another_model():
        print(line)
    print(f"the codes as a figure: {path}")
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
            raise UserError(f"columns: no code of {bundle.folder} has {columns} distinct {bundle.noun}s; give fewer")
    else:
        chosen = list(dict.fromkeys(codes))
    found = [_of_code(bundle, code) for code in chosen]
    try:
        tiles, licences = _tiles(bundle, found, columns, kind)
    except (OSError, IndexError) as error:
        raise BundleError(f"{bundle.folder}: {error}") from error
    _draw(path, bundle, found, tiles, licences, columns, dpi)
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
                with Image.open(io.BytesIO(bundle.content(image_path(number)))) as image:
                    images[number] = np.asarray(image.convert("RGB"))
                licences |= dict.fromkeys(bundle.image(number)["licences"])
        rows.append([(images[occurrence[0]], occurrence) for occurrence in occurrences[:columns]])
    return rows, sorted(licences)


def _draw(
    path: Path,
    bundle: Bundle,
    codes: Sequence[Mapping[str, Any]],
    tiles: Sequence[Sequence[tuple[np.ndarray, Sequence[Any]]]],
    licences: Sequence[int],
    columns: int,
    dpi: int,
) -> None:
    # Of a clip of audio, as on the pages, all frequencies of the window.
    margins = (0.0, (bundle.meta["window"] - 1) / 2) if bundle.noun == "clip" else (AROUND, AROUND)
    credit = [_credit(bundle.meta["licences"][number]) for number in licences]
    across = columns * (1 + _GAP) * _TILE_INCHES
    width = _LABEL_INCHES + across
    lines = textwrap.wrap(f"{bundle.noun.capitalize()}s: " + " · ".join(credit), int(width * 22)) if credit else []
    below = 0.12 + 0.105 * len(lines)
    height = len(codes) * (1 + _GAP) * _TILE_INCHES + below
    pixels = max(width, height) * dpi, width * height * dpi**2
    if pixels[0] >= 2**16 or pixels[1] > _MOST_PIXELS:
        raise UserError(
            f"the figure would have {width * dpi:,.0f} x {height * dpi:,.0f} pixels, expected less than 65,536 a side "
            f"and at most {_MOST_PIXELS:,}: give fewer rows or columns, or a smaller --dpi"
        )
    with rc_context({"font.size": 8, "pdf.fonttype": 42}):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, below / height, 1, 1 - below / height))
        left = _LABEL_INCHES / _TILE_INCHES
        axes.axis("off")
        for number, (code, row) in enumerate(zip(codes, tiles, strict=True)):
            top = number * (1 + _GAP) + _GAP / 2
            for place, (image, occurrence) in enumerate(row):
                _draw_tile(axes, image, occurrence, margins, left + place * (1 + _GAP), top)
            axes.text(0.1, top + 0.3, f"code {bundle.name(code['code'])}", fontsize=8.5, fontweight="bold", va="center")
            shown = f"{code['tokens']:,} tokens, {code['images']:,} {bundle.noun}s"
            axes.text(left - 0.15, top + 0.3, shown, fontsize=6.2, color="0.45", va="center", ha="right")
            for line, words in enumerate(_words(code)):
                axes.text(
                    0.1, top + 0.57 + 0.22 * line, words, fontsize=6.8, va="center", color="0.1", parse_math=False
                )
        axes.set(xlim=(0, width / _TILE_INCHES), ylim=(len(codes) * (1 + _GAP), 0))
        for number, text in enumerate(lines):
            y = (below - 0.1 - 0.105 * number) / height
            figure.text(0.1 * _TILE_INCHES / width, y, text, fontsize=5, color="0.4", va="center", parse_math=False)
        try:
            figure.savefig(path, dpi=dpi, metadata={"Title": _drawable(bundle.meta["title"])})
        except OSError as error:
            raise UserError(f"into: {path} can't be written ({error.strerror or error})") from error


def _draw_tile(
    axes: Axes, image_HWC: np.ndarray, occurrence: Sequence[float], margins: tuple[float, float], x: float, y: float
) -> None:
    """A patch and its surroundings, faded, so many patches on each side of it, in the unit square from (x, y) on.

    What is shown is moved into the image where the patch lies at its edge; where the image is smaller, the rest is
    white.
    """
    _, row, column, _, rows, columns = occurrence
    if not (0 <= row < rows and 0 <= column < columns):
        raise BundleError(f"row {row}, column {column} lies outside an image of {rows:g} x {columns:g} patches")
    high, wide = (1 + 2 * margin for margin in margins)
    top, left = window_start(row, high, rows), window_start(column, wide, columns)
    # The last patches may reach beyond the image.
    size = (min(column + 1, columns) - column) / wide, (min(row + 1, rows) - row) / high
    patch = Rectangle((x + (column - left) / wide, y + (row - top) / high), *size, fill=False, ec="0.15", lw=0.8)
    axes.add_patch(patch)
    extent = (x - left / wide, x + (columns - left) / wide, y + (rows - top) / high, y - top / high)
    tile = Rectangle((x, y), 1, 1, transform=axes.transData)
    for shown, alpha in ((tile, 1 - _FADED), (patch, 1.0)):
        drawn = axes.imshow(image_HWC, extent=extent, alpha=alpha, interpolation="antialiased", aspect="auto")
        drawn.set_clip_path(shown)


def _words(code: Mapping[str, Any]) -> list[str]:
    """Two lines at most: the words whose interval lies above 1, the first with its interval."""
    associated = [word for word in code["words"] if word["low"] > 1][:_NUM_WORDS]
    if not associated:
        return ["no word"] if code["words"] else []
    first, *others = associated
    lines = [f"{_shortened(first['word'])} {_TIMES}{first['lift']:.1f} ({first['low']:.1f} to {first['high']:.1f})"]
    if others:
        lines.append(", ".join(f"{_shortened(word['word'])} {_TIMES}{word['lift']:.1f}" for word in others))
    return lines


def _shortened(word: str) -> str:
    return _drawable(word if len(word) <= 20 else word[:19] + "…")


def _drawable(text: str) -> str:
    """Without what no font has: control characters and halves of surrogate pairs."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in text)


def _credit(licence: Mapping[str, str]) -> str:
    return _drawable(f"{licence['what']}: {licence['credit']}; {licence['licence']}")
