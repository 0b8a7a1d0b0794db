"""Texts, addresses and pictures that mean harm or are odd: nothing is executed, no page breaks, nothing leaks."""

import shutil

import pytest
from bundle_by_rule import NUM_CODES, write_bundle

from soho_fast.explore import bundle

MARKUP = "<img src=x onerror='window.executed = 1'><script>window.executed = 1</script>"
ODD = [
    MARKUP,
    "constructor",
    "__proto__",
    "toString",
    "javascript:window.executed=1",
    "a\0b",
    "\u202egnp.exe",
    "\ud800x",
]
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
    addresses = ["#/wall", "#/code/0", "#/code/1", "#/code/7", "#/image/1", "#/image", "#/words", "#/map"]
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


def test_a_long_address_is_answered_shortly(small, open_window):
    window = open_window(small)
    window.visit(f"#/code/{'a' * 20_000}")
    alert = window.page.locator("main [role=alert]")
    assert len(alert.inner_text()) < 500 and alert.inner_text().startswith("code: expected a number from 0 to 69")


def test_a_share_that_is_not_all_is_not_called_so(small, open_window):
    window = open_window(small)
    window.visit()
    told = window.page.evaluate("[1, 0.9996, 0.995, 0.96, 0.05, 0, null].map(explorer.formatPercent)")
    assert told == ["100 %", "99.9 %", "99.5 %", "96 %", "5.0 %", "0.0 %", "\N{EN DASH}"]


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


def test_pages_that_were_left_keep_nothing(small, open_window):
    """Scripts of data, and maps with their pictures, go when they have served."""
    window = open_window(small)
    window.visit()
    session = window.page.context.new_cdp_session(window.page)
    session.send("Performance.enable")

    def count() -> int:
        session.send("HeapProfiler.collectGarbage")
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "JSEventListeners")

    def wander() -> None:
        for page in ("map", "code/3", "code/66", "image/1"):
            window.page.evaluate("page => { location.hash = `#/${page}`; }", page)
            window.wait()
            window.page.wait_for_timeout(100)

    wander()
    before = count()
    for _ in range(6):
        wander()
    assert count() < before + 60, "a map has that many pictures"
    assert window.page.locator("script[src^='data/']").count() == 0


def test_colours_that_the_system_forces_leave_charts_and_lit_cells(small, open_window):
    window = open_window(small, forced_colors="active")
    for address, selector in (("#/code/3", ".interval-range"), ("#/code/3", ".heat[style*='opacity: 1']")):
        window.visit(address)
        one = window.page.locator(selector).first
        colour = one.evaluate("one => getComputedStyle(one).backgroundColor")
        assert colour != window.page.evaluate("getComputedStyle(document.body).backgroundColor"), selector
    window.visit("#/image/12?code=62")
    dark = window.page.locator(".patch:not(.lit)").first
    assert dark.evaluate("patch => getComputedStyle(patch).backgroundColor") == "rgba(0, 0, 0, 0.58)"


def test_from_the_first_key_to_the_last_link_and_out_again(small, open_window):
    """The tabulator comes to all that can be used, sees where it is, and leaves the page."""
    window = open_window(small)
    for address in ("#/code/3", "#/image/12", "#/words/dolphin", "#/map"):
        window.visit(address)
        stops = window.page.evaluate(
            "[...document.querySelectorAll('a[href], button, input, select, textarea, canvas, summary')]"
            ".filter((one) => one.tabIndex >= 0 && one.checkVisibility()).length"
        )
        seen = set()
        for _ in range(stops + 3):
            window.page.keyboard.press("Tab")
            found = window.page.evaluate(
                "(() => { const one = document.activeElement; if (one === document.body) return null;"
                " one.dataset.stop ??= String(Math.random());"
                " return [one.dataset.stop, getComputedStyle(one).outlineStyle, one.tagName]; })()"
            )
            if found:
                seen.add(found[0])
                assert found[1] != "none" or found[2] == "INPUT", f"{address}: {found}"
        assert len(seen) == stops, address


def test_a_copy_with_wrong_kinds_of_values_says_that_it_is_damaged(small, tmp_path, open_window):
    copy = shutil.copytree(small.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.jpg"))
    window = open_window(copy)
    damage = {
        "#/wall": ("meta", {**small.meta, "licences": None}),
        "#/code/3": ("codes-0000", [{**small.code(number), "nearest": None} for number in range(64)]),
        "#/image/1": ("images-0000", [{**small.image(number), "captions": None} for number in range(256)]),
        "#/words": ("words", {"word": 1}),
    }
    for address, (name, value) in damage.items():
        before = (copy / "data" / f"{name}.js").read_text()
        bundle.write_value(copy, name, value)
        window.visit(address)
        text = window.page.locator("main [role=alert]").inner_text()
        assert text.startswith("the data of this page are damaged (") and text.endswith("build the explorer again")
        (copy / "data" / f"{name}.js").write_text(before)
    window.complaints[:] = [text for text in window.complaints if "Failed to load resource" not in text]
