"""Foils of the demo's captions are false: all that a text claims is parsed here from scratch and compared with the
scene, captions beside them."""

import re

import numpy as np
import pytest
from test_captions import MENTION, NOUN_PATTERN, NOUNS, NUMBERS

from soho_fast.data.foils import KINDS, Foils
from soho_fast.data.mini.captions import write_captions
from soho_fast.data.mini.concepts import COLOURS

COLOUR = "|".join(COLOURS)
THING = rf"an? (?P<{{}}>{NOUN_PATTERN})\b"
SIDE_OF = {
    "to the left of": "left", "on the left side of": "left", "left of": "left", "above": "up", "over": "up",
    "to the right of": "right", "on the right side of": "right", "right of": "right", "below": "down", "under": "down",
}  # fmt: skip
RELATION = re.compile(rf"{THING.format('first')} (?:is |sits )?(?P<how>{'|'.join(SIDE_OF)}) {THING.format('second')}")
WHERE = (
    r"(?P<where{0}>in the (?:top|bottom) (?:left|right) corner|on the (?:left|right)(?! side)|at the (?:top|bottom))"
)
PLACES = [
    re.compile(rf"{THING.format('thing')} {WHERE.format('')}"),
    re.compile(rf"{WHERE.format('')} {THING.format('thing')}"),
]
GROUND = re.compile(rf"\b({COLOUR}) (?:background|wall)|\bon ({COLOUR})(?:$|,)")


def claims(text, scene):
    """Whether each thing that a lower-case text says is true of a scene."""
    for number, noun in MENTION.findall(text):
        kind, what = NOUNS[noun]
        members = sum(item.name == what if kind == "name" else item.concept.category == what for item in scene.objects)
        yield NUMBERS.get(number, 1) == members
    for said in re.findall(r"\b(one|two|three|four) (?:thing|object)s?\b", text):
        yield NUMBERS[said] == len(scene.objects)
    for match in GROUND.finditer(text):
        yield scene.background.colour in match.groups()
    at = {item.name: item for item in scene.objects}
    for match in RELATION.finditer(text):
        first, second = (at.get(NOUNS[match[name]][1]) for name in ("first", "second"))
        if first and second:  # else the mention is false
            dx, dy = first.x - second.x, first.y - second.y
            yield {"left": dx < 0, "right": dx > 0, "up": dy < 0, "down": dy > 0}[SIDE_OF[match["how"]]]
    placed = [list(pattern.finditer(text)) for pattern in PLACES]
    # "a dog on the left, ..." and "on the left a dog, ...": a caption has one of both orders throughout.
    for match in placed[text.startswith(("in the", "on the", "at the"))] if any(placed) else []:
        thing = at.get(NOUNS[match["thing"]][1])
        sides = re.findall("left|right|top|bottom", match["where"])
        if thing:
            yield all(
                {"left": thing.x < 0.36, "right": thing.x > 0.64, "top": thing.y < 0.36, "bottom": thing.y > 0.64}[each]
                for each in sides
            )


@pytest.fixture(scope="module")
def captioned(full_scenes):
    """Scenes with their captions, of which some hundred are held out."""
    return [(scene, write_captions(scene, 0)) for scene in full_scenes[0][:600] + full_scenes[1][:300]]


@pytest.fixture(scope="module")
def foils(captioned):
    return Foils([caption for _, captions in captioned for caption in captions])


@pytest.mark.parametrize("kind", KINDS)
def test_no_foil_is_true(captioned, foils, kind):
    rng, made = np.random.default_rng(0), []
    for scene, captions in captioned:
        for caption in captions:
            assert all(claims(caption.lower(), scene)), (caption, "the judge is wrong")
            foil = foils.make(caption, captions, rng, [kind], as_often=False)
            if foil is not None:
                assert foil.kind == kind
                assert not all(claims(foil.text.lower(), scene)), (caption, foil)
                made.append(foil)
    assert len(made) > 150, "or there is nothing to see"


def test_the_words_alone_do_not_tell_a_foil(captioned, foils):
    """Each word is taken for another about as often as the other way round: the rarer number is not the false one."""
    rng, flows = np.random.default_rng(0), {}
    for _ in range(3):
        for _, captions in captioned:
            for caption in captions:
                if foil := foils.make(caption, captions, rng, ["numbers", "sides"]):
                    flows[foil.before, foil.after] = flows.get((foil.before, foil.after), 0) + 1
    for first, second in (("two", "three"), ("left", "right"), ("top", "bottom"), ("above", "below")):
        there, back = flows[first, second], flows[second, first]
        assert min(there, back) > 30 and 0.6 < there / back < 1.67, (first, second, there, back)


def test_foils_are_of_all_kinds(captioned, foils):
    rng = np.random.default_rng(0)
    made = [foils.make(caption, captions, rng) for _, captions in captioned for caption in captions]
    counts = {kind: sum(foil is not None and foil.kind == kind for foil in made) for kind in KINDS}
    assert sum(counts.values()) > 0.8 * len(made) and min(counts.values()) > 0.02 * len(made), counts
