import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import set_seed

from soho_fast.common.errors import CorruptImageError
from soho_fast.data import text as text_module
from soho_fast.data.batches.pretraining import PretrainingDataset
from soho_fast.data.batches.sample import Collator
from soho_fast.engine.batches import Batches, plan_batches
from soho_fast.engine.settings import BatchSettings

KEYWORDS = {
    "pixel_values", "pixel_mask", "input_ids", "attention_mask", "image_index", "mlm_labels", "mlm_positions",
    "itm_labels", "mask_uniform",
}  # fmt: skip


@pytest.fixture
def dataset(records, processor):
    return PretrainingDataset(records, processor, seed=5)


@pytest.fixture
def collate(processor):
    return Collator(processor)


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key]
        for key in first
    )


def test_batch_holds_the_forwards_keywords(dataset, collate):
    batch = collate([dataset[index] for index in range(3)])
    assert set(batch) == KEYWORDS | {"skipped", "sample_ids"}
    assert batch["image_index"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batch["itm_labels"].tolist() == [1, 1, 0, 0] * 3
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["mlm_labels"].shape
    assert torch.equal(
        batch["mlm_labels"].flatten()[batch["mlm_positions"]], batch["mlm_labels"][batch["mlm_labels"] >= 0]
    )
    assert batch["mask_uniform"].dtype == torch.float64 and batch["mask_uniform"].shape == (3,)
    assert batch["sample_ids"] == ["coco/0", "coco/1", "coco/2"] and batch["skipped"] == []
    assert batch["pixel_values"].shape == (3, 3, 32, 38) and batch["pixel_values"].dtype == torch.uint8


def test_padding_and_mask(dataset, collate, processor):
    batch = collate([dataset[index] for index in range(6)])
    pad = processor.tokenizer.pad_token_id
    assert ((batch["input_ids"] != pad) == batch["attention_mask"].bool()).all()
    assert (batch["attention_mask"].diff(dim=1) <= 0).all(), "padding is at the right only"
    assert batch["attention_mask"].sum(1).max() == batch["attention_mask"].shape[1], "no longer than the longest"
    assert (batch["mlm_labels"][batch["attention_mask"] == 0] == -100).all()


def sample_of(dataset, epoch, index):
    dataset.set_epoch(epoch)
    return dataset[index]


def test_positives_name_the_image_and_negatives_another(records, processor, collate):
    dataset = PretrainingDataset(records, processor, masking={"probability": 0.0})
    batch = collate([dataset[index] for index in range(len(dataset))])
    texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    for text, image, matched in zip(texts, batch["image_index"], batch["itm_labels"], strict=True):
        colour = records[image].captions[1].split()[-1]
        assert (colour in text) == bool(matched)


def test_positives_and_negatives_are_masked_alike_but_only_positives_have_labels(records, processor, collate):
    dataset = PretrainingDataset(records, processor, seed=1, masking={"probability": 0.3})
    masked, real, labelled = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    special = torch.tensor([processor.tokenizer.cls_token_id, processor.tokenizer.sep_token_id])
    for epoch in range(40):
        batch = collate([sample_of(dataset, epoch, index) for index in range(len(dataset))])
        words = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], special)
        for label in (0, 1):
            rows = batch["itm_labels"] == label
            masked[label] += (batch["input_ids"][rows] == processor.tokenizer.mask_token_id).sum()
            real[label] += words[rows].sum()
            labelled[label] += (batch["mlm_labels"][rows] != -100).sum()
    share = masked / real
    assert abs(share[0] - 0.3 * 0.8) < 0.02 and abs(share[1] - share[0]) < 0.02, (
        "a [MASK] must not tell the pair's label"
    )
    assert labelled[0] == 0 and abs(labelled[1] / real[1] - 0.3) < 0.03


def test_a_sample_depends_on_seed_epoch_and_index_only(records, processor, collate):
    dataset = PretrainingDataset(records, processor, seed=5)
    dataset.set_epoch(2)
    forwards = [collate([dataset[index]]) for index in range(6)]
    set_seed(123)
    other = PretrainingDataset(records, processor, seed=5)
    backwards = [collate([sample_of(other, 2, index)]) for index in reversed(range(6))][::-1]
    assert all(itertools.starmap(same, zip(forwards, backwards, strict=True)))
    for changed in (
        sample_of(dataset, 3, 0),
        sample_of(PretrainingDataset(records, processor, seed=6), 2, 0),
        sample_of(dataset, 2, 1),
    ):
        assert changed.image_fields["mask_uniform"] != forwards[0]["mask_uniform"].item()
    drawn = [sample_of(dataset, epoch, index) for epoch in range(20) for index in range(len(dataset))]
    uniforms = [sample.image_fields["mask_uniform"] for sample in drawn]
    assert len(set(uniforms)) == len(uniforms) and 0.4 < sum(uniforms) / len(uniforms) < 0.6


def stream(dataset, collate, *, rank=0, world=1, workers=0, first_step=0, images=2):
    """Two epochs of a rank's micro-batches, as the engine makes them."""
    settings = BatchSettings(global_batch_size=images, workers=workers)
    plan = plan_batches(settings, len(dataset), world, seed=1)
    steps = 2 * plan.steps_per_epoch
    batches = Batches(dataset, collate, plan.micro_batches(rank, first_step, steps), settings)
    try:
        return list(batches)
    finally:
        batches.close()


def test_two_ranks_with_workers_see_what_one_sees(dataset, collate):
    alone = stream(dataset, collate)
    assert len(alone) == 2 * (len(dataset) // 2)
    ranks = [stream(dataset, collate, rank=rank, world=2, workers=1 - rank) for rank in range(2)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert whole["sample_ids"] == first["sample_ids"] + second["sample_ids"]
        for key in ("pixel_values", "mask_uniform", "itm_labels"):
            assert torch.equal(whole[key], torch.cat([first[key], second[key]]))
        for part, begin in ((first, 0), (second, 4)):
            length = part["input_ids"].shape[1]
            for key in ("input_ids", "mlm_labels"):
                assert torch.equal(whole[key][begin : begin + 4, :length], part[key])


def test_corrupt_image_is_left_out_and_named(records, dataset, collate, tmp_path):
    path = tmp_path / records[1].image.name
    path.write_bytes(path.read_bytes()[:200])
    (tmp_path / records[2].image.name).unlink()
    batch = collate([dataset[index] for index in range(4)])
    assert batch["sample_ids"] == ["coco/0", "coco/3"]
    assert batch["image_index"].tolist() == [0] * 4 + [1] * 4
    assert len(batch["pixel_values"]) == len(batch["mask_uniform"]) == 2
    truncated, gone = batch["skipped"]
    assert truncated.startswith(f"coco/1: {path}: can't be decoded") and "coco/2" in gone and "No such file" in gone
    with pytest.raises(CorruptImageError, match=r"all 2 images of a batch are corrupt; first:\n  coco/1.*\n  coco/2"):
        collate([dataset[1], dataset[2]])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_one_corrupt_image_takes_another(records, dataset, collate, tmp_path, workers):
    """One image a process: every process has a batch at every step, and all others are as they were."""
    intact = stream(dataset, collate, images=1)
    for record in records[:3]:
        (tmp_path / record.image.name).write_bytes(b"corrupt")
    batches = stream(dataset, collate, images=1, workers=workers)
    assert len(batches) == len(intact) == 2 * len(dataset)
    corrupt = 0
    for batch, before in zip(batches, intact, strict=True):
        if before["sample_ids"][0] in ("coco/0", "coco/1", "coco/2"):
            corrupt += 1
            assert batch["skipped"][0].startswith(before["sample_ids"][0])
            assert "another image is taken in its place" in batch["skipped"][0]
            assert len(batch["sample_ids"]) == 1 and batch["sample_ids"][0] not in ("coco/0", "coco/1", "coco/2")
        else:
            assert same(batch, before)
    assert corrupt == 6
    assert all(itertools.starmap(same, zip(batches, stream(dataset, collate, images=1), strict=True))), "the same again"
    resumed = stream(dataset, collate, images=1, first_step=7)
    assert all(itertools.starmap(same, zip(batches[7:], resumed, strict=True)))


def test_nothing_but_corrupt_images(records, dataset, collate, tmp_path):
    for record in records:
        (tmp_path / record.image.name).write_bytes(b"corrupt")
    with pytest.raises(CorruptImageError, match=r"all 101 images of a batch are corrupt; first:(\n  coco/.*){5}$"):
        stream(dataset, collate, images=1)


def test_error_of_a_lost_batch_reaches_the_training_process(records, dataset, collate, tmp_path):
    for record in records[:2]:
        (tmp_path / record.image.name).write_bytes(b"")
    loader = DataLoader(dataset, batch_sampler=[[0, 1]], collate_fn=collate, num_workers=1)
    with pytest.raises(CorruptImageError, match="all 2 images of a batch are corrupt"):
        next(iter(loader))


def test_refusals(records, processor):
    with pytest.raises(IndexError, match="sample 12 of a data set of 12"):
        PretrainingDataset(records, processor)[12]


@pytest.fixture
def uneven(records):
    """Images with 1, 2, 3, 4, 5 and 7 captions, no caption twice."""
    return [
        replace(record, captions=tuple(f"{record.captions[1]}{' a' * number}" for number in range(count)))
        for record, count in zip(records, (1, 2, 3, 4, 5, 7), strict=False)
    ]


def positives_of(dataset, processor, epoch):
    """By image: the positive texts of each of its samples in an epoch."""
    found = {}
    for index in range(len(dataset)):
        sample = sample_of(dataset, epoch, index)
        texts = processor.tokenizer.batch_decode(sample.texts_ids[: dataset.num_positive], skip_special_tokens=True)
        found.setdefault(sample.image_keys[0], []).append(texts)
    return found


def test_an_epoch_of_captions_holds_each_once_but_for_what_fills_a_short_sample(uneven, processor):
    dataset = PretrainingDataset(uneven, processor, seed=5, masking={"probability": 0.0}, epoch="captions")
    epochs = [positives_of(dataset, processor, epoch) for epoch in range(3)]
    for groups_of in epochs:
        assert [len(groups_of[image]) for image in range(6)] == [1, 1, 2, 2, 3, 4]
        for image, groups in groups_of.items():
            used, captions = [text for group in groups for text in group], uneven[image].captions
            assert set(used) == set(captions) and len(used) == len(captions) + len(captions) % 2
            assert image == 0 or all(len(set(group)) == 2 for group in groups), "what fills a sample is of the others"
    assert epochs[0][5] != epochs[1][5] and epochs[0] == positives_of(dataset, processor, 0)


def test_two_samples_of_an_image_in_a_batch_share_it(uneven, processor, collate):
    dataset = PretrainingDataset(uneven, processor, seed=5, epoch="captions")
    samples = [dataset[index] for index in (1, 9, 12, 10)]
    batch = collate(samples)
    assert batch["sample_ids"] == ["coco/1", "coco/5", "coco/5", "coco/5"]
    assert batch["image_index"].tolist() == [0] * 4 + [1] * 12 and len(batch["pixel_values"]) == 2
    assert batch["mask_uniform"].tolist() == [sample.image_fields["mask_uniform"] for sample in samples[:2]]
    assert batch["itm_labels"].tolist() == [1, 1, 0, 0] * 4


def test_in_later_epochs_no_text_is_read_or_encoded_again(dataset, monkeypatch):
    for epoch in range(60):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            dataset[index]
    monkeypatch.setattr(text_module, "encode_texts", None)
    monkeypatch.setattr(text_module, "_WORD", None)
    dataset.set_epoch(60)
    assert all(dataset[index].texts_ids for index in range(len(dataset)))


def test_what_is_small_comes_from_a_loader_process_without_shared_memory(dataset, collate):
    settings = BatchSettings(global_batch_size=2, workers=1)
    batches = Batches(dataset, collate, [[(0, 0), (0, 1)]], settings)
    (batch,) = batches
    batches.close()
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 6 and not any(tensor.is_shared() for tensor in tensors)
