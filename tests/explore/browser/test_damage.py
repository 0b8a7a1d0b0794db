"""What is missing, damaged or not there is told in one sentence, and the rest of the pages work on."""

import json
import shutil

import pytest


@pytest.fixture
def copy(small, tmp_path):
    """A bundle that may be changed, without its pictures."""
    return shutil.copytree(small.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.jpg"))


def write(folder, name, value):
    (folder / "data" / f"{name}.js").write_text(f'explorer.receive("{name}", {json.dumps(value)});\n')


def told(window, address):
    """The sentence that a page tells."""
    window.visit(address)
    assert window.page.locator("nav a").count() >= 3, "one can go on from here"
    return window.page.locator("main [role=alert]").inner_text()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("#/code/70", "code: expected a number from 0 to 69, got 70"),
        ("#/code/-1", 'code: expected a number from 0 to 69, got "-1"'),
        ("#/code/3x", 'code: expected a number from 0 to 69, got "3x"'),
        ("#/image/300", "image: expected a number from 0 to 299, got 300"),
        ("#/nowhere", 'there is no page "nowhere"'),
        ("#/constructor", 'there is no page "constructor"'),
    ],
)
def test_unknown_addresses(window, address, expected):
    assert told(window, address) == expected


@pytest.mark.parametrize(
    "address",
    [
        "#/wall?sort=constructor&show=toString&patches=x",
        "#/words?sort=constructor&filter=toString",
        "#/image/12?code=__proto__&numbers=x",
    ],
)
def test_parameters_that_mean_nothing_are_as_if_left_out(window, address):
    window.visit(address)
    assert not window.page.locator(".error").count(), window.text()
    assert window.page.locator("main h1").count() == 1


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("meta", "cut short"),
        ("wall", "cut short"),
        ("codes-0000", "missing"),
        ("images-0000", "empty"),
        ("words", "cut short"),
    ],
)
def test_a_damaged_file_is_named(copy, open_window, name, damage):
    path = copy / "data" / f"{name}.js"
    text = path.read_text()
    path.unlink()
    if damage != "missing":
        path.write_text(text[: len(text) // 2] if damage == "cut short" else "")
    pages = {"meta": "#/wall", "wall": "#/wall", "codes-0000": "#/code/3", "images-0000": "#/image/12"}
    window = open_window(copy)
    window.visit(pages.get(name, "#/words"))
    expected = f"data/{name}.js is missing or damaged: build the explorer again"
    assert window.page.locator("main [role=alert]").inner_text() == expected
    if name not in ("meta", "wall"):
        window.visit("#/code/65" if name != "words" else "#/code/3")
        assert "Where it occurs" in window.text(), "other files are none the worse"
    ours = ("Failed to load resource", "SyntaxError", "Unexpected end", "Invalid or unexpected")
    window.complaints[:] = [text for text in window.complaints if not any(known in text for known in ours)]


def test_files_that_end_too_early_or_lack_fields(small, copy, open_window):
    window = open_window(copy)
    write(copy, "codes-0001", small.read("codes-0001")[:2])
    assert told(window, "#/code/68") == "data/codes-0001.js ends too early: build the explorer again"
    wall = small.read("wall")
    write(copy, "wall", {**wall, "spread": wall["spread"][:-1]})
    assert told(window, "#/wall") == "data/wall.js: spread has 69 of 70 codes: build the explorer again"
    write(copy, "wall", {name: column for name, column in wall.items() if name != "near_code"})
    assert told(window, "#/wall") == "data/wall.js: near_code has 0 of 70 codes: build the explorer again"
    write(copy, "wall", wall)
    write(copy, "codes-0001", [{"code": 64, "tokens": 3}])
    sentence = told(window, "#/code/64")
    assert sentence.startswith("the data of this page are damaged (") and sentence.endswith("build the explorer again")
    meta = small.read("meta")
    write(copy, "meta", {**meta, "schema": 99})
    assert told(window, "#/wall") == "data/meta.js: expected schema 4, got 99: build the explorer again"
    window.complaints[:] = [text for text in window.complaints if "Failed to load resource" not in text]


def test_without_captions(small, copy, open_window):
    """Images alone: no word anywhere, no page broken."""
    write(copy, "meta", {**small.read("meta"), "has_captions": False, "licences": []})
    wall = small.read("wall")
    nothing = [None] * len(wall["tokens"])
    write(copy, "wall", {**wall, **dict.fromkeys(["word", "lift", "lift_low", "lift_high", "precision"], nothing)})
    window = open_window(copy)
    window.visit("#/words")
    assert "no captions" in window.text()
    for address in ("#/wall", "#/wall?sort=lift", "#/code/3"):
        window.visit(address)
        assert not window.page.locator(".error").count()
        assert "Images: no licence is known." in window.text()
    assert window.page.get_by_label("word", exact=True).count() == 0
    window.complaints[:] = [text for text in window.complaints if "Failed to load resource" not in text]
