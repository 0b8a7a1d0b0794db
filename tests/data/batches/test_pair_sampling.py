import numpy as np
import pytest

from soho_fast.data.batches.pretraining import PairSampler
from soho_fast.data.text import content_words

CAPTIONS = [
    ["a red dog", "a dog and a ball"],
    ["a red ball"],  # all its content words are in the captions of image 0
    ["two dogs"],
    ["a blue cat", "the cat sleeps", "A red  DOG"],  # says by chance what image 0's caption says
    ["a picture of it"],  # says nothing
]


def test_positives_are_the_images_own_and_different_while_it_has_enough():
    sampler = PairSampler(CAPTIONS)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert sorted(sampler.positives(0, 2, rng)) == sorted(CAPTIONS[0])
        assert sampler.positives(1, 2, rng) == CAPTIONS[1] * 2
        five = sampler.positives(0, 5, rng)
        assert sorted(five.count(text) for text in set(five)) == [2, 3]


def test_negatives_say_something_the_images_captions_do_not():
    sampler = PairSampler(CAPTIONS)
    drawn = set(sampler.negatives(0, 300, np.random.default_rng(0)))
    assert drawn == {"two dogs", "a blue cat", "the cat sleeps"}
    own = content_words(" ".join(CAPTIONS[0]))
    assert all(content_words(text) - own for text in drawn)


def test_all_other_captions_are_reached():
    sampler = PairSampler(CAPTIONS)
    drawn = set(sampler.negatives(2, 300, np.random.default_rng(0)))
    assert drawn == {text for texts in CAPTIONS[:2] + CAPTIONS[3:4] for text in texts}


def test_the_last_image_is_drawn_as_often_as_the_others():
    sampler = PairSampler([["a red"], ["a blue"], ["a green"]])
    drawn = sampler.negatives(0, 300, np.random.default_rng(0))
    assert set(drawn) == {"a blue", "a green"} and abs(drawn.count("a green") - 150) < 40


def test_negatives_are_of_the_images_own_data_set():
    captions = [["a red dog"], ["a blue cat"], ["two birds"], ["his left shoe"], ["grey sky"], ["one of its kind"]]
    sampler = PairSampler(captions, ["coco"] * 3 + ["phrases"] * 2 + ["alone"])
    drawn = [set(sampler.negatives(index, 100, np.random.default_rng(index))) for index in range(6)]
    texts = [row[0] for row in captions]
    assert drawn[:3] == [set(texts[:3]) - {text} for text in texts[:3]]
    assert drawn[3:5] == [{"grey sky"}, {"his left shoe"}]
    assert drawn[5] == set(texts[:5]), "an image without another in its set takes what there is"
    whole, same = PairSampler(captions), PairSampler(captions, ["coco"] * 6)
    assert all(
        whole.negatives(2, 9, np.random.default_rng(n)) == same.negatives(2, 9, np.random.default_rng(n))
        for n in range(9)
    )


def test_images_much_alike_still_never_give_the_own_caption():
    sampler = PairSampler([["a red dog"], ["a red dog"], ["a dog"]])
    assert set(sampler.negatives(0, 50, np.random.default_rng(0))) == {"a dog"}


def test_no_negative_at_all():
    with pytest.raises(ValueError, match="every caption of the data set is one of its own"):
        PairSampler([["a red dog"], ["A red dog"]])
    with pytest.raises(ValueError, match=r"image 2 of 3: every caption .* \(a blue dog, a red dog\); expected"):
        PairSampler([["a red dog"] * 5, ["a blue dog"], ["a blue dog", "a red dog"]])
    with pytest.raises(ValueError, match="at least 2 images"):
        PairSampler([["a"]])
    alone = PairSampler([["a", "a"]], negatives=False)
    assert alone.positives(0, 3, np.random.default_rng(0)) == ["a"] * 3
