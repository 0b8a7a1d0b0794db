"""The page that compares two explorers."""

import numpy as np

from soho_fast.explore import build_from_arrays, compare_explorers


def test_what_became_of_the_codes_is_shown(tmp_path, open_window):
    rng = np.random.default_rng(0)
    index, images = rng.integers(3, size=(8, 4, 4)), rng.integers(256, size=(8, 16, 16, 3), dtype=np.uint8)
    rest = {"images": images, "num_codes": 5, "say": lambda line: None}
    split = np.where((index == 2) & (np.arange(4) < 2), 4, index)  # Code 2 becomes 2 and 4.
    one = build_from_arrays(index=index, folder=tmp_path / "one", title="before", **rest)
    other = build_from_arrays(index=split, folder=tmp_path / "other", title="after", **rest)
    window = open_window(compare_explorers(one, other, tmp_path / "both", say=lambda line: None))
    window.visit("#/compare")
    assert window.page.locator("header nav a").all_inner_texts() == ["Wall", "Images", "Compare"]
    assert window.page.locator(".choice").all_inner_texts() == ["split: 1", "stable: 2"]
    links = window.page.locator('[data-kind="split"] a')
    assert {link.get_attribute("href") for link in links.all()} == {"#/code/2", "#/code/4"}
    assert "before" in window.page.locator("th").all_inner_texts()
    window.page.get_by_text("stable: 2").click()
    assert window.page.locator('[data-kind="stable"]').count() == 2
    window.visit("#/compare?kind=stable")
    assert window.page.locator('[data-kind="stable"] a').first.get_attribute("href") in ("#/code/0", "#/code/1")
    assert window.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_new_codes_are_shown_by_their_tokens_and_a_level_by_its_name(tmp_path, open_window):
    index, images = np.zeros((8, 4, 4), int), np.zeros((8, 16, 16, 3), np.uint8)
    rest = {"images": images, "num_codes": 4, "say": lambda line: None}
    after = index.copy()
    after[:4, 0, 0], after[:, 0, 1] = 1, 2
    one = build_from_arrays(index=index, folder=tmp_path / "one", **rest)
    other = build_from_arrays(index=np.stack([after, index], axis=-1), folder=tmp_path / "other", **rest)
    window = open_window(compare_explorers(one, other, tmp_path / "both", say=lambda line: None))
    window.visit("#/compare?kind=new")
    links = window.page.locator('[data-kind="new"] a')
    assert [link.get_attribute("href") for link in links.all()] == ["#/code/2", "#/code/1"]
    assert links.locator(".tile-number").all_inner_texts() == ["1.2", "1.1"]
    window.visit("#/compare?kind=stable")
    assert window.page.locator('[data-kind="stable"] .tile-number').all_inner_texts() == ["0", "1.0"], (
        "the first has one level"
    )
