"""Codes to keep and notes on them: kept by the browser, listed by the wall, saved and read as a file."""

import csv
import json

import numpy as np

from soho_fast.explore import build_from_arrays


def test_notes_are_kept_listed_saved_and_read(small, open_window, tmp_path):
    window = open_window(small)
    page = window.page
    window.visit("#/code/3")
    page.get_by_label("keep this code").check()
    page.get_by_label("your note").fill("=a leaf?")
    window.visit("#/code/4")
    assert not page.get_by_label("keep this code").is_checked() and page.get_by_label("your note").input_value() == ""
    page.get_by_label("your note").fill('a "sea"')
    window.visit("#/code/3")
    assert page.get_by_label("keep this code").is_checked()
    assert page.get_by_label("your note").input_value() == "=a leaf?"
    window.visit("#/wall?show=kept")
    tiles = page.locator(".tile")
    assert [tile.get_attribute("data-code") for tile in tiles.all()] == ["3"]
    with page.expect_download() as download:
        page.get_by_text("save as CSV").click()
    (row,) = csv.DictReader(download.value.path().read_text("utf-8-sig").splitlines())
    assert (row["code"], row["kept"], row["note"]) == ("3", "true", "'=a leaf?")
    with page.expect_download() as download:
        page.get_by_text("save notes").click()
    saved = json.loads(download.value.path().read_text())
    assert saved["notes"] == {"3": {"kept": True, "note": "=a leaf?"}, "4": {"kept": False, "note": 'a "sea"'}}

    other = open_window(small)  # Another browser, which knows nothing of them.
    other.visit("#/wall?show=kept")
    assert other.page.locator(".tile").count() == 0
    wrong = (
        '{"99999999": {"kept": true, "note": ""}}',
        '{"03": {"kept": true, "note": ""}}',
        '{"3": null}',
        "null",
        "[]",
    )
    for number, notes in enumerate(wrong):
        (tmp_path / f"wrong{number}.json").write_text(f'{{"notes": {notes}}}')
        other.page.get_by_label("file of notes").set_input_files(tmp_path / f"wrong{number}.json")
        other.page.get_by_text(f"wrong{number}.json holds no notes on these codes: expected").wait_for()
    (tmp_path / "notes.json").write_text(json.dumps(saved))
    other.page.get_by_label("file of notes").set_input_files(tmp_path / "notes.json")
    other.page.get_by_text("notes on 2 codes read").wait_for()
    assert [tile.get_attribute("data-code") for tile in other.page.locator(".tile").all()] == ["3"]


def test_what_is_read_joins_the_notes_that_are_there(small, open_window, tmp_path):
    """Of a code that both have, neither the box nor a line of a note is lost, and reading twice adds nothing."""
    page = (window := open_window(small)).page
    window.visit("#/code/3")
    page.get_by_label("keep this code").check()
    page.get_by_label("your note").fill("a leaf\n\nor a fern")
    window.visit("#/code/4")
    page.get_by_label("your note").fill("sea")
    window.visit("#/wall")
    theirs = {
        "3": {"kept": False, "note": "or a fern\nmoss"},
        "4": {"kept": True, "note": "the sea"},
        "5": {"kept": False, "note": "x"},
    }
    (tmp_path / "notes.json").write_text(json.dumps({"notes": theirs}))
    page.evaluate(
        "() => { const set = Storage.prototype.setItem; window.writes = 0;"
        "Storage.prototype.setItem = function (...given) { writes += 1; set.apply(this, given); }; }"
    )
    for added in (2, 0):
        page.get_by_label("file of notes").set_input_files(tmp_path / "notes.json")
        told = f"notes on 3 codes read; {added} of them" if added else "notes on 3 codes read"
        page.get_by_text(told, exact=not added).wait_for()
    assert page.evaluate("writes") == 2, "notes on thousands of codes are written at once"
    with page.expect_download() as download:
        page.get_by_text("save notes").click()
    assert json.loads(download.value.path().read_text())["notes"] == {
        "3": {"kept": True, "note": "a leaf\n\nor a fern\nmoss"},
        "4": {"kept": True, "note": "sea\nthe sea"},
        "5": {"kept": False, "note": "x"},
    }


def test_the_same_file_is_read_again(small, open_window, tmp_path):
    page = (window := open_window(small)).page
    window.visit("#/wall?show=kept")
    path = tmp_path / "notes.json"
    for code in (3, 4):
        path.write_text(f'{{"notes": {{"{code}": {{"kept": true, "note": ""}}}}}}')
        with page.expect_file_chooser() as chooser:
            page.get_by_text("read notes").click()
        chooser.value.set_files(path)
        page.locator(f'.tile[data-code="{code}"]').wait_for()
        assert page.locator('input[type="file"]').input_value() == ""


def test_what_the_browser_does_not_store_lasts_while_the_page_is_open(small, open_window):
    window = open_window(small)
    window.page.add_init_script("Storage.prototype.setItem = () => { throw new Error('full'); };")
    window.visit("#/code/3")
    window.page.get_by_label("your note").fill("a leaf")
    window.page.evaluate("location.hash = '#/code/4'")
    window.page.get_by_role("heading", name="Code 4").wait_for()
    window.page.evaluate("location.hash = '#/code/3'")
    window.page.get_by_role("heading", name="Code 3").wait_for()
    assert window.page.get_by_label("your note").input_value() == "a leaf"


def test_explorers_without_a_codebook_keep_notes_apart(tmp_path, open_window):
    """Pages from a disk share what the browser stores."""
    rest = {"num_codes": 4, "say": lambda line: None}
    images = np.zeros((3, 8, 8, 3), np.uint8)
    folders = [
        build_from_arrays(
            index=np.zeros((count, 2, 2), int), images=images[:count], folder=tmp_path / f"{count}", **rest
        )
        for count in (2, 3)
    ]
    window = open_window(folders[0])
    window.visit("#/code/3")
    window.page.get_by_label("your note").fill("a leaf")
    window.page.goto((folders[1] / "index.html").as_uri() + "#/code/3")
    window.page.get_by_label("your note").wait_for()
    assert window.page.get_by_label("your note").input_value() == ""
