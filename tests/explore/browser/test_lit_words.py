"""Words light up their patches, whether they are pointed at, have the focus or are touched; codes have colours."""

import re

CHIPS = "chips => chips.map(chip => [chip.children[1].textContent, chip.firstChild.style.background])"
COLOURS = """patches => patches.map(({ dataset, style }, place) =>
  [Number(dataset.code), style.getPropertyValue("--colour"), getComputedStyle(patches[place]).backgroundColor])"""


def codes_of(made, word):
    return [entry["code"] for one in made.read("words") if one["word"] == word for entry in one["codes"]]


def patches_of(picture, codes):
    return [patch for patch, code in enumerate(picture["index"]) if code in codes]


def shown_images(window):
    """The numbers of the images of a word's page, and the selector of each."""
    hrefs = window.page.eval_on_selector_all(".word-images a[href*='image']", "links => links.map(link => link.hash)")
    numbers = [int(re.match(r"#/image/(\d+)\?word=dolphin$", href)[1]) for href in hrefs]
    return {number: f".word-images > :nth-child({place})" for place, number in enumerate(numbers, 1)}


def test_a_words_page_lights_its_patches_in_images(small, window):
    codes = codes_of(small, "dolphin")
    window.visit("#/words/dolphin")
    images = shown_images(window)
    assert len(images) == 12
    first = {small.code(code)["nearest"][0][0] for code in codes[:8]}
    assert first <= set(images), "of each code the image of its nearest patch"

    def assert_lit(lit):
        for number, selector in images.items():
            assert window.lit(selector) == patches_of(small.image(number), lit), number

    assert_lit(codes)
    assert all(window.lit(selector) for selector in images.values())
    card = window.page.locator(".word-code").nth(1)
    card.hover()
    assert_lit([codes[1]])
    window.page.locator("h1").hover()
    assert_lit(codes)
    card.focus()
    assert_lit([codes[1]])
    card.blur()
    assert_lit(codes)
    number, selector = next(iter(images.items()))
    patch = window.page.locator(f"{selector} .patch").last
    patch.hover(position={"x": 3, "y": 3})
    code = small.image(number)["index"][-1]
    assert_lit([code])
    lit_cards = window.page.eval_on_selector_all(
        ".word-code.lit", "cards => cards.map(card => Number(card.dataset.code))"
    )
    assert lit_cards == [other for other in codes if other == code]


def test_a_caption_lights_the_patches_of_its_words(small, window):
    picture = small.image(12)
    word = re.match(r"a (\w+) and more", picture["captions"][0])[1]
    expected = patches_of(picture, codes_of(small, word))
    assert 0 < len(expected) < len(picture["index"])
    window.visit("#/image/12")
    said = window.page.locator(".captions .said")
    assert said.all_inner_texts() == [word], "only words that codes are associated with"
    said.hover()
    assert window.lit() == window.lit(".code-map") == expected
    assert window.page.locator(".status").inner_text().startswith(f"{word} · {len(expected)} patch")
    window.page.locator("h1").hover()
    assert window.lit() == []
    said.focus()
    assert window.lit() == expected
    said.blur()
    assert window.lit() == []
    said.click()
    window.page.locator("h1").hover()
    window.page.locator("h1").click()
    assert window.lit() == expected, "a click keeps it lit"
    assert window.address() == f"#/image/12?word={word}" and said.get_attribute("aria-pressed") == "true"
    window.page.reload()
    window.wait()
    assert window.lit() == expected
    said.click()
    window.page.locator("h1").hover()
    said.blur()
    assert window.lit() == [] and window.address() == "#/image/12"


def test_which_words_of_a_text_are_found(window):
    """The longest first, whole words of any script, in any case; signs of a pattern are letters like others."""
    window.visit()
    found = window.page.evaluate(
        """() => {
          const known = new Map(Object.entries(
            { bear: 1, "polar bear": 2, bears: 1, "a.b": 3, "\u05e9\u05dc\u05d5\u05dd": 4 }));
          const mark = (text, value) => `<${text}=${value}>`;
          const texts = ["A Polar bear; bears, bearskin", "a.b axb", "(\u05e9\u05dc\u05d5\u05dd)", "none"];
          return texts.map((text) => explorer.markWords(text, known, mark).join(""));
        }"""
    )
    assert found == ["A <Polar bear=2>; <bears=1>, bearskin", "<a.b=3> axb", "(<\u05e9\u05dc\u05d5\u05dd=4>)", "none"]


def lch(colour):
    """Lightness, chroma and hue of oklch(50% 0.14 200), which a browser also writes as oklch(0.5 0.14 200)."""
    lightness, percent, chroma, hue = re.match(r"oklch\(([\d.]+)(%?) ([\d.]+) ([\d.]+)\)$", colour).groups()
    return [round(float(lightness) * (1 if percent else 100), 1), float(chroma), float(hue)]


def test_a_code_has_one_colour_in_all_images_and_a_word_nearly_one(small, window):
    wall = small.read("wall")
    colours, drawn = {}, {}
    for number in (12, 13, 14, 2, 40):
        window.visit(f"#/image/{number}")
        for code, colour, background in window.page.eval_on_selector_all(".code-map .patch", COLOURS):
            assert colours.setdefault(code, colour) == colour and drawn.setdefault(code, background) == background
    assert len(colours) > 20 and len(set(colours.values())) == len(colours), "no two codes have the same one"
    assert len(set(drawn.values())) > 20, "the browser draws them"
    by_word = {}
    for code, colour in colours.items():
        by_word.setdefault(wall["word"][code], []).append(lch(colour))
    for _, chroma, _ in by_word.pop(None):
        assert chroma < 0.03, "nearly grey"
    assert max(map(len, by_word.values())) > 2
    for likes in by_word.values():
        lightness, chroma, hue = zip(*likes, strict=True)
        assert max(lightness) - min(lightness) <= 12 and min(chroma) > 0.1 and len(set(hue)) == 1
    assert len({likes[0][2] for likes in by_word.values()}) == len(by_word)


def test_the_legend_has_the_colours_of_the_patches_and_lights_them(small, window):
    wall, picture = small.read("wall"), small.image(12)
    window.visit("#/image/12")
    groups = {}
    for patch, code in enumerate(picture["index"]):
        groups.setdefault(wall["word"][code] or "no word", []).append(patch)
    legend = window.page.eval_on_selector_all(".chips .chip", CHIPS)
    assert {name for name, _ in legend} == set(groups)
    colour_of = {code: colour for code, colour, _ in window.page.eval_on_selector_all(".code-map .patch", COLOURS)}
    for place, (name, colour) in enumerate(legend):
        chip = window.page.locator(".chips .chip").nth(place)
        for act in (chip.hover, chip.focus):
            window.page.locator("h1").hover()
            act()
            assert window.lit() == window.lit(".code-map") == groups[name]
            chip.blur()
        likes = [lch(colour_of[picture["index"][patch]]) for patch in groups[name]]
        assert lch(colour) in likes
        assert chip.inner_text().split("\n")[-1].endswith("patch" if len(groups[name]) == 1 else "patches")
