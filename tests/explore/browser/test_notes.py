"""Codes to keep and notes on them: kept by the browser, listed by the wall, saved and read as a file."""

import csv
import json


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
    (tmp_path / "wrong.json").write_text('{"notes": {"99999999": {"kept": true, "note": ""}}}')
    other.page.get_by_label("file of notes").set_input_files(tmp_path / "wrong.json")
    other.page.get_by_text("wrong.json holds no notes on these codes: expected").wait_for()
    (tmp_path / "notes.json").write_text(json.dumps(saved))
    other.page.get_by_label("file of notes").set_input_files(tmp_path / "notes.json")
    other.page.get_by_text("notes on 2 codes read").wait_for()
    assert [tile.get_attribute("data-code") for tile in other.page.locator(".tile").all()] == ["3"]
