"""Everything can be reached by keys, and back goes where one was."""

import pytest
from bundle_by_rule import NUM_CODES


def focused_code(window):
    return window.page.evaluate("Number(document.activeElement.dataset.code)")


def test_codes_and_images_by_arrows_and_letters(window):
    window.visit("#/code/3")
    for key, code in (("ArrowRight", 4), ("j", 5), ("ArrowLeft", 4), ("k", 3)):
        window.press(key)
        assert window.address() == f"#/code/{code}"
    window.visit("#/code/0")
    window.press("ArrowLeft")
    assert window.address() == "#/code/0"
    window.visit("#/image/12?code=62")
    window.press("ArrowRight")
    assert window.address() == "#/image/13?code=62"


def test_the_wall_is_walked_by_arrows(window):
    window.visit("#/wall?sort=number")
    window.page.locator(".tile").first.focus()
    columns = len(window.page.evaluate("getComputedStyle(document.querySelector('.wall')).gridTemplateColumns").split())
    for key, code in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowUp", 1), ("j", 2), ("k", 1)):
        window.page.keyboard.press(key)
        assert focused_code(window) == code
    assert window.page.locator('.tile[tabindex="0"]').count() == 1, "one stop for the tabulator"
    window.press("Enter")
    assert window.address() == "#/code/1"
    window.page.go_back()
    window.wait()
    assert focused_code(window) == 1


def test_patches_of_an_image_by_arrows(small, window):
    picture = small.image(12)
    window.visit("#/image/12")
    window.page.locator('.image-stage .patches:not(.code-map) [data-patch="0"]').focus()
    for key, patch in (("ArrowRight", 1), ("ArrowDown", 1 + picture["columns"]), ("ArrowLeft", picture["columns"])):
        window.page.keyboard.press(key)
        assert window.page.evaluate("Number(document.activeElement.dataset.patch)") == patch
        code = picture["index"][patch]
        assert window.lit() == [other for other, found in enumerate(picture["index"]) if found == code]
    window.page.keyboard.press("ArrowLeft")  # The end of the row is no way to the row above.
    assert window.page.evaluate("Number(document.activeElement.dataset.patch)") == picture["columns"]
    assert window.address() == "#/image/12"


def test_search_help_and_escape(window):
    window.visit("#/code/3")
    window.page.keyboard.press("/")
    window.page.keyboard.type("jj?")
    assert window.address() == "#/code/3" and not window.page.locator("dialog").count(), "keys in a field are letters"
    window.page.locator("header input").fill("17")
    window.press("Enter")
    assert window.address() == "#/code/17"
    window.page.keyboard.press("/")
    window.page.keyboard.type("dolphin")
    window.press("Enter")
    assert window.address() == "#/words?search=dolphin"
    assert window.page.locator(".word").count() == 1
    window.page.keyboard.press("/")
    assert window.page.evaluate("document.activeElement.closest('main') !== null"), "the page's own search comes first"
    window.page.keyboard.press("Escape")
    window.page.keyboard.press("?")
    assert window.page.locator("dialog").is_visible()
    window.page.keyboard.press("Escape")
    window.page.wait_for_selector("dialog", state="detached")
    window.page.keyboard.press("g")
    window.press("m")
    assert window.address() == "#/map"


def test_the_map_by_arrows(window):
    window.visit("#/map")
    window.page.locator("canvas").focus()
    window.page.keyboard.press("ArrowRight")
    first = int(window.page.locator("canvas").get_attribute("data-selected"))
    window.page.keyboard.press("ArrowRight")
    second = int(window.page.locator("canvas").get_attribute("data-selected"))
    assert first != second
    assert all(0 <= code < NUM_CODES for code in (first, second))
    x = window.page.evaluate("([a, b]) => explorer.loadWall().then(wall => wall.x[b] - wall.x[a])", [first, second])
    assert x > 0
    assert window.address() == f"#/map?code={second}"
    window.press("Enter")
    assert window.address() == f"#/code/{second}"


def test_back_goes_where_one_was(open_window, big):
    window = open_window(big)
    window.visit()
    window.page.get_by_label("sort by").select_option("number")
    window.page.locator('.tile[data-code="3000"]').scroll_into_view_if_needed()
    top = window.page.evaluate("scrollY")
    assert top > 1000
    window.click('.tile[data-code="3000"]')
    assert window.page.evaluate("scrollY") == 0
    window.page.go_back()
    window.wait()
    assert window.page.evaluate("scrollY") == top
    assert focused_code(window) == 3000


def test_keys_of_one_letter_can_be_switched_off(window):
    window.visit("#/wall")
    window.press("?")
    window.page.get_by_label("keys of a single letter or sign").uncheck()
    window.press("Escape")
    for key in ("/", "g", "w", "?"):
        window.press(key)
    assert window.page.evaluate("document.activeElement.tagName") != "INPUT"
    assert window.page.locator("dialog").count() == 0
    window.visit("#/code/3")
    window.press("j")
    assert window.address() == "#/code/3", "it is remembered"
    window.press("ArrowRight")
    assert window.address() == "#/code/4"
    window.page.locator(".help").click()
    window.page.get_by_label("keys of a single letter or sign").check()
    window.press("Escape")
    window.press("j")
    assert window.address() == "#/code/5"


def test_a_skip_link_goes_to_the_first_tile(window):
    window.visit("#/wall")
    window.press("Tab")
    assert window.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    window.press("Enter")
    assert window.page.evaluate("document.activeElement.className").startswith("tile")
    assert window.address() in ("", "#/wall")


def test_a_lasso_lists_the_codes_it_encloses(window):
    window.visit("#/map")
    page = window.page
    box = page.locator("canvas").bounding_box()
    page.get_by_label("lasso").check()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in [*places[1:], places[0]]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    assert page.locator(".map-enclosed a").count() == NUM_CODES
    assert page.locator(".map-enclosed h2").inner_text() == f"{NUM_CODES} codes enclosed"
    page.get_by_label("lasso").uncheck()
    assert page.locator(".map-enclosed a").count() == 0


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
