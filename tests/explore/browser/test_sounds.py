"""Clips of audio in the pages: seen as spectrograms, heard in parts."""

import shutil

import numpy as np
import pytest

from soho_fast.explore import Clip, build_from_arrays

RATE, PATCHES, CODES = 8000, 40, 3

# What is played: of each part its clip's first sample, begin, seconds, the samples of its clip, buttons pressed.
SPY = """
window.heard = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when, from, seconds) {
  const pressed = document.querySelectorAll('.play[aria-pressed="true"]').length;
  heard.push([this.buffer.getChannelData(0)[0], from, seconds, this.buffer.length, this.buffer.sampleRate, pressed]);
  return start.call(this, when, from, seconds);
};
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Eight clips of 0.8 s, whose first sample is their number / 16; code 0 is at the start alone, 2 is unused."""
    rng = np.random.default_rng(0)
    samples = 0.1 * rng.normal(size=(8, RATE * 8 // 10))
    samples[:, 0] = np.arange(8) / 16
    index = np.ones((8, 1, PATCHES), int)
    index[:, 0, 0] = 0
    folder = tmp_path_factory.mktemp("clips") / "explorer"
    images = [Clip(each, RATE) for each in samples]
    quiet = {"say": lambda line: None}
    return build_from_arrays(index=index, images=images, folder=folder, num_codes=CODES, window=11, **quiet)


def test_pages_of_clips_speak_of_clips(tmp_path, open_window):
    """On no page is a clip called an image, with captions and neighbours, and of an unused code."""
    rng = np.random.default_rng(0)
    index = rng.integers(2, size=(12, 1, PATCHES))
    index[:, 0, :2] = np.arange(12)[:, None] % 2 * np.array([0, 1])
    images = [Clip(0.1 * rng.normal(size=RATE), RATE) for _ in range(12)]
    more = {"captions": ["rain falls"] * 12, "num_codes": CODES, "licences": "CC0", "say": lambda line: None}
    window = open_window(build_from_arrays(index=index, images=images, folder=tmp_path / "explorer", **more))
    for address in ("#/wall", "#/code/0", "#/code/2", "#/words", "#/words/rain", "#/image", "#/image/3"):
        window.visit(address)
        labels = window.page.eval_on_selector_all("[aria-label]", "all => all.map(e => e.ariaLabel)")
        shown = " ".join([window.text(), window.page.title(), *labels]).lower()
        assert "image" not in shown.replace("go to a code by its number, or to a word", ""), address
    window.visit("#/image/99")
    assert "clip: expected a number from 0 to 11" in window.text()


def heard(window, count):
    """What was played, when it is `count` parts or more."""
    for _ in range(300):
        if len(found := window.page.evaluate("heard")) >= count:
            return found
        window.page.wait_for_timeout(50)
    raise AssertionError(f"{len(found)} of {count} parts were played")


def test_windows_of_a_code_are_seen_and_heard(clips, open_window):
    window = open_window(clips)
    window.page.add_init_script(SPY)
    window.visit("#/code/0")
    assert window.page.locator("header nav a").all_inner_texts() == ["Wall", "Clips"]
    tile = window.page.locator(".occurrence .crop").first
    wide, high = tile.evaluate("e => e.style.backgroundSize").split()
    assert float(wide.rstrip("%")) == pytest.approx(100 * PATCHES / 11, rel=1e-4) and high == "100%"
    outlined = tile.locator(".crop-patch").evaluate("e => [e.style.left, e.style.height]")
    assert outlined == ["0%", "100%"], "the first patch, of all frequencies"
    number = int(window.page.locator(".occurrence").first.get_attribute("href").split("/")[2].split("?")[0])
    window.page.locator(".occurrences .play").first.click()
    ((first, start, seconds, length, rate, pressed),) = heard(window, 1)
    assert (first, start, length, rate, pressed) == (number / 16, 0, RATE * 8 // 10, RATE, 1)
    assert seconds == pytest.approx(0.8 * 11 / PATCHES)
    window.page.locator('.play[aria-pressed="true"]').wait_for(state="detached")
    window.page.get_by_label("play all: At random").click()
    assert len({part[0] for part in heard(window, 9)[1:]}) == 8, "all of them, one after another"


def test_pressed_again_and_again_it_plays_once(clips, open_window):
    window = open_window(clips)
    window.page.add_init_script(SPY)
    window.visit("#/code/0")
    window.page.get_by_label("play all: At random").evaluate("e => { e.click(); e.click(); e.click(); }")
    heard(window, 1)
    window.page.wait_for_timeout(100)
    assert len(heard(window, 1)) == 1, "the next part waits for this one"


def test_a_page_that_is_left_falls_silent(clips, open_window):
    """Also between two parts, and while the next page is still loading."""
    window = open_window(clips)
    window.page.add_init_script(SPY)
    window.visit("#/code/0")
    window.page.get_by_label("play all: At random").click()
    heard(window, 1)
    count = window.page.evaluate(
        "new Promise((resolve) => {"
        "  explorer.pages.get('wall').show = () => new Promise(() => {});"  # A page that does not come.
        "  location.hash = '#/wall';"
        "  setTimeout(() => resolve(heard.length), 400);"
        "})"
    )
    assert count == 1


def test_a_damaged_clip_is_told(clips, open_window, tmp_path):
    folder = shutil.copytree(clips, tmp_path / "explorer")
    (folder / "data/sound-000003.js").write_text("")
    window = open_window(folder)
    window.visit("#/image/3")
    window.page.get_by_label("play the clip").click()
    window.page.get_by_text("data/sound-000003.js is missing or damaged").wait_for()


def test_a_clip_is_heard_as_a_whole(clips, open_window):
    window = open_window(clips, viewport={"width": 390, "height": 800})
    window.page.add_init_script(SPY)
    window.visit("#/image/3?code=0")
    assert window.page.locator("h1").inner_text() == "Clip 3"
    assert window.lit() == window.lit(".code-map") == [0]
    assert window.page.locator(".patch").first.bounding_box()["width"] >= 11, "a long clip is scrolled"
    assert window.page.evaluate("document.documentElement.scrollWidth") <= 390
    window.page.get_by_label("play the clip").click()
    [(first, start, seconds, *_)] = heard(window, 1)
    assert (first, start, seconds) == (3 / 16, 0, pytest.approx(0.8))
    window.visit("#/wall")
    assert "clip of audio" in window.text() and "8 clips" in window.text()
