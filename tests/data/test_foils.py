"""What becomes of a caption, by the rules."""

import numpy as np
import pytest

from soho_fast.data.foils import Foils

CORPUS = [
    "A dog on the left", "A cat on the left", "An owl on the left", "A pine tree on the left",
    "two dogs and a bird", "three cats and a bird", "four owls and a bird",
    "a red car", "a blue car", "an orange car", "a gray car", "a grey car",
    "a man riding a horse", "a man riding an elephant", "a person riding a horse",
    "an animal on the left",
]  # fmt: skip


def foils_of(caption, kind, *others, corpus=CORPUS, as_often=False):
    """All foils that many draws give."""
    maker, rng = Foils(corpus), np.random.default_rng(0)
    made = (maker.make(caption, [caption, *others], rng, [kind], as_often=as_often) for _ in range(200))
    return {foil.text for foil in made if foil is not None}


@pytest.mark.parametrize(
    ("kind", "caption", "expected"),
    [
        ("sides", "A dog on the left of a cat", {"A dog on the right of a cat"}),
        ("sides", "Right of a cat, a dog", {"Left of a cat, a dog"}),
        ("sides", "in the top left corner", {"in the bottom left corner", "in the top right corner"}),
        ("sides", "a dog above a cat", {"a dog below a cat"}),
        ("sides", "a dog below a cat", {"a dog above a cat"}),
        ("sides", "a dog over a cat", {"a dog under a cat"}),
        ("sides", "a dog under a cat", {"a dog over a cat"}),
        ("sides", "a dog over a red background", set()),
        ("sides", "a man left the house right now", set()),
        ("numbers", "Two dogs", {"Three dogs", "Four dogs"}),
        ("numbers", "two dogs and three cats", {"four dogs and three cats", "two dogs and four cats"}),
        ("numbers", "two things, a dog and a cat", set()),
        ("numbers", "two animals: a dog and a cat", set()),
        ("numbers", "one dog in one scene", set()),
        ("colours", "A red car", {"A blue car", "An orange car", "A gray car", "A grey car"}),
        ("colours", "an orange car", {"a red car", "a blue car", "a gray car", "a grey car"}),
        ("colours", "a gray car", {"a red car", "a blue car", "an orange car"}),
        ("colours", "a red house", set()),
        ("objects", "A dog on the left", {"A cat on the left", "An owl on the left"}),
        ("objects", "two dogs and the fish", {"two cats and the fish", "two owls and the fish"}),
        ("objects", "an animal on the left", set()),
        ("objects", "the dog on the left", set()),
        ("objects", "a pine tree on the left", set()),
        ("order", "A dog to the left of an owl", {"An owl to the left of a dog"}),
        ("order", "A dog chasing a cat, and a bird", {"A cat chasing a dog, and a bird"}),
        ("order", "A dog next to a cat", set()),
        ("order", "A dog, left of it a cat", set()),
        ("order", "A dog and a cat on the left", set()),
        ("order", "two dogs left of a cat", set()),
        ("order", "a pine tree left of a dog", set()),
    ],
)  # fmt: skip
def test_rules(kind, caption, expected):
    assert foils_of(caption, kind) == expected


@pytest.mark.parametrize(
    ("kind", "caption", "other", "left"),
    [
        ("numbers", "two dogs", "Three animals", {"four dogs"}),
        ("colours", "a red car", "a car, blue and grey", {"an orange car", "a gray car"}),
        ("objects", "a dog on the left", "a Cat", {"an owl on the left"}),
        ("objects", "a dog on the left", "many cats", {"an owl on the left"}),
    ],
)
def test_no_word_of_another_caption_of_the_image(kind, caption, other, left):
    assert foils_of(caption, kind, other) == left


def test_words_are_drawn_as_often_as_captions_have_them():
    corpus = ["two dogs"] * 90 + ["three dogs"] * 10
    maker, rng = Foils(corpus), np.random.default_rng(0)
    flows = {
        caption: sum(
            maker.make(caption, [caption], rng, ["numbers"]) is not None for _ in range(20 * corpus.count(caption))
        )
        for caption in ("two dogs", "three dogs")
    }
    # 0.9 x 0.1 of all captions either way.
    assert all(140 < count < 220 for count in flows.values()), flows
    assert all(maker.make(caption, [caption], rng, ["numbers"], as_often=False) is not None for caption in flows), (
        "or of these words alone"
    )


def test_the_same_draws_give_the_same_foils_whatever_was_drawn_before():
    def made(maker):
        rng = np.random.default_rng(5)
        return [maker.make(caption, [caption], rng) for caption in CORPUS]

    maker = Foils(CORPUS)
    assert made(maker) == made(maker) == made(Foils(CORPUS))
    assert {foil.kind for foil in made(maker) if foil} >= {"sides", "colours", "objects"}


def test_a_large_corpus_is_counted_evenly(monkeypatch):
    monkeypatch.setattr("soho_fast.data.foils._MOST_COUNTED", 10)
    corpus = ["a red car"] * 500 + ["a blue car"] * 500
    assert foils_of("a red car", "colours", corpus=corpus) == {"a blue car"}


def test_a_caption_without_a_place_has_none():
    assert Foils(CORPUS).make("", [""], np.random.default_rng(0)) is None
    assert Foils([]).make("a dog", ["a dog"], np.random.default_rng(0)) is None
