"""Words by lift: what is counted, the interval, and that by chance next to nothing is associated."""

import numpy as np
import pytest
from scipy.stats import binomtest

from soho_fast.explore.words import (
    MIN_IMAGES,
    Vocabulary,
    lifts,
    phrases_of,
    rank_words,
    singulars_of,
    words_of,
)


def is_associated(ranked: np.ndarray) -> bool:
    """The interval of the best of a code's words lies above 1."""
    return len(ranked) > 0 and bool(ranked["low"][0] > 1)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Dog, and the DOG's bowl.", {"dog", "dog's", "bowl"}),
        ("a well-known T-shirt - red", {"well-known", "t-shirt", "red"}),
        ("Ein Stra\u00dfenfest in K\u00f6ln", {"ein", "stra\u00dfenfest", "k\u00f6ln"}),
        ("\u05db\u05dc\u05d1 \u05e8\u05e5", {"\u05db\u05dc\u05d1", "\u05e8\u05e5"}),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u093f\u0924\u093e\u092c",
            {"\u0939\u093f\u0928\u094d\u0926\u0940", "\u0915\u093f\u0924\u093e\u092c"},
        ),
        ("\u0643\u064e\u0644\u0652\u0628", {"\u0643\u064e\u0644\u0652\u0628"}),
        ("cafe\u0301 caf\u00e9", {"caf\u00e9"}),
        ("7\ufe0f\u20e3 _dog_", {"7", "dog"}),
        ("<b>bold</b> & snake_case", {"b", "bold", "snake", "case"}),
        ("x" * 10_000, set()),
        ("the of and", set()),
        ("two dogs in front of three cats, over one tree", {"dogs", "cats", "tree"}),
    ],
)
def test_words_of(caption, expected):
    assert words_of([caption]) == expected


def test_a_word_counts_once_an_image_and_rare_ones_not_at_all():
    vocabulary = Vocabulary()
    captions = [["dog, dog", "a dog"]] * MIN_IMAGES + [["cat"]] * (MIN_IMAGES - 1) + [["zebra, ant"]] * 9
    numbers = [vocabulary.numbers(each) for each in captions]
    together = np.concatenate(numbers), np.cumsum([0, *map(len, numbers)])
    words = vocabulary.choose([together])
    assert words.spelling == ["ant", "dog", "zebra"] and words.images.tolist() == [9, MIN_IMAGES, 9]
    table = words.table(*together).toarray()
    assert table.tolist() == [[0, 1, 0]] * MIN_IMAGES + [[0, 0, 0]] * (MIN_IMAGES - 1) + [[1, 0, 1]] * 9


def counted(captions):
    """(the words that are counted, images that have each, {word: its other forms}); the table says the same."""
    vocabulary = Vocabulary()
    numbers = [vocabulary.numbers([text]) for text in captions]
    parts = numbers[:4], numbers[4:]  # Some images at a time.
    words = vocabulary.choose([(np.concatenate(part), np.cumsum([0, *map(len, part)])) for part in parts])
    table = words.table(np.concatenate(numbers), np.cumsum([0, *map(len, numbers)])).toarray()
    assert table.max(initial=0) <= 1 and table.sum(0).tolist() == words.images.tolist()
    forms = {word: forms for word, forms in zip(words.spelling, words.forms, strict=True) if forms}
    return dict(zip(words.spelling, words.images.tolist(), strict=True)), forms


def test_number_is_merged_where_captions_have_both():
    captions = ["an animal"] * 3 + ["animals"] * 4 + ["the animals of an animal"] + ["the glass"] * 5 + ["buses"] * 6
    assert counted(captions) == ({"animal": 8, "glass": 5, "buses": 6}, {"animal": ["animals"]})
    captions = ["puppies"] * 4 + ["puppy"] + ["a box"] * 3 + ["boxes"] * 3 + ["men"] * 4 + ["a man"]
    assert counted(captions)[0] == {"puppy": 5, "box": 6, "man": 5}
    assert counted(["a princess"] * 5 + ["princes"] * 5 + ["news"] * 5 + ["new"] * 5)[1] == {}
    captions = (
        ["boxes"] * 10 + ["a box"] * 10 + ["a boxe", "ice cubes"] + ["a cub"] * 5 + ["glasses"] * 5 + ["glass"] * 5
    )
    assert counted(captions) == ({"box": 20, "cub": 5, "glasses": 5, "glass": 5}, {"box": ["boxes"]})
    assert singulars_of("polar bears") == ["polar bear"]


def test_an_image_counts_once_whatever_forms_of_a_word_it_has():
    found, forms = counted(["people and persons"] * 10 + ["a person"] * 5 + ["people, persons, a person"])
    assert found == {"person": 16} and sorted(forms["person"]) == ["people", "persons"]
    found, forms = counted(["mens"] * 3 + ["men, mens"] * 2 + ["a man"] * 4)
    assert found == {"man": 9} and sorted(forms["man"]) == ["men", "mens"]


def test_two_words_that_stand_together_are_one():
    captions = ["a polar bear"] * 6 + ["a bear"] * 9 + ["red lollipop, red balloon"] * 5 + ["red car", "red sea"] * 5
    found, _ = counted(captions)
    assert found == {"polar": 6, "bear": 15, "polar bear": 6, "red": 15, "lollipop": 5, "balloon": 5, "car": 5,
                     "sea": 5, "red lollipop": 5, "red balloon": 5, "red car": 5, "red sea": 5}  # fmt: skip
    found, _ = counted(["big dog"] * 5 + ["dog and cat"] * 9 + ["big cat"] * 5 + ["big fish"] * 9 + ["fish"] * 20)
    assert "big dog" not in found and "big fish" not in found, "each word stands mostly with others"
    assert phrases_of(["a dog, cat and bird. polar bears"]) == {"polar bears"}


def test_the_most_frequent_words_are_counted(monkeypatch):
    monkeypatch.setattr("soho_fast.explore.words.MOST_WORDS", 2)
    vocabulary = Vocabulary()
    numbers = [
        vocabulary.numbers(["zebra", *(["ant"] if number < 9 else []), *(["bee"] if number < 6 else [])])
        for number in range(12)
    ]
    together = np.concatenate(numbers), np.cumsum([0, *map(len, numbers)])
    assert vocabulary.choose([together]).spelling == ["ant", "zebra"]


def test_no_words_at_all():
    vocabulary = Vocabulary()
    assert len(vocabulary.numbers([])) == 0
    assert vocabulary.choose([(np.zeros(0, int), np.zeros(2, int))]).spelling == []
    assert not is_associated(rank_words(np.zeros(0, dtype=int), 3, np.zeros(0, dtype=int), 9))


def test_the_interval_is_clopper_and_pearsons_at_bonferronis_level():
    pairs = [(1, 1, 5), (2, 2, 5), (5, 5, 8), (5, 40, 8), (17, 20, 300), (900, 1000, 950)]
    for k, n, w in pairs:
        # Twice the same word beside another: of equal counts the interval is computed once.
        both, words = np.array([k, 1, k]), np.array([w, 9, w])
        (lift, _, again), (low, _, _), (high, _, _) = lifts(both, n, words, num_images=1000, num_tests=40)
        assert again == lift
        exact = binomtest(k, n).proportion_ci(1 - 0.05 / 40, method="exact")
        share = w / 1000
        assert lift == pytest.approx(k / n / share)
        assert high == pytest.approx(exact.high / share, rel=1e-6)
        expected = exact.low / share
        assert low == pytest.approx(expected if k >= MIN_IMAGES else min(expected, 1.0), rel=1e-6)


def test_counts_of_32_bits_are_multiplied_in_64():
    both, word = np.array([26_000], dtype=np.int32), np.array([30_000], dtype=np.int32)
    assert len(rank_words(both, 50_000, word, 118_000)) == 1


def test_an_interval_holds_for_all_codes_together():
    alone, among = (rank_words(np.array([20]), 40, np.array([100]), 1000, count)[0] for count in (1, 500))
    assert alone["lift"] == among["lift"] and alone["low"] > among["low"] and alone["high"] < among["high"]
    low = binomtest(20, 40).proportion_ci(1 - 0.05 / 500, method="exact").low
    assert among["low"] == pytest.approx(low / 0.1, rel=1e-6)


def test_words_come_surest_first_and_only_those_more_frequent():
    words = rank_words(np.array([9, 5, 50, 1]), 60, np.array([10, 100, 90, 20]), 1000)
    assert words["column"].tolist() == [2, 0], "columns 1 and 3 are no more frequent than elsewhere"
    assert words["low"][0] > words["low"][1] > 1
    assert words["lift"][1] > words["lift"][0], "not by lift alone"
