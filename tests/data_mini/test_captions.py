"""Captions are true: their words are parsed here from scratch and compared with the scene's objects and coordinates."""

from __future__ import annotations

import re

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


def test_no_noun_is_left_unparsed(captioned):
    """Words that are neither nouns of the scene nor from this closed list would be claims that nobody checked."""
    for _, captions in captioned:
        for caption in captions:
            rest = re.findall(r"[a-z]+", MENTION.sub(" ", caption))
            assert set(rest) <= OTHER_WORDS | set(COLOURS), caption


def test_articles_and_plurals():
    assert {c.article for c in CONCEPTS.values() if c.name[0] in "aeiou" and c.name != "unicorn"} == {"an"}
    assert CONCEPTS["unicorn"].article == "a"
    assert CONCEPTS["fish"].plural == "fish" and CONCEPTS["butterfly"].plural == "butterflies"
    names = [set(name.split()) for name in CONCEPTS]
    shared = [(a, b) for a in names for b in names if a < b]
    assert not shared, "a name inside another makes captions ambiguous"
