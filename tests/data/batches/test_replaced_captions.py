"""Captions in fixed groups, each replaced by chance, and words masked in all of them: as the released code draws."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from soho_fast.data.batches.pretraining import PairSampler, PretrainingDataset
from soho_fast.data.batches.sample import Collator

COUNTS = (1, 2, 3, 4, 5, 7, 8, 9)
GROUPS = [-(-count // 4) for count in COUNTS]
SOURCES = ["coco"] * 5 + ["visual_genome"] * 3


@pytest.fixture
def many(records):
    """Eight images of two data sets; caption c of image i reads "[UNK] ... colour a a ..", known by its length."""
    return [
        replace(
            record, source=source, captions=tuple(f"{record.captions[1].split()[-1]}{' a' * n}" for n in range(count))
        )
        for record, source, count in zip(records, SOURCES, COUNTS, strict=False)
    ]


def make(records, processor, **options):
    options = {
        "seed": 5, "num_positive": 4, "num_negative": 0, "replace_probability": 0.5, "epoch": "caption_groups",
        "max_text_length": 16, "masking": {"probability": 0.0}, "predict_unmatched": True, "mvm_probability": 0.015,
        **options,
    }  # fmt: skip
    return PretrainingDataset(records, processor, **options)


def texts_of(dataset, index, epoch=0):
    dataset.set_epoch(epoch)
    sample = dataset[index]
    texts = dataset.processor.tokenizer.batch_decode(sample.texts_ids, skip_special_tokens=True)
    return texts, sample.text_fields["itm_labels"]


def test_groups_are_cut_once_and_the_last_is_filled_from_the_images_own(many, processor):
    dataset = make(many, processor, replace_probability=0.0)
    assert len(dataset) == sum(GROUPS)
    first = [texts_of(dataset, index)[0] for index in range(len(dataset))]
    left, repeated = iter(first), 0
    for record, count, groups in zip(many, COUNTS, GROUPS, strict=True):
        for at in range(0, 4 * groups, 4):
            own, filled = list(record.captions[at : at + 4]), next(left)
            drawn = filled[len(own) :]
            assert filled[: len(own)] == own and set(drawn) <= set(record.captions)
            # Different ones where there are enough, in which the group's own may come again, as in the released code.
            assert len(set(drawn)) == len(drawn) or len(drawn) > count
            repeated += bool(set(own) & set(drawn))
    assert repeated > 0 and first != [
        texts_of(make(many, processor, replace_probability=0.0, seed=6), index)[0] for index in range(len(first))
    ]
    assert all(texts_of(dataset, index, epoch)[0] == first[index] for epoch in (1, 7) for index in range(len(dataset)))
    captions = make(many, processor, replace_probability=0.0, epoch="captions")
    again = [[texts_of(captions, index, epoch)[0] for index in range(len(captions))] for epoch in (0, 1)]
    assert again[0] != again[1], "not fixed"


def test_each_caption_is_replaced_by_chance_and_the_label_says_so(many, processor):
    dataset, whole = make(many, processor), make(many, processor, replace_probability=0.0)
    own = [texts_of(whole, index)[0] for index in range(len(whole))]
    replaced, joint, total = np.zeros(4), 0, 0
    for epoch in range(120):
        for index in range(len(dataset)):
            texts, labels = texts_of(dataset, index, epoch)
            for text, was, label in zip(texts, own[index], labels, strict=True):
                assert label == (text == was), "an unmatched text is never one of the image's own"
            replaced += 1 - labels
            joint += (1 - labels[0]) * (1 - labels[1])
            total += 1
    assert np.abs(replaced / total - 0.5).max() < 0.04, "each place with p = 0.5"
    assert abs(joint / total - 0.25) < 0.04, "each caption by itself, no fixed 2 + 2"


@pytest.mark.parametrize("index", [0, 4, 5, 7])
def test_a_replacement_is_the_first_of_any_group_of_another_image_of_the_data_set(many, index):
    sampler = PairSampler(
        [record.captions for record in many], [record.source for record in many], negatives=False, replacing_groups_of=4
    )
    rng = np.random.default_rng(index)
    drawn = Counter(sampler.replacement(index, rng) for _ in range(3000))
    expected = [
        record.captions[4 * group]
        for other, record in enumerate(many)
        if other != index and record.source == many[index].source
        for group in range(GROUPS[other])
    ]
    assert set(drawn) == set(expected), "the first of a group, of another image, of the same data set"
    shares = [drawn[text] / 3000 * len(expected) for text in expected]
    assert max(map(abs, np.subtract(shares, 1))) < 0.2, "groups are alike, not images"


def test_pairs_are_masked_by_chance_and_all_texts_have_labels(many, processor):
    dataset = make(many, processor, masking={"probability": 0.3}, mvm_probability=0.1)
    collate = Collator(processor)
    masked, labelled, words = [], torch.zeros(2), torch.zeros(2)
    for epoch in range(80):
        dataset.set_epoch(epoch)
        batch = collate([dataset[index] for index in range(len(dataset))])
        assert batch["input_ids"].shape == batch["mlm_labels"].shape and len(batch["input_ids"]) == 4 * len(dataset)
        assert batch["mask_pairs"].dtype == torch.bool and batch["mask_pairs"].shape == batch["itm_labels"].shape
        masked.append(batch["mask_pairs"])
        for label in (0, 1):
            rows = batch["itm_labels"] == label
            labelled[label] += (batch["mlm_labels"][rows] != -100).sum()
            words[label] += (batch["attention_mask"][rows].sum(1) - 2).sum()
    masked = torch.stack(masked).float()
    assert abs(masked.mean() - 0.1) < 0.015 and masked.mean(0).max() < 0.3, "every pair by itself"
    assert (labelled / words - 0.3).abs().max() < 0.02, "replaced texts are predicted too"
    assert "mask_pairs" not in collate([make(many, processor, mvm_probability=1.0)[0]])


def test_words_are_whole_where_visual_tokens_are_masked(many, processor):
    dataset = make(many, processor, masking={"probability": 0.5}, mvm_probability=0.4, unmask_from_epoch=2)
    plain = make(many, processor, masking={"probability": 0.5}, mvm_probability=0.4)
    mask = processor.tokenizer.mask_token_id
    for epoch in (1, 2):
        dataset.set_epoch(epoch), plain.set_epoch(epoch)
        both, masked_words = [0, 0], 0
        for index in range(len(dataset)):
            sample, before = dataset[index], plain[index]
            pairs = sample.text_fields["mask_pairs"]
            assert np.array_equal(pairs, before.text_fields["mask_pairs"])
            for number, is_masked in enumerate(pairs):
                ids, labels = sample.texts_ids[number], sample.token_labels["mlm_labels"][number]
                both[int(is_masked)] += int((ids == mask).sum()) + int((np.asarray(labels) != -100).sum())
                if is_masked and epoch == 2:
                    masked_words += int((before.texts_ids[number] == mask).sum())
                else:
                    assert np.array_equal(ids, before.texts_ids[number])
        assert both[0] > 0 and (both[1] > 0) == (epoch == 1)
    assert masked_words > 20, "nothing was made whole: the test shows nothing"


def test_draws_depend_on_seed_epoch_and_index_only(many, processor):
    dataset = make(many, processor, masking={"probability": 0.3}, mvm_probability=0.3)

    def fields(sample):
        return [*sample.texts_ids, *sample.text_fields.values(), *sample.token_labels["mlm_labels"]]

    dataset.set_epoch(3)
    forward = [fields(dataset[index]) for index in range(len(dataset))]
    backward = [fields(dataset[index]) for index in reversed(range(len(dataset)))][::-1]
    dataset.set_epoch(3)
    loaded = [fields(sample) for sample in DataLoader(dataset, batch_size=None, num_workers=2)]
    for first, second, third in zip(forward, backward, loaded, strict=True):
        for one, two, three in zip(first, second, third, strict=True):
            assert np.array_equal(one, two) and np.array_equal(one, np.asarray(three))
    dataset.set_epoch(4)
    assert not all(map(np.array_equal, forward[3], fields(dataset[3])))


def test_a_set_of_one_image_is_refused(many, processor):
    with pytest.raises(ValueError, match="data set coco: expected at least 2 images to replace captions between"):
        make(many[4:], processor)
