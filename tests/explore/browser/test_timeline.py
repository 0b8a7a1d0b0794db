"""The page of the timeline: curves that can be read, events, and the codes without a member."""

import pytest
from bundle_by_rule import is_dead, write_bundle

from soho_fast.explore import bundle

NUM_CODES = 90
EVENT = "resumed <img src=x onerror='window.executed = 1'>"


def _timeline() -> dict:
    unused = [None] * NUM_CODES
    unused[5], unused[3], unused[9] = 400, 300, 400
    return {
        "series": [
            {"name": "perplexity", "points": [[step, 10.0 + step / 100] for step in range(0, 1001, 20)]},
            {"name": "active codes", "points": [[0, 80], [500, 70], [1000, 60]]},
        ],
        "events": [[0, "the backbone is frozen"], [500, EVENT]],
        "reset": [0 if code % 2 else 10 * code for code in range(NUM_CODES)],
        "unused_since": unused,
        "num_snapshots": 5,
        "last_step": 1000,
        "sentences": ["Active codes: 60 at step 1,000; they fell from 80 to 60."],
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    made = write_bundle(tmp_path_factory.mktemp("trained"), NUM_CODES, 24)
    bundle.write_value(made.folder, "timeline", _timeline())
    return made


def test_each_curve_has_the_events_and_says_the_value_under_the_pointer(trained, open_window):
    window = open_window(trained)
    window.visit("#/timeline")
    page = window.page
    assert page.locator(".sentences li").all_inner_texts() == _timeline()["sentences"]
    for name, value in (("Perplexity", "step 500: 15"), ("Active codes", "step 500: 70")):
        chart = page.locator(f"section[aria-label='{name}'] svg")
        assert chart.locator(".curve").count() == 1 and chart.locator("line.event").count() == 2
        box = chart.bounding_box()
        event = chart.locator("line.event").nth(1).bounding_box()
        page.mouse.move(event["x"] + 1, box["y"] + box["height"] / 2)
        assert chart.locator(".readout").text_content() == value
    legend = page.locator(".events li").all_inner_texts()
    assert legend == ["step 0: the backbone is frozen", f"step 500: {EVENT}"]
    assert page.evaluate("window.executed") is None


def test_codes_without_a_member_are_listed_with_since_when(trained, open_window):
    window = open_window(trained)
    window.visit("#/timeline")
    rows = [row.split("\t") for row in window.page.locator(".unused tbody tr").all_inner_texts()]
    tokens = trained.read("wall")["tokens"]
    dead = [code for code in range(NUM_CODES) if not tokens[code] and code not in (3, 5, 9)]
    assert [int(row[0]) for row in rows] == [3, 5, 9, *dead], "those first that died first"
    assert rows[0][1:] == ["step 300", "step 0", str(tokens[3])]
    assert is_dead(dead[0]) and rows[3][1:] == ["used to the end", f"step {_timeline()['reset'][dead[0]]}", "0"]
    window.click(".unused tbody a")
    assert window.address() == "#/code/3"


def test_codes_that_died_come_before_those_that_never_lived(trained, open_window):
    seeded, unused = [0] * NUM_CODES, [None] * NUM_CODES
    unused[2], unused[4], unused[6] = 0, 700, 300
    bundle.write_value(trained.folder, "timeline", _timeline() | {"reset": seeded, "unused_since": unused})
    try:
        window = open_window(trained)
        window.visit("#/timeline")
        rows = [row.split("\t") for row in window.page.locator(".unused tbody tr").all_inner_texts()]
        assert [row[:2] for row in rows[:2]] == [["6", "step 300"], ["4", "step 700"]]
        assert rows[2][1] == "used to the end" and rows[-1][:2] == ["2", "step 0, its last reset"]
    finally:
        bundle.write_value(trained.folder, "timeline", _timeline())


def test_codes_that_were_seeded_again_are_links_the_last_first(trained, open_window):
    window = open_window(trained)
    window.visit("#/timeline")
    chips = window.page.locator(".resets a")
    assert chips.count() == 12 and chips.first.inner_text().split() == ["88", "step", "880"]
    window.page.locator(".resets + button").click()
    assert chips.count() == NUM_CODES // 2 - 1, "the even ones but 0"
    window.click(".resets a")
    assert window.address() == "#/code/88"
    window.visit("#/code/5")
    facts = dict(row.split("\n") for row in window.page.locator(".facts div").all_inner_texts())
    assert facts["last reset in training at"] == "step 0"
    assert facts["unused in training since"] == "step 400"
    window.visit("#/code/9")
    assert "unused in training since\nstep 400" in window.text(), "a dead code tells it too"


def test_of_one_state_alone_nothing_is_claimed(trained, open_window):
    bundle.write_value(trained.folder, "timeline", _timeline() | {"num_snapshots": 1, "unused_since": [None] * 90})
    try:
        window = open_window(trained)
        window.visit("#/timeline")
        rows = [row.split("\t") for row in window.page.locator(".unused tbody tr").all_inner_texts()]
        assert rows and {row[1] for row in rows} == {"not known"}
        assert "left one state of the codebook's usage alone" in window.text()
    finally:
        bundle.write_value(trained.folder, "timeline", _timeline())


def test_long_lists_are_shown_when_asked_for(trained, open_window):
    value = _timeline() | {"unused_since": list(range(1, NUM_CODES + 1))}
    bundle.write_value(trained.folder, "timeline", value)
    try:
        window = open_window(trained)
        window.visit("#/timeline")
        rows = window.page.locator(".unused tbody tr")
        assert rows.count() == 60
        window.page.get_by_role("button", name=f"show all {NUM_CODES}").click()
        assert rows.count() == NUM_CODES
    finally:
        bundle.write_value(trained.folder, "timeline", _timeline())


def test_what_is_not_known_is_said(trained, small, open_window):
    window = open_window(small)
    window.visit("#/timeline")
    assert "no run's log lay beside the model" in window.text()
    known = {"series": [], "events": [], "sentences": [], "num_snapshots": 1, "last_step": 0}
    unknown = {name: [None] * NUM_CODES for name in ("reset", "unused_since")}
    bundle.write_value(trained.folder, "timeline", known | unknown)
    try:
        window = open_window(trained)
        window.visit("#/timeline")
        assert "no run's log (log.jsonl) beside it" in window.text() and "not known" in window.text()
    finally:
        bundle.write_value(trained.folder, "timeline", _timeline())


def test_a_phone_shows_it_whole(trained, open_window):
    window = open_window(trained, viewport={"width": 390, "height": 800})
    window.visit("#/timeline")
    assert window.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert window.page.locator(".chart svg").first.bounding_box()["width"] > 250
