"""Texts, addresses and pictures that mean harm or are odd: nothing is executed, no page breaks, nothing leaks."""

import pytest
from bundle_by_rule import NUM_CODES, write_bundle

from soho_fast.explore import bundle

MARKUP = "<img src=x onerror='window.executed = 1'><script>window.executed = 1</script>"
ODD = [
    MARKUP, "constructor", "__proto__", "toString", "javascript:window.executed=1", "a\0b", "\u202egnp.exe",
    "\ud800x",
]  # fmt: skip
ODD += ["\N{GRINNING FACE}" * 50, "x y/z?a=b#c%00%", "w" * 10_000]
WEB = "https://example.org/a"
CREDIT = f"javascript:alert(1) {WEB} data:text/html,x https://[ https://\u202egro.elpmaxe {WEB}\u202elive"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A bundle whose every text is one of ODD."""
    made = write_bundle(tmp_path_factory.mktemp("odd"), NUM_CODES, 24)
    wall, words = made.read("wall"), made.read("words")
    wall["word"] = [word and ODD[code % len(ODD)] for code, word in enumerate(wall["word"])]
    codes = [made.code(code) for code in range(NUM_CODES)]
    for code in codes:
        rows = code["words"][:1]
        code["words"] = [{**row, "word": word} for row in rows for word in ODD]
    pictures = [made.image(number) for number in range(24)]
    for picture in pictures:
        picture |= {"name": MARKUP, "captions": ["", *ODD], "licences": [0]}
    meta = {**made.meta, "title": MARKUP, "sources": [{"name": MARKUP, "num_images": 24}]}
    meta["licences"] = [{"what": MARKUP, "credit": CREDIT, "licence": "l" * 10_000}]
    bundle.write_value(made.folder, "meta", meta)
    bundle.write_value(made.folder, "wall", wall)
    bundle.write_value(made.folder, "words", [{**words[0], "word": word, "codes": words[-1]["codes"]} for word in ODD])
    bundle.write_in_files(made.folder, "codes", codes, bundle.CODES_PER_FILE)
    bundle.write_in_files(made.folder, "images", pictures, bundle.IMAGES_PER_FILE)
    return bundle.Bundle(made.folder)


NAMELESS = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, canvas, [tabindex='0']")]
  .filter((one) => {
    const labels = [...(one.labels ?? [])].map((label) => label.textContent).join("");
    return !(one.getAttribute("aria-label") || one.textContent.trim() || one.title || labels.trim());
  }).map((one) => one.outerHTML.slice(0, 200))"""
PROTOCOLS = "() => [...new Set([...document.querySelectorAll('a[href]')].map((link) => link.protocol))].sort()"


@pytest.mark.parametrize("width", [320, 1200])
def test_odd_texts_are_texts_on_every_page(odd, open_window, width):
    window = open_window(odd, viewport={"width": width, "height": 800})
    addresses = ["#/wall", "#/code/0", "#/code/1", "#/code/7", "#/image/1", "#/image", "#/words"]
    for address in [*addresses, *(f"#/words/{word}" for word in ODD[1:4])]:
        window.visit(address)
        assert not window.page.locator(".error").count(), f"{address}: {window.text()}"
        assert window.page.evaluate("document.documentElement.scrollWidth") <= width, address
        assert window.page.evaluate(PROTOCOLS) in (["file:"], ["file:", "https:"]), address
        assert window.page.evaluate(NAMELESS) == [], address
        assert window.page.evaluate("window.executed") is None


def test_a_link_shows_where_it_goes(odd, open_window):
    window = open_window(odd)
    window.visit("#/image/1")
    links = window.page.eval_on_selector_all(
        ".licences a", "links => links.map((link) => [link.href, link.textContent])"
    )
    assert links == [[WEB, WEB], [WEB, WEB]], "neither what is no address, nor what turns the direction of its text"


@pytest.mark.parametrize("shape", [(1, 40), (40, 1)])
def test_long_images_are_seen_in_some_windows(tmp_path, open_window, shape):
    rows, columns = shape
    made = write_bundle(tmp_path / "long", NUM_CODES, 3)
    picture = made.image(0) | {"width": 4 * columns, "height": 4 * rows, "rows": rows, "columns": columns}
    picture |= {"patches_high": rows, "patches_wide": columns, "index": [3] * 40, "masked": None}
    bundle.write_in_files(made.folder, "images", [picture, made.image(1), made.image(2)], 256)
    window = open_window(made, viewport={"width": 1200, "height": 900})
    window.visit("#/image/0")
    box = window.page.locator(".patches").first.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(columns / rows, rel=0.02)
    assert 80 <= box["width"] <= 1200 and box["height"] < 4 * 900
