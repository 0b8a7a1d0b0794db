"""Everything can be reached by keys, and back goes where one was."""

import pytest


def focused_code(window):
    return window.page.evaluate("Number(document.activeElement.dataset.code)")


def test_the_wall_is_walked_by_arrows(window):
    window.visit("#/wall?sort=number")
    window.page.locator(".tile").first.focus()
    columns = len(window.page.evaluate("getComputedStyle(document.querySelector('.wall')).gridTemplateColumns").split())
    for key, code in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowUp", 1)):
        window.page.keyboard.press(key)
        assert focused_code(window) == code
    assert window.page.locator('.tile[tabindex="0"]').count() == 1, "one stop for the tabulator"
    window.press("Enter")
    assert window.address() == "#/code/1"
    window.page.go_back()
    window.wait()
    assert focused_code(window) == 1


def test_search_goes_to_a_code_or_a_word(window):
    window.visit("#/code/3")
    window.page.locator("header input").fill("17")
    window.press("Enter")
    assert window.address() == "#/code/17"
    window.page.locator("header input").fill("dolphin")
    window.press("Enter")
    assert window.address() == "#/words?search=dolphin"
    assert window.page.locator(".word").count() == 1


@pytest.mark.parametrize("by", ["PCA", "t-SNE"])
def test_names_on_the_map_do_not_overlap(window, by):
    window.visit(f"#/map?by={by}&colour=word")
    window.page.wait_for_timeout(200)
    boxes = window.page.evaluate("JSON.parse(document.querySelector('canvas').dataset.names)")
    assert len(boxes) >= 2
    for place, (left, top, right, bottom) in enumerate(boxes):
        for a, b, c, d in boxes[:place]:
            assert left >= c or right <= a or top >= d or bottom <= b
    assert window.page.locator("select[name=by]").input_value() == by
