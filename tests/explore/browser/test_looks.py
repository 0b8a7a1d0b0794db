"""At phone width, in the dark, with captions that mean harm: every page stands."""

import re

import pytest
from bundle_by_rule import HOSTILE_CAPTIONS

PAGES = ["#/wall", "#/code/3", "#/code/9", "#/image", "#/image/1", "#/image/12", "#/words", "#/words/dolphin"]
PAGES += [f"#/words/{'w' * 200}", "#/code/1000", "#/nowhere"]


def brightness(colour: str) -> float:
    """0 to 255 of a colour as the browser computes it, rgb(r, g, b)."""
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(small, open_window, scheme):
    """Texts stand out from what they stand on: the contrast that WCAG asks of small text, of every element."""
    window = open_window(small, color_scheme=scheme)
    for address in PAGES:
        window.visit(address)
        ground = window.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (brightness(ground) < 60) == (scheme == "dark"), f"{address}: {ground}"
        weak = window.page.evaluate(CONTRASTS)
        assert not weak, f"{address}: {weak}"


def test_a_phone_shows_the_first_tile_at_once(small, open_window):
    window = open_window(small, viewport={"width": 360, "height": 740}, is_mobile=True)
    window.visit("#/wall")
    box = window.page.locator(".tile").first.bounding_box()
    assert box["y"] + box["height"] <= 740
    assert window.page.evaluate("document.documentElement.scrollWidth") <= 360


CONTRASTS = """() => {
  const SKIPPED = ".patches, [aria-disabled], svg, script, noscript";
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map((part) => (part /= 255) <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const groundOf = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parts(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.9) return colour;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest(SKIPPED)) continue;
    const [a, b] = [parts(getComputedStyle(element).color), groundOf(element)].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) weak.push(`${element.tagName} ${element.className} ${contrast.toFixed(2)}`);
  }
  return [...new Set(weak)];
}"""


def test_hostile_captions_are_text(small, window):
    window.visit("#/image/1")
    assert small.image(1)["captions"][1:] == HOSTILE_CAPTIONS
    captions = window.page.locator(".captions li")
    assert captions.count() == 1 + len(HOSTILE_CAPTIONS)
    assert captions.nth(1).inner_text() == HOSTILE_CAPTIONS[0], "markup is shown as it is written"
    assert window.page.locator(".captions").locator("script, img, a").count() == 0
    long = captions.nth(2)
    assert len(long.inner_text()) < 500
    long.get_by_text("show all").click()
    assert long.inner_text().startswith(HOSTILE_CAPTIONS[1])
    long.get_by_text("show less").click()
    assert len(long.inner_text()) < 500
    assert captions.nth(4).evaluate("caption => getComputedStyle(caption).direction") == "rtl"
    assert window.page.locator("h1").evaluate("heading => getComputedStyle(heading).direction") == "ltr"
    window.visit("#/words/%3Cb%3Ebold%3C%2Fb%3E")
    assert window.page.locator("h1").inner_text() == "<b>bold</b>"
    for address in ("#/words", "#/<img src=x onerror='window.executed=1'>", "#/words/%E0%A4%A"):
        window.visit(address)
    assert window.page.evaluate("window.executed") is None
