"""The paper's figure: which codes, which pixels, what is refused."""

import io
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from soho_fast.common.errors import UserError
from soho_fast.explore import figure
from soho_fast.explore.bundle import SCHEMA, Bundle, BundleError, image_path, write_in_files, write_value
from soho_fast.explore.figure import choose_codes, draw_figure

NUM_CODES, SIDE, CELLS = 6, 32, 4
CELL = SIDE // CELLS
# Code: (word, low, pictures that have it); 4 has no word above 1, 5 is dead.
CLAIMS = [("dog", 2.0, 4), ("cat", 9.0, 4), ("dog", 5.0, 4), ("sun", 7.0, 1), ("sky", 0.5, 4), (None, None, 0)]


def _colour(picture: int, row: int, column: int) -> tuple[int, int, int]:
    return 40 * picture + 10, 40 * row + 20, 40 * column + 30


def _picture(number: int) -> np.ndarray:
    rows, columns = np.divmod(np.arange(CELLS * CELLS), CELLS)
    patches = np.array(
        [_colour(number, row, column) for row, column in zip(rows, columns, strict=True)], dtype=np.uint8
    )
    return patches.reshape(CELLS, CELLS, 3).repeat(CELL, 0).repeat(CELL, 1)


@pytest.fixture
def explorer(tmp_path) -> Path:
    folder = tmp_path / "run" / "explorer"
    (folder / "data").mkdir(parents=True)
    credit = {"what": "drawings $1 of $2", "credit": "A. Person, https://example.org", "licence": "CC-BY-4.0"}
    names = ("schema", "title", "num_codes", "num_tokens", "num_shown", "licences")
    values = (SCHEMA, "A title", NUM_CODES, 64, 4, [credit, {**credit, "what": "of none shown"}])
    rest = {"model": "", "weights": "", "num_levels": 1, "window": 2, "sources": [], "figure": [], "measures": {}}
    write_value(folder, "meta", dict(zip(names, values, strict=True)) | rest)
    codes = []
    for code, (word, low, pictures) in enumerate(CLAIMS):
        shown = [[number, code % CELLS, number, 0.5, CELLS, CELLS] for number in range(pictures)]
        words = [] if word is None else [{"word": word, "lift": low + 1, "low": low, "high": low + 2}]
        kinds = dict.fromkeys(figure.KINDS, shown)
        codes.append({"code": code, "tokens": pictures, "images": pictures, "words": words, **kinds})
    codes[2]["random"] = codes[2]["nearest"][:1]
    write_in_files(folder, "codes", codes, 64)
    # As `assemble` says it: no word where the interval reaches below 1.
    sure = [(word, low) if low is not None and low > 1 else (None, None) for word, low, _ in CLAIMS]
    wall = {name: [code[name] for code in codes] for name in ("tokens", "images")}
    wall |= dict(zip(("word", "lift_low"), map(list, zip(*sure, strict=True)), strict=True))
    wall |= {name: [value] * NUM_CODES for name, value in (("precision", 0.9), ("lift", 15.0), ("label", None))}
    wall["medoid"] = [None] * NUM_CODES
    write_value(folder, "wall", wall)
    write_in_files(folder, "images", [{"image": number, "licences": [0]} for number in range(4)], 256)
    for number in range(4):
        path = folder / image_path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_picture(number)).save(path, "PNG")  # without loss, whatever it is called
    return folder


def test_the_surest_code_of_each_word_is_shown_and_then_the_most_frequent(explorer):
    bundle = Bundle(explorer)
    assert choose_codes(bundle, 6, 4) == [1, 2, 4], "0 says what 2 says more surely, 3 has one picture, 5 is dead"
    assert choose_codes(bundle, 6, 1) == [1, 3, 2, 4]
    assert choose_codes(bundle, 2, 1) == [1, 3]
    assert choose_codes(bundle, 6, 5) == []


def _tile(image, occurrence, window) -> np.ndarray:
    """What is drawn of a patch, but for its outlines, as a square of pixels."""
    drawn = Figure(figsize=(1, 1), dpi=48)
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.axis("off")
    figure._draw_tile(axes, image, occurrence, window, 3.0, 7.0)
    for outline in axes.patches:
        outline.set_linewidth(0)
    axes.set(xlim=(3, 4), ylim=(8, 7))
    file = io.BytesIO()
    drawn.savefig(file)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def _at(tile, row, column) -> list[int]:
    """The colour in the middle of a third of a tile."""
    third = len(tile) // 3
    return tile[third * row + third // 2, third * column + third // 2].tolist()


def test_a_tile_is_the_window_of_its_image():
    tile = _tile(_picture(2), [2, 1, 2, 0.5, CELLS, CELLS], (0, 1, 3))
    for row, column in np.ndindex(3, 3):
        assert np.abs(np.subtract(_at(tile, row, column), _colour(2, row, 1 + column))).max() <= 2, (row, column)
    with pytest.raises(BundleError, match=r"row 1, column 0 lies outside an image of 1 x 2 patches"):
        _tile(_picture(0)[:CELL, : 2 * CELL], [0, 1, 0, 0.5, 1, 2], (0, 0, 1))


@pytest.mark.parametrize(
    ("occurrence", "window", "expected"),
    [
        ([0, 4, 4, 0.5, 8, 8], 5, (2, 2, 5)),
        ([0, 0, 7, 0.5, 8, 8], 5, (0, 3, 5)),  # moved into the image
        ([0, 1, 9, 0.5, 3.5, 16], 5, (0, 7.75, 3.5)),  # a square as high as the image
        ([0, 3, 2, 0.5, 4, 4], 5, (0, 0, 4)),
    ],
)
def test_what_is_shown_around_a_patch(explorer, occurrence, window, expected):
    bundle = Bundle(explorer)
    bundle.meta = {**bundle.meta, "window": window}
    assert bundle.window_of(occurrence) == expected


def test_texts_that_no_font_has_are_drawn_all_the_same(explorer):
    bundle = Bundle(explorer)
    licence = {**bundle.meta["licences"][0], "what": "half a sign \ud800 and\0 none"}
    write_value(explorer, "meta", {**bundle.meta, "title": "\ud800\0", "licences": [licence]})
    write_value(explorer, "wall", bundle.read("wall") | {"word": ["\udfff"] * NUM_CODES})
    assert "half a sign \N{REPLACEMENT CHARACTER} and\N{REPLACEMENT CHARACTER} none" in _texts(explorer, [1])
    assert draw_figure(explorer, [1], into=explorer / "codes.pdf").read_bytes().startswith(b"%PDF")


def test_the_image_shows_what_was_chosen(explorer):
    write_value(explorer, "meta", {**Bundle(explorer).meta, "window": 1})
    path = draw_figure(explorer.parent, columns=4)
    assert path == explorer.parent / "codes.png", "of a run beside its explorer"
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for code in (1, 2, 4):
        for number in range(4):
            near = np.abs(pixels - _colour(number, code % CELLS, number)).max(-1) <= 2
            assert near.sum() > 200, f"code {code}, picture {number}"
    assert not (np.abs(pixels - _colour(0, 3, 0)).max(-1) <= 2).any(), "code 3 has too few pictures"


def test_what_is_drawn_says_words_counts_and_licence(explorer, tmp_path):
    path = draw_figure(explorer, [1, 4], columns=4, into=tmp_path / "codes.pdf")
    assert path.read_bytes().startswith(b"%PDF")
    texts = _texts(explorer, [1, 4])
    cat = "cat | in the captions of 90 % | of its images, 6 % of all | code 1 · 4 images"
    assert cat in texts, "0.9 / 15 of all images have it"
    assert "code 4 | associated with no word |  | code 4 · 4 images" in texts
    assert "Images: drawings $1 of $2: A. Person, https://example.org; CC-BY-4.0" in texts
    assert "of none shown" not in texts
    write_value(explorer, "meta", {**Bundle(explorer).meta, "num_levels": 2})
    assert "code 2.1" in _texts(explorer, [1, 4]), "each level has three codes"


def test_a_label_comes_before_a_word_and_a_page_of_any_colour_gets_a_white_figure(explorer, tmp_path):
    wall = Bundle(explorer).read("wall")
    write_value(explorer, "wall", wall | {"label": ["a", "a leaf", *[None] * 4], "word": [None] * NUM_CODES})
    assert "a leaf | associated with no word" in _texts(explorer, [1])
    with rc_context({"figure.facecolor": "black", "savefig.facecolor": "black", "savefig.transparent": False}):
        path = draw_figure(explorer, [1], columns=1, into=tmp_path / "codes.png")
    assert Image.open(path).convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def _texts(explorer: Path, codes: list[int]) -> str:
    found = []

    def read(drawn, *_, **__) -> None:
        found.extend(text.get_text() for text in drawn.findobj(Text))

    with mock.patch.object(Figure, "savefig", read):
        draw_figure(explorer, codes, columns=4, into=explorer / "again.png")
    return " | ".join(found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codes": [6]}, "code: expected 0 to 5, got 6"),
        ({"codes": [-1]}, "code: expected 0 to 5, got -1"),
        ({"codes": [1, 5]}, "code 5 is unused: none of the 64 tokens here has it"),
        ({"into": "codes.jpg"}, "into: expected a name that ends in .png or .pdf, got 'codes.jpg'"),
        ({"into": "nowhere/codes.png"}, "into: there is no folder nowhere"),
        ({"rows": 0}, "rows: expected at least 1, got 0"),
        ({"dpi": 0}, "dpi: expected at least 1, got 0"),
        ({"columns": 5}, "columns: no code of"),
        ({"codes": [1], "dpi": 100_000}, "pixels, expected less than 65,536 a side"),
        ({"codes": [1], "columns": 100_000}, "pixels, expected less than 65,536 a side"),
        ({"kind": "far"}, "kind: expected nearest or quantiles or random, got 'far'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(explorer, options, words):
    with pytest.raises(UserError) as error:
        draw_figure(explorer, **options)
    assert words in str(error.value)


def test_a_damaged_explorer_is_told_of(explorer, tmp_path):
    message = r"is no explorer \(it has no data/meta.js\); make one: soho explore build RUN"
    with pytest.raises(FileNotFoundError, match=message):
        draw_figure(tmp_path)
    path = explorer / image_path(0)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(UserError, match="build the explorer again"):
        draw_figure(explorer, [1])
    path.unlink()
    with pytest.raises(UserError, match="build the explorer again"):
        draw_figure(explorer, [1])
