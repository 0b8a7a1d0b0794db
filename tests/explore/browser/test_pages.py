"""Every page in a real browser: what it shows is what the bundle says, and its address brings it back."""

import itertools

import pytest
from bundle_by_rule import EDGES, LICENCES, NUM_CODES, UNCLAIMED, is_dead

PAGES = {
    "#/wall": "Wall",
    "#/wall?sort=near&show=active&word=dol": "Wall",
    "#/code/3": "gravel, code 3",
    "#/code/69": "Code 69",
    "#/image": "Images",
    "#/image/12?code=62": "Image 12",
    "#/image/1": "Image 1",
    "#/words": "Words",
    "#/words?filter=without&sort=images": "Words",
    "#/words/dolphin": "dolphin",
}


@pytest.mark.parametrize("over", ["file", "http"])
def test_every_page_is_restored_by_its_address(small, small_over_http, open_window, over):
    window = open_window(small, base=small_over_http if over == "http" else None)
    # The pages do the same on a server; some of them show that the data come from there too.
    for address, title in list(PAGES.items())[:: 3 if over == "http" else 1]:
        window.visit(address)
        assert window.page.title() == f"{title} · By rule"
        assert not window.page.locator(".error").count(), f"{address}: {window.text()}"
        text = window.text()
        window.page.reload()
        window.wait()
        assert (window.address(), window.text()) == (address, text)


def test_pages_that_the_app_serves_lead_back_to_it(small_over_http, small, window, open_window):
    served = open_window(small, base=f"{small_over_http}?app")
    served.visit("#/code/3")
    served.click('[data-kind="nearest"] .occurrence')
    assert served.page.get_by_text("← App").get_attribute("href") == "../"
    window.visit("#/code/3")
    assert window.page.get_by_text("← App").count() == 0


def codes_on_the_wall(window):
    return window.page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => Number(tile.dataset.code))")


def test_the_wall_has_a_tile_a_code(small, window):
    window.visit()
    wall = small.read("wall")
    expected = sorted(range(NUM_CODES), key=lambda code: (-(wall["lift_low"][code] or 0), -wall["tokens"][code], code))
    assert codes_on_the_wall(window) == expected, "the surest words first, then the most frequent codes"
    dead = window.page.eval_on_selector_all(".tile.unused", "tiles => tiles.map(tile => Number(tile.dataset.code))")
    assert sorted(dead) == [code for code in range(NUM_CODES) if is_dead(code)]


@pytest.mark.parametrize("patches", ["alone", ""])
def test_a_tile_is_the_patch_of_its_medoid(small, window, patches):
    """Which part of the picture lies under the tile, or under the outline of its patch, as the browser reckons."""
    window.visit(f"#/wall?sort=number&patches={patches}")
    for code in (0, 13, 40, 42):
        picture, row, column, _, rows, columns = small.read("wall")["medoid"][code]
        tile = window.page.locator(f'.tile[data-code="{code}"] .crop:first-child')
        window.page.locator(f'.tile[data-code="{code}"]').scroll_into_view_if_needed()
        window.page.wait_for_selector(f'.tile[data-code="{code}"] .crop[style*="url("]')
        image, *style = tile.evaluate(
            "({ style, firstChild }) => [style.backgroundImage, style.backgroundSize, style.backgroundPosition, "
            "firstChild ? `${firstChild.style.left} ${firstChild.style.top} ${firstChild.style.width}` : '0 0 100']"
        )
        assert f"{picture:06d}.jpg" in image
        # In widths of the tile.
        size, position, outline = ([float(part.rstrip("%")) / 100 for part in text.split()] for text in style)
        left, top = ((length - 1) * place for length, place in zip(size, position, strict=True))
        patch = outline[2]
        assert patch == (1 if patches == "alone" else 0.5)
        assert [length / patch for length in size] == pytest.approx([columns, rows], abs=1e-3)
        assert [(left + outline[0]) / patch, (top + outline[1]) / patch] == pytest.approx([column, row], abs=1e-3)
        if not patches:
            assert left >= -1e-6 and left + 1 <= size[0] + 1e-6, "nothing beyond the picture is shown"


WHOLE = """({ style, firstChild: { style: patch } }) => [
  style.backgroundImage, style.width, style.aspectRatio, patch.left, patch.top, patch.width, patch.height,
]"""


def test_a_tile_and_a_code_show_where_in_the_whole_image_it_lies(small, window):
    """In wide, high and square images, the patch lit."""
    medoids = small.read("wall")["medoid"]
    codes = [
        next(code for code, medoid in enumerate(medoids) if medoid and medoid[0] % 3 == shape) for shape in range(3)
    ]
    for address, selector, side in (
        ("#/wall", '.tile[data-code="{}"] .whole', 38),
        ("#/code/{}", ".portrait .whole", 240),
    ):
        for code in codes:
            picture, row, column, _, rows, columns = medoids[code]
            window.visit(address.format(code))
            window.page.locator(selector.format(code).removesuffix(" .whole")).scroll_into_view_if_needed()
            window.page.wait_for_selector(selector.format(code) + '[style*="url("]')
            image, width, ratio, *patch = window.page.locator(selector.format(code)).evaluate(WHOLE)
            assert f"{picture:06d}.jpg" in image
            # Chromium writes a ratio as "1.46667 / 1".
            assert float(ratio.split("/")[0]) == pytest.approx(columns / rows, abs=1e-4)
            assert float(width.rstrip("px")) == pytest.approx(side * min(1, columns / rows), abs=1e-2)
            shares = [float(part.rstrip("%")) / 100 for part in patch]
            assert shares == pytest.approx([column / columns, row / rows, 1 / columns, 1 / rows], abs=1e-4)


def test_the_wall_sorts_filters_and_remembers(small, window):
    window.visit()
    wall = small.read("wall")

    def lowest_first(name):
        values = wall[name]
        known = [code for code in range(NUM_CODES) if values[code] is not None]
        return sorted(known, key=lambda code: (values[code], -wall["tokens"][code], code))

    sort = window.page.get_by_label("sort by")
    sort.select_option("near")
    assert codes_on_the_wall(window) == lowest_first("near_distance")
    sort.select_option("spread")
    assert codes_on_the_wall(window)[:63] == lowest_first("spread"), "codes without a spread are last"
    sort.select_option("number")
    window.page.get_by_text("unused", exact=True).first.click()
    assert codes_on_the_wall(window) == [9, 19, 29, 39, 49, 59, 69]
    window.page.get_by_text("active", exact=True).first.click()
    window.page.get_by_label("word", exact=True).fill("OLLI")
    expected = [code for code in range(NUM_CODES) if wall["word"][code] == "lollipop"]
    assert expected and codes_on_the_wall(window) == expected
    assert window.address() == "#/wall?sort=number&show=active&word=OLLI"

    window.click(f'.tile[data-code="{expected[1]}"]')
    assert window.address() == f"#/code/{expected[1]}"
    window.page.go_back()
    window.wait()
    assert codes_on_the_wall(window) == expected
    window.page.get_by_label("word", exact=True).fill("no such word")
    assert codes_on_the_wall(window) == [] and "No code is like that." in window.text()


@pytest.mark.parametrize("number", [12, 13, 14, 2])
def test_lit_patches_are_those_of_the_index_map(small, window, number):
    """In pictures wide, high and square, one of them with a patch that has no code."""
    picture = small.image(number)
    index = picture["index"]
    window.visit(f"#/image/{number}")
    shown = window.page.eval_on_selector_all(
        ".image-stage .patches:not(.code-map) .patch",
        "patches => patches.map(patch => [Number(patch.dataset.patch), Number(patch.dataset.code)])",
    )
    assert shown == [[patch, code] for patch, code in enumerate(index) if code is not None]
    assert window.lit() == []
    for patch in (1, len(index) - 1):
        code = index[patch]
        expected = [other for other, found in enumerate(index) if found == code]
        for view in (".image-stage .patches:not(.code-map)", ".code-map"):
            window.page.locator("h1").hover()
            window.page.locator(f'{view} [data-patch="{patch}"]').hover(position={"x": 5, "y": 5})
            assert window.lit() == window.lit(".code-map") == expected
        assert f"code {code} " in window.page.locator(".status").inner_text()
    window.page.locator("h1").hover()
    assert window.lit() == []


@pytest.mark.parametrize("number", [12, 13, 14])
def test_patches_lie_where_they_are_in_the_picture(small, open_window, number):
    """Also where the picture ends within a patch: what lies under a pixel is the patch of its row and column."""
    picture = small.image(number)
    window = open_window(small, viewport={"width": 1200, "height": 1600})
    window.visit(f"#/image/{number}")
    box = window.page.locator(".image-stage .patches img").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(picture["width"] / picture["height"], rel=0.01)
    for row in range(picture["rows"]):
        for column in range(picture["columns"]):
            # Near the upper left corner of the patch, and near the lower right one or the picture's end.
            for place in (0.05, 0.95):
                right = min(column + place, picture["patches_wide"] - 0.05)
                down = min(row + place, picture["patches_high"] - 0.05)
                x = box["x"] + right / picture["patches_wide"] * box["width"]
                y = box["y"] + down / picture["patches_high"] * box["height"]
                found = window.page.evaluate(
                    "([x, y]) => Number(document.elementFromPoint(x, y)?.closest('.patch')?.dataset.patch ?? -1)",
                    [x, y],
                )
                assert found == row * picture["columns"] + column


def test_an_occurrence_opens_its_image_with_its_code_lit(small, window):
    code = small.code(13)
    window.visit("#/code/13")
    for kind in ("nearest", "quantiles", "random"):
        links = window.page.eval_on_selector_all(
            f'[data-kind="{kind}"] .occurrence', "links => links.map(link => link.getAttribute('href'))"
        )
        assert links == [f"#/image/{occurrence[0]}?code=13" for occurrence in code[kind][:12]]
    first = code["nearest"][0]
    window.click('[data-kind="nearest"] .occurrence')
    picture = small.image(first[0])
    lit = window.lit()
    assert lit == [patch for patch, found in enumerate(picture["index"]) if found == 13]
    assert first[1] * picture["columns"] + first[2] in lit


def test_a_code_shows_its_numbers(small, window):
    code = small.code(3)
    window.visit("#/code/3")
    text = window.text()
    for shown in (f"{code['rank']} of {NUM_CODES}", "gravel", "\N{MULTIPLICATION SIGN} 9", "12 of 20", "100 tests"):
        assert shown in text
    assert window.page.locator("tr.unproven").all_inner_texts() == ["and\t3 of 60\t\N{MULTIPLICATION SIGN} 1.1\t"]
    bars = window.page.eval_on_selector_all(".bar", "bars => bars.map(bar => bar.title)")
    edges = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(EDGES)]
    assert bars == [f"{edge}: {count}" for edge, count in zip(edges, code["histogram"], strict=True)]
    heat = window.page.eval_on_selector_all(
        ".heat", "patches => patches.map(patch => parseFloat(patch.title.split(':')[1]))"
    )
    assert heat == code["positions"]
    near = window.page.eval_on_selector_all(".code-list a", "links => links.map(link => link.getAttribute('href'))")
    assert near == [f"#/code/{entry['code']}" for entry in code["neighbours"] + code["near"]]


def test_an_image_names_its_own_licence_only(window):
    for number, entry in ((12, LICENCES[0]), (13, LICENCES[1])):
        window.visit(f"#/image/{number}")
        expected = f"Images: {entry['what']}: {entry['credit']}; {entry['licence']}"
        assert window.page.locator(".licences").inner_text() == expected
    for address in ("#/wall", "#/code/3", "#/words/dolphin", "#/image"):
        window.visit(address)
        assert all(entry["credit"] in window.page.locator(".licences").inner_text() for entry in LICENCES)


def test_masked_patches_and_guesses(small, window):
    picture = small.image(12)
    window.visit("#/image/12")
    hidden = window.page.eval_on_selector_all(
        ".hidden-patch", "patches => patches.map(patch => Number(patch.dataset.patch))"
    )
    assert hidden == [entry["patch"] for entry in picture["masked"]["patches"]] != []
    guesses = window.page.locator(".guesses").first.inner_text().split()
    code = picture["masked"]["code"]
    assert guesses == [f"{code}", "·", "50", "%", "0", "·", "25", "%", "1", "·", "13", "%"]
    assert window.page.locator(".guesses").first.locator(".right").count() == 1
    window.visit("#/image/13")
    assert window.page.locator(".masked").count() == 0


def test_words_and_their_codes(small, window):
    words = small.read("words")
    window.visit("#/words")

    def shown():
        return window.page.eval_on_selector_all(".word", "rows => rows.map(row => row.dataset.word)")

    assert shown() == [word["word"] for word in words]
    window.page.get_by_text("without a code").click()
    assert sorted(shown()) == sorted(UNCLAIMED)
    assert window.address() == "#/words?filter=without"
    window.page.get_by_text("all", exact=True).click()
    window.page.get_by_label("search", exact=True).fill("dol")
    assert shown()[0] == "dolphin"
    window.page.keyboard.press("Enter")
    window.wait()
    assert window.address() == "#/words/dolphin"
    codes = window.page.eval_on_selector_all(".word-code", "links => links.map(link => Number(link.dataset.code))")
    expected = next(word["codes"] for word in words if word["word"] == "dolphin")
    assert codes == [entry["code"] for entry in expected] != []
    window.visit("#/words/of")
    assert "No code is associated with this word" in window.text()


def test_images_are_fetched_when_they_are_seen(big, open_window):
    window = open_window(big)
    asked = []
    window.page.on("request", lambda request: asked.append(request.url) if request.url.endswith(".jpg") else None)
    window.visit("#/wall?sort=number")
    window.page.wait_for_selector(".tile .crop[style*='url(']")
    window.page.wait_for_timeout(300)
    assert 0 < len(asked) < 300
    before = set(asked)
    window.page.locator('.tile[data-code="5000"]').scroll_into_view_if_needed()
    window.page.wait_for_selector('.tile[data-code="5000"] .crop[style*="url("]')
    picture = big.read("wall")["medoid"][5000][0]
    assert not any(f"{picture:06d}.jpg" in url for url in before)


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


@pytest.mark.parametrize("address", ["#/words?search=dolfin", "#/wall?word=dolfin", "#/words/dolfin"])
def test_a_word_that_is_not_there_leads_to_the_nearest(window, address):
    window.visit(address)
    links = window.page.locator("main .nothing a, main .notice a")
    assert (links.first.inner_text(), links.first.get_attribute("href")) == ("dolphin", "#/words/dolphin")
    window.visit(address.replace("dolfin", "qqqqqqqqqqqqqqq"))
    assert links.count() == 0 and window.page.locator("main .nothing, main .notice").count() == 1


def test_a_codes_heading_is_its_word(window):
    for address, heading in (("#/code/3", "gravel code 3"), ("#/code/69", "Code 69")):
        window.visit(address)
        assert window.page.locator("h1").inner_text() == heading
    window.visit("#/nowhere")
    assert window.page.locator("h1").inner_text() == "No such page"
