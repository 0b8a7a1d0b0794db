"""Captions are true: their words are parsed here from scratch and compared with the scene's objects and coordinates."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from soho_fast.data.mini.captions import NUM_CAPTIONS, write_captions
from soho_fast.data.mini.concepts import CATEGORY_PLURALS, CATEGORY_SYNONYMS, COLOURS, CONCEPTS

NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
# every noun phrase -> (kind, what); longest first, so that "red heart" is not read as "heart"
NOUNS = {}
for concept in CONCEPTS.values():
    NOUNS[concept.name] = NOUNS[concept.plural] = ("name", concept.name)
for category, plural in CATEGORY_PLURALS.items():
    NOUNS.setdefault(category, ("category", category))
    NOUNS.setdefault(plural, ("category", category))
for category, words in CATEGORY_SYNONYMS.items():
    for word in words:
        NOUNS[word] = ("category", category)
NOUN_PATTERN = "|".join(sorted(map(re.escape, NOUNS), key=len, reverse=True))
OTHER_WORDS = set(
    re.findall(
        r"\w+",
        """a an and the with next to together near beside as well in on of over under above below left right side top
        bottom middle corner at is are there picture photo scene image showing we see sits plus things thing objects
        object all background wall front one two three four""",
    )
)
MENTION = re.compile(rf"(?:\b({'|'.join(NUMBERS)}) )?\b({NOUN_PATTERN})\b")


@pytest.fixture(scope="module")
def captioned(full_scenes):
    """A thousand scenes of both sides with their captions in lower case."""
    scenes = full_scenes[0][:700] + full_scenes[1][:300]
    return [(scene, [caption.lower() for caption in write_captions(scene, 0)]) for scene in scenes]


def _mentions(caption):
    return [(NUMBERS.get(number, 1), *NOUNS[noun]) for number, noun in MENTION.findall(caption)]


def test_five_different_captions(captioned):
    for _, captions in captioned:
        assert len(captions) == len(set(captions)) == NUM_CAPTIONS


def test_objects_and_counts_are_true(captioned):
    for scene, captions in captioned:
        for caption in captions:
            mentions = _mentions(caption)
            assert mentions, caption
            for number, kind, what in mentions:
                if kind == "name":
                    assert scene.counts[what] == number, caption
                else:
                    members = sum(item.concept.category == what for item in scene.objects)
                    assert members == number, caption


def test_most_captions_name_every_object(captioned):
    complete = total = 0
    for scene, captions in captioned:
        for caption in captions:
            named = {what for _, kind, what in _mentions(caption) if kind == "name"}
            complete += named == set(scene.counts)
            total += 1
    assert complete / total > 0.9


def test_no_noun_is_left_unparsed(captioned):
    """Words that are neither nouns of the scene nor from this closed list would be claims that nobody checked."""
    for _, captions in captioned:
        for caption in captions:
            rest = re.findall(r"[a-z]+", MENTION.sub(" ", caption))
            assert set(rest) <= OTHER_WORDS | set(COLOURS), caption


def test_background_is_true(captioned):
    seen = Counter()
    for scene, captions in captioned:
        for caption in captions:
            rest = MENTION.sub(" ", caption)
            for colour in COLOURS:
                if re.search(rf"\b{colour}\b", rest):
                    assert scene.background.colour == colour, caption
                    seen[colour] += 1
            if re.search(r"(on|over|front of) a photo", rest):
                assert scene.background.photo is not None, caption
                seen["photo"] += 1
    assert len(seen) == len(COLOURS) + 1


RELATIONS = {
    "left": r"(?:to the left of|on the left side of|left of)",
    "right": r"(?:to the right of|on the right side of|right of)",
    "above": r"(?:above|over)",
    "below": r"(?:below|under)",
}


def test_relations_are_true(captioned):
    seen = Counter()
    for scene, captions in captioned:
        where = {item.name: item for item in scene.objects}
        for caption in captions:
            for relation, words in RELATIONS.items():
                pattern = rf"\ban? ({NOUN_PATTERN}) (?:is |sits )?{words} an? ({NOUN_PATTERN})\b"
                for first, second in re.findall(pattern, caption):
                    dx = where[NOUNS[first][1]].x - where[NOUNS[second][1]].x
                    dy = where[NOUNS[first][1]].y - where[NOUNS[second][1]].y
                    offset = {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation]
                    assert offset >= 0.2 and offset >= max(abs(dx), abs(dy)), caption
                    seen[relation] += 1
    assert min(seen[relation] for relation in RELATIONS) > 50


def test_places_are_true(captioned):
    seen = Counter()
    # "a dog in the top left corner" and "in the top left corner a dog"
    corner = r"in the (?:top|bottom) (?:left|right) corner"
    place = rf"({corner}|on the (?:left|right)(?! side)|at the (?:top|bottom)|in the middle)"
    for scene, captions in captioned:
        where = {item.name: item for item in scene.objects}
        for caption in captions:
            starts = re.match(place, caption) is not None
            pattern = rf"{place} an? ({NOUN_PATTERN})\b" if starts else rf"\ban? ({NOUN_PATTERN}) {place}"
            for found in re.findall(pattern, caption):
                words, name = found if starts else found[::-1]
                item = where[NOUNS[name][1]]
                for word in words.split():
                    true = {
                        "left": item.x < 0.4,
                        "right": item.x > 0.6,
                        "top": item.y < 0.4,
                        "bottom": item.y > 0.6,
                        "middle": 0.4 <= item.x <= 0.6 and 0.4 <= item.y <= 0.6,
                    }.get(word, True)
                    assert true, caption
                seen[words] += 1
    assert len(seen) == 9


def test_captions_are_short_and_varied(captioned):
    lengths = [len(re.findall(r"[a-z]+", caption)) for _, captions in captioned for caption in captions]
    assert sum(6 <= length <= 16 for length in lengths) / len(lengths) > 0.6
    assert max(lengths) <= 25
    orders = sum(len({caption.split()[0] for caption in captions}) > 1 for _, captions in captioned)
    assert orders / len(captioned) > 0.9


def test_articles_and_plurals():
    assert {c.article for c in CONCEPTS.values() if c.name[0] in "aeiou" and c.name != "unicorn"} == {"an"}
    assert CONCEPTS["unicorn"].article == "a"
    assert CONCEPTS["fish"].plural == "fish" and CONCEPTS["butterfly"].plural == "butterflies"
    names = [set(name.split()) for name in CONCEPTS]
    shared = [(a, b) for a in names for b in names if a < b]
    assert not shared, "a name inside another makes captions ambiguous"
