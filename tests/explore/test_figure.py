"""The paper's figure: which codes, which pixels, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soho_fast.common.errors import UserError
from soho_fast.explore import figure
from soho_fast.explore.bundle import SCHEMA, Bundle, BundleError, image_path, write_in_files, write_value
from soho_fast.explore.figure import choose_codes, cut_tile, draw_figure

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
    write_value(folder, "meta", dict(zip(names, values, strict=True)))
    codes = []
    for code, (word, low, pictures) in enumerate(CLAIMS):
        shown = [[number, code % CELLS, number, 0.5, CELLS, CELLS] for number in range(pictures)]
        words = [] if word is None else [{"word": word, "lift": low + 1, "low": low, "high": low + 2}]
        kinds = dict.fromkeys(figure.KINDS, shown)
        codes.append({"code": code, "tokens": pictures, "images": pictures, "words": words, **kinds})
    codes[2]["random"] = codes[2]["nearest"][:1]
    write_in_files(folder, "codes", codes, 64)
    wall = {name: [code[name] for code in codes] for name in ("tokens", "images")}
    wall |= {"word": [word for word, _, _ in CLAIMS], "lift_low": [low for _, low, _ in CLAIMS]}
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


def test_files_of_codes_with_too_few_images_are_not_read(explorer, monkeypatch):
    """Of a codebook of thousands of rare codes that would take minutes."""
    read, code = [], Bundle.code
    monkeypatch.setattr(Bundle, "code", lambda bundle, number: (read.append(number), code(bundle, number))[1])
    assert choose_codes(Bundle(explorer), 6, 4) == [1, 2, 4]
    assert 3 not in read and {1, 2, 4} <= set(read)


def test_a_tile_is_the_patch_of_its_image_and_faded_surroundings():
    picture = _picture(2)
    tile = cut_tile(picture, [2, 1, 3, 0.5, CELLS, CELLS], 0.5)
    half = CELL // 2
    assert tile.pixels.shape == (2 * CELL, 2 * CELL, 3)
    assert tile.patch == (half, CELL, CELL, CELL), "what lies right of the picture is not shown"
    assert np.array_equal(tile.pixels[half:-half, CELL:], picture[CELL : 2 * CELL, 3 * CELL :])
    expected = np.round(255 * 0.45 + picture[CELL - half : 2 * CELL + half, 2 * CELL :] * 0.55)
    expected[half:-half, CELL:] = picture[CELL : 2 * CELL, 3 * CELL :]
    assert np.array_equal(tile.pixels, expected)


def test_a_patch_that_reaches_beyond_the_image_ends_with_it():
    picture = _picture(0)[:20, :26]  # 2.5 x 3.25 patches
    tile = cut_tile(picture, [0, 2, 3, 0.5, 2.5, 3.25], 0)
    top, left, height, width = tile.patch
    assert (height, width) == (4, 2)
    assert np.array_equal(tile.pixels[top : top + 4, left : left + 2], picture[16:20, 24:26])


def test_what_is_larger_than_the_image_is_white():
    tile = cut_tile(_picture(0)[:CELL, : 2 * CELL], [0, 0, 1, 0.5, 1, 2], 1)
    assert tile.pixels.shape == (3 * CELL, 3 * CELL, 3) and tile.patch == (0, CELL, CELL, CELL)
    assert (tile.pixels[CELL:] == 255).all() and (tile.pixels[:, 2 * CELL :] == 255).all()
    with pytest.raises(BundleError, match=r"row 1, column 0 lies outside an image of 1 x 2 patches"):
        cut_tile(_picture(0)[:CELL, : 2 * CELL], [0, 1, 0, 0.5, 1, 2])


def test_a_patch_of_less_than_a_pixel_is_shown_as_one():
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    for column in (0, 5, 11):
        tile = cut_tile(picture, [0, 0, column, 0.5, 1, 12], 0)
        top, left, height, width = tile.patch
        assert (top, height, width) == (0, 4, 1)
        assert abs(column / 2 - np.flatnonzero((picture == tile.pixels[:4, left : left + 1]).all((0, 2)))[0]) <= 0.5
    sliver = cut_tile(picture, [0, 0, 2, 0.5, 1.0, 2.01], 0)  # The picture ends just within its last patch.
    assert np.array_equal(sliver.pixels[:4, sliver.patch[1]], picture[:, 5])


def test_texts_that_no_font_has_are_drawn_all_the_same(explorer):
    bundle = Bundle(explorer)
    licence = {**bundle.meta["licences"][0], "what": "half a sign \ud800 and\0 none"}
    write_value(explorer, "meta", {**bundle.meta, "title": "\ud800\0", "licences": [licence]})
    code = bundle.code(1) | {"words": [{"word": "\udfff", "lift": 3.0, "low": 2.0, "high": 4.0}]}
    write_in_files(explorer, "codes", [bundle.code(0), code], 64)
    assert "half a sign \N{REPLACEMENT CHARACTER} and\N{REPLACEMENT CHARACTER} none" in _texts(explorer, [1])
    assert draw_figure(explorer, [1], into=explorer / "codes.pdf").read_bytes().startswith(b"%PDF")


def test_rows_hold_the_patches_of_their_codes(explorer, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figure, "_draw", lambda *arguments: drawn.update(codes=arguments[2], tiles=arguments[3]))
    draw_figure(explorer, [3, 1, 3], columns=3)
    assert [code["code"] for code in drawn["codes"]] == [3, 1], "each once, in the order that was given"
    assert [len(row) for row in drawn["tiles"]] == [1, 3]
    for row, code in zip(drawn["tiles"], (3, 1), strict=True):
        for number, tile in enumerate(row):
            top, left, height, width = tile.patch
            assert (height, width) == (CELL, CELL)
            assert (tile.pixels[top : top + CELL, left : left + CELL] == _colour(number, code, number)).all()


def test_the_image_shows_what_was_chosen(explorer):
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
    for words in ("code 1", "cat \N{MULTIPLICATION SIGN}10.0 (9.0 to 11.0)", "code 4", "no word", "4 tokens, 4 images"):
        assert words in texts
    assert "Images: drawings $1 of $2: A. Person, https://example.org; CC-BY-4.0" in texts
    assert "of none shown" not in texts
    write_value(explorer, "meta", {**Bundle(explorer).meta, "num_levels": 2})
    assert "code 2.1" in _texts(explorer, [1, 4]), "each level has three codes"


def _texts(explorer: Path, codes: list[int]) -> str:
    from matplotlib import pyplot
    from matplotlib.text import Text

    found = []
    close = pyplot.close

    def read(drawn) -> None:
        found.extend(text.get_text() for text in drawn.findobj(Text))
        close(drawn)

    pyplot.close = read
    try:
        draw_figure(explorer, codes, columns=4, into=explorer / "again.png")
    finally:
        pyplot.close = close
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
        (
            {"codes": [1], "dpi": 100_000},
            "pixels, expected less than 65,536 a side and at most 200,000,000: give fewer rows",
        ),
        ({"codes": [1], "columns": 100_000}, "pixels, expected less than 65,536 a side"),
        ({"kind": "far"}, "kind: expected nearest or quantiles or random, got 'far'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(explorer, options, words):
    with pytest.raises(UserError) as error:
        draw_figure(explorer, **options)
    assert words in str(error.value)


def test_a_damaged_explorer_is_told_of(explorer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no explorer \(it has no data/meta.js\); make one: python -m"):
        draw_figure(tmp_path)
    path = explorer / image_path(0)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(UserError, match="build the explorer again"):
        draw_figure(explorer, [1])
    path.unlink()
    with pytest.raises(UserError, match="build the explorer again"):
        draw_figure(explorer, [1])
