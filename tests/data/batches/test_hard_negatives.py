"""Foils among the negative texts of a sample: how many, drawn how, and none without the setting."""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from soho_fast.data.batches import pretraining
from soho_fast.data.batches.pretraining import PretrainingDataset

# No colours of foils: a caption has a side to exchange, and nothing else.
NAMED = ["cyan", "magenta", "navy", "olive"]


@pytest.fixture
def sided(records):
    return [
        replace(record, captions=(f"The {name} man is on the left", f"See the {name} woman on the left"))
        for record, name in zip(records, NAMED, strict=False)
    ]


@pytest.fixture
def texts_of(monkeypatch) -> Callable:
    """The texts of a sample before they become tokens."""
    seen = []
    encode = pretraining.encode_text

    def noting(tokenizer, text, max_length):
        seen.append(text)
        return encode(tokenizer, text, max_length)

    monkeypatch.setattr(pretraining, "encode_text", noting)

    def texts(dataset, index, epoch=0):
        seen.clear()
        dataset.set_epoch(epoch)
        return dataset[index], [*seen]

    return texts


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_such_a_share_of_the_negatives_are_foils_of_the_samples_texts(sided, processor, texts_of, share):
    dataset = PretrainingDataset(sided, processor, hard_negative_share=share)
    num_foils = num_both = 0
    for epoch in range(150):
        for index, name in enumerate(NAMED):
            sample, texts = texts_of(dataset, index, epoch)
            assert sample.text_fields["itm_labels"].tolist() == [1, 1, 0, 0]
            assert [len(labels) > 0 for labels in sample.token_labels["mlm_labels"]] == [True, True, False, False]
            assert set(texts[:2]) == set(sided[index].captions)
            foils = [text for text in texts[2:] if name in text]
            assert set(foils) <= {text.replace("left", "right") for text in texts[:2]}
            assert len(set(foils)) == len(foils), "of each text in turn"
            assert all("left" in text for text in texts[2:] if name not in text)
            num_foils += len(foils)
            num_both += len(foils) == 2
    assert abs(num_foils / (150 * 4 * 2) - share) <= 0.06 * (0 < share < 1)
    assert abs(num_both / (150 * 4) - share**2) <= 0.06 * (0 < share < 1), "each by itself"


def test_where_no_foil_can_be_made_another_images_caption_is_taken(sided, processor, texts_of):
    plain = [replace(record, captions=(f"the {name} man",)) for record, name in zip(sided, NAMED, strict=True)]
    dataset = PretrainingDataset(plain, processor, num_positive=1, num_negative=3, hard_negative_share=1.0)
    for index, name in enumerate(NAMED):
        _, texts = texts_of(dataset, index)
        assert len(texts) == 4 and texts[0] == f"the {name} man"
        assert set(texts[1:]) <= {f"the {other} man" for other in NAMED if other != name}


def test_they_begin_at_an_epoch_and_change_nothing_before(sided, processor, texts_of):
    late = PretrainingDataset(sided, processor, hard_negative_share=1.0, hard_negatives_from_epoch=2)
    never, always = (PretrainingDataset(sided, processor, hard_negative_share=share) for share in (0.0, 1.0))
    for epoch, same in ((0, never), (1, never), (2, always), (3, always)):
        for index in range(len(sided)):
            (sample, texts), (other, expected) = (texts_of(dataset, index, epoch) for dataset in (late, same))
            assert texts == expected
            assert all(map(np.array_equal, sample.texts_ids, other.texts_ids))


def test_more_negatives_than_texts(sided, processor, texts_of):
    dataset = PretrainingDataset(sided, processor, num_positive=1, num_negative=2, hard_negative_share=1.0)
    _, (own, *negatives) = texts_of(dataset, 0)
    assert negatives == [own.replace("left", "right")] * 2


def digest(dataset) -> str:
    """Of all that two epochs hold but the pixels."""
    found = hashlib.blake2b(digest_size=8)
    for epoch, index in itertools.product(range(2), range(len(dataset))):
        dataset.set_epoch(epoch)
        sample = dataset[index]
        arrays = [*sample.texts_ids, *sample.token_labels["mlm_labels"], *sample.text_fields.values()]
        for array in [*arrays, np.array(list(sample.image_fields.values()))]:
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "c93681ed29dcc2aa"),
        ({"epoch": "captions", "num_positive": 1, "num_negative": 3, "mvm_probability": 0.25}, "713186aad06e66d6"),
    ],
)
def test_without_them_samples_are_those_of_earlier_versions(records, processor, options, expected):
    assert digest(PretrainingDataset(records, processor, seed=5, **options)) == expected
    assert digest(PretrainingDataset(records, processor, seed=5, hard_negative_share=0.5, **options)) != expected
