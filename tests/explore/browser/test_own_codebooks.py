"""Codebooks of others: levels, decoded codes, labels, no distances, no codebook, on a real explorer of tiny arrays."""

import csv

import numpy as np
import pytest

from soho_fast.explore import Bundle, build_from_arrays

CODES = 6


@pytest.fixture(scope="module")
def arrays():
    """(index (N, 4, 4, 2), images)."""
    rng = np.random.default_rng(0)
    return rng.integers(CODES, size=(20, 4, 4, 2)), rng.integers(256, size=(20, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def levels(arrays, tmp_path_factory):
    index, images = arrays
    codebook = np.random.default_rng(1).normal(size=(2, CODES, 3))
    folder = tmp_path_factory.mktemp("levels") / "explorer"
    labels = ["a leaf", *[None] * (2 * CODES - 1)]
    decoded = np.full((2 * CODES, 2, 2, 3), 200, np.uint8)
    features = np.zeros((20, 4, 4, 3))
    more = {"labels": labels, "decoded": decoded, "say": lambda line: None}
    return Bundle(build_from_arrays(features, codebook, images, folder, index=index, **more))


def test_each_level_has_its_pages(levels, arrays, open_window):
    window = open_window(levels)
    window.visit("#/code/8")
    assert window.page.locator("h1").inner_text() == "Code 2.2"
    assert window.page.get_by_alt_text("what the decoder makes of this code alone").evaluate("i => i.naturalWidth") == 2
    picture = levels.code(8)["random"][0][0]
    window.visit(f"#/image/{picture}?code=8")
    assert window.lit() == np.flatnonzero(arrays[0][picture, ..., 1].ravel() == 2).tolist()
    window.visit("#/code/0")
    assert window.page.locator("h1").inner_text() == "a leaf code 1.0"
    following = levels.code(0)["next"]
    shown = window.page.locator(".card", has_text="Codes of the next level").locator(".tile-number").all_inner_texts()
    assert shown == [f"2.{entry['code'] - CODES}" for entry in following] and shown
    window.page.locator("header input").fill("2.5")
    window.press("Enter")
    assert window.address() == f"#/code/{CODES + 5}"
    window.page.locator("header input").fill("1.8")
    window.press("Enter")
    assert window.address() == "#/words?search=1.8", "not code 2.2"


def test_the_wall_shows_a_level_labels_and_decoded_codes(levels, open_window):
    window = open_window(levels)
    window.visit("#/wall?level=2")
    assert window.page.locator(".tile").count() == CODES
    window.visit("#/wall")
    assert window.page.locator(".tile").count() == 2 * CODES
    assert window.page.locator('.tile[data-code="0"] .tile-word').inner_text() == "a leaf"
    window.page.get_by_label("decoded").check()
    assert window.page.locator("img.crop").count() == 2 * CODES
    assert window.address() == "#/wall?patches=decoded"
    window.page.get_by_label("patches alone").check()
    assert not window.page.get_by_label("decoded").is_checked() and window.page.locator("img.crop").count() == 0


def test_the_codes_shown_are_saved_as_a_table(levels, arrays, tmp_path, open_window):
    index, images = arrays
    labels = ['=HYPERLINK("x")', 'a "leaf", green', *[None] * (CODES - 2)]
    more = {"labels": labels, "folder": tmp_path / "explorer", "say": lambda line: None}
    for folder, address, first in (
        (levels.folder, "#/wall?level=2&sort=number", ("2", "0")),
        (build_from_arrays(index=index[..., 0], images=images, **more), "#/wall?sort=number", (None, "0")),
    ):
        window = open_window(folder)
        window.visit(address)
        with window.page.expect_download() as download:
            window.page.get_by_text("save as CSV").click()
        rows = list(csv.DictReader(download.value.path().read_text("utf-8-sig").splitlines()))
        assert len(rows) == CODES and (rows[0].get("level"), rows[0]["code"]) == first
        tokens = Bundle(folder).read("wall")["tokens"][-CODES:]
        assert [int(row["tokens"]) for row in rows] == tokens
    assert [row["label"] for row in rows[:3]] == ["'" + labels[0], labels[1], ""]


def test_what_is_not_known_is_not_shown(arrays, tmp_path, open_window):
    index, images = arrays
    quiet = {"say": lambda line: None}
    window = open_window(build_from_arrays(index=index[..., 0], images=images, folder=tmp_path / "explorer", **quiet))
    window.visit("#/code/1")
    assert window.page.locator("header nav a").all_inner_texts() == ["Wall", "Images"]
    assert window.page.locator(".kind h3").all_inner_texts() == ["At random"]
    for heading in ("Distances", "Nearest in the codebook", "Codes of the next level", "Words"):
        assert window.page.get_by_role("heading", name=heading).count() == 0, heading
    assert "distance" not in window.text()
    window.visit("#/wall")
    assert window.page.get_by_label("sort by").locator("option").all_inner_texts() == ["usage", "number"]
