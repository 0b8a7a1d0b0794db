from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from soho_fast.data.batches.augmentation import Augmentation, swap_sides
from soho_fast.data.batches.downstream import DownstreamDataset, Examples, RetrievalDataset
from soho_fast.data.batches.pretraining import PretrainingDataset
from soho_fast.data.batches.sample import Collator
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.text import encode_texts
from soho_fast.engine.batches import Batches, plan_batches
from soho_fast.engine.settings import BatchSettings
from soho_fast.tasks.settings import AugmentationSettings

NOTHING = asdict(AugmentationSettings())
EVERYTHING = {**NOTHING, "crop_scale": 0.3, "flip": 0.5, "rand_augment": 2, "colour": 0.4}


@pytest.fixture
def sided(records, tmp_path):
    """Images as wide as no other, dark at the left and light at the right, of which a caption says so."""
    made = []
    for number, record in enumerate(records):
        pixels = np.tile(np.linspace(0, 255, 40 + number).astype(np.uint8)[None, :, None], (32, 1, 3))
        Image.fromarray(pixels).save(tmp_path / f"sided{number}.png")
        captions = ("the left is black", "a man is left and a woman right", "there is a man")
        image = ImageRef(record.image.store, f"sided{number}.png")
        made.append(replace(record, image=image, captions=captions if number else ("red", "blue", "green")))
    return made


def changed(dataset, seed=5, **settings):
    dataset.images.augmentation = Augmentation(seed, **{**NOTHING, **settings})
    return dataset


def pixels_of(dataset, epoch, indices=range(12)):
    dataset.set_epoch(epoch)
    return [dataset[index].pixels[0] for index in indices]


def all_equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("A cat left of a dog; Right behind it, a LEFT shoe.", "A cat right of a dog; Left behind it, a RIGHT shoe."),
        ("the leftmost of three, right-hand, rightward", "the rightmost of three, left-hand, leftward"),
        ("a bright copyright of leftovers, cleft", "a bright copyright of leftovers, cleft"),
    ],
)
def test_left_and_right_change_places(text, swapped):
    assert swap_sides(text) == swapped and swap_sides(swapped) == text


def test_what_is_drawn_follows_from_seed_epoch_and_image_alone(sided, processor):
    dataset = changed(PretrainingDataset(sided, processor, seed=5), **EVERYTHING)
    before = torch.get_rng_state()
    found = pixels_of(dataset, 1)
    assert torch.equal(torch.get_rng_state(), before), "dropout reads the global generator"
    torch.manual_seed(77)
    again = changed(PretrainingDataset(sided, processor, seed=5), **EVERYTHING)
    pixels_of(again, 0)
    assert all_equal(pixels_of(again, 1, reversed(range(12))), found[::-1])
    assert not all_equal(pixels_of(dataset, 2), found)
    assert not all_equal(pixels_of(changed(dataset, seed=6, **EVERYTHING), 1), found)


def test_the_same_in_loader_processes(sided, processor):
    batches = []
    for workers in (0, 2):
        dataset = changed(PretrainingDataset(sided, processor, seed=5), **EVERYTHING)
        settings = BatchSettings(4, workers=workers)
        plan = plan_batches(settings, len(dataset), 1, 0)
        batches.append(list(Batches(dataset, Collator(processor), plan.micro_batches(0, 2, 5), settings)))
    assert len(batches[0]) == 3
    for here, there in zip(*batches, strict=True):
        assert torch.equal(here["pixel_values"], there["pixel_values"])
        assert torch.equal(here["input_ids"], there["input_ids"])


def test_an_image_of_several_samples_of_a_batch_is_one_image_that_all_their_texts_fit(sided, processor):
    dataset = changed(PretrainingDataset(sided, processor, epoch="captions"), **EVERYTHING)
    first, second = dataset[2], dataset[3]
    assert first.image_keys == second.image_keys and first.flipped == second.flipped
    assert torch.equal(first.pixels[0], second.pixels[0])


def test_padding_and_mask_are_as_without(sided, processor):
    plain, collate = PretrainingDataset(sided, processor), Collator(processor)
    expected = collate([plain[index] for index in range(12)])
    dataset = changed(PretrainingDataset(sided, processor), **EVERYTHING)
    found = collate([dataset[index] for index in range(12)])
    assert not expected["pixel_mask"].all(), "the images differ in width"
    assert torch.equal(found["pixel_mask"], expected["pixel_mask"])
    assert found["pixel_values"].shape == expected["pixel_values"].shape
    assert found["pixel_values"].dtype == torch.uint8
    assert not found["pixel_values"].permute(0, 2, 3, 1)[~found["pixel_mask"]].any()


def kinds_of(records, processor):
    texts = [record.captions[0] for record in records]
    images = [(record.image,) for record in records]
    options = {"seed": 3, "max_text_length": 16}
    yield PretrainingDataset(records, processor, seed=3, masking={"probability": 0.0})
    yield RetrievalDataset(records, processor, every_caption=True, **options)
    examples = Examples(images, texts, None)
    yield DownstreamDataset(examples, processor, texts_per_sample=1, blank_images=False, **options)


def test_a_flipped_image_is_read_with_texts_whose_sides_are_swapped(sided, processor, monkeypatch):
    seen = []

    def noting(tokenizer, texts, length):
        seen.append(list(texts))
        return encode_texts(tokenizer, texts, length)

    monkeypatch.setattr("soho_fast.data.batches.pretraining.encode_texts", noting)
    monkeypatch.setattr("soho_fast.data.batches.downstream.encode_texts", noting)
    for dataset in kinds_of(sided, processor):
        seen.clear()
        plain = [dataset[index] for index in range(6)]
        as_they_are = list(seen)
        seen.clear()
        flipped = [changed(dataset, flip=1.0)[index] for index in range(6)]
        assert any("left" in text for texts in as_they_are for text in texts)
        # Those that are not of the image too: "the left is black" would fit the flipped one of another caption.
        assert seen == [list(map(swap_sides, texts)) for texts in as_they_are]
        for before, after in zip(plain, flipped, strict=True):
            assert torch.equal(after.pixels[0], before.pixels[0].flip(-1))


def test_half_of_the_images_are_flipped_and_others_in_each_epoch(processor):
    augmentation = Augmentation(0, **{**NOTHING, "flip": 0.5})
    flips = np.array([[augmentation.flips(epoch, number) for number in range(400)] for epoch in (0, 1)])
    assert 350 < flips.sum() < 450 and 150 < (flips[0] != flips[1]).sum() < 250


def test_a_crop_keeps_its_share_of_the_area_and_is_hardly_stretched(processor):
    height, width = 320, 480
    grid = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
    pixels_3HW = torch.stack([*grid, torch.zeros(height, width)]).round().to(torch.uint8)
    augmentation = Augmentation(0, **{**NOTHING, "crop_scale": 0.25})
    shares, stretches = [], []
    for number in range(60):
        found = augmentation.resize(pixels_3HW, processor.image_processor, 0, number)
        assert found.shape == (3, 32, 48)
        rows, columns = ((int(found[part].max()) - int(found[part].min())) / 255 for part in (0, 1))
        shares.append(rows * columns)
        stretches.append(columns / rows)
    assert 0.2 < min(shares) < 0.45 and 0.75 < max(shares) <= 1
    assert 0.7 < min(stretches) < 0.95 and 1.05 < max(stretches) < 1.45


@pytest.mark.parametrize("settings", [{"colour": 0.5}, {"rand_augment": 2}])
def test_colours_and_rand_augment_change_an_image(settings, sided, processor):
    plain = PretrainingDataset(sided, processor)
    expected = pixels_of(plain, 0)
    found = pixels_of(changed(plain, **settings), 0)
    assert sum(not torch.equal(here, there) for here, there in zip(found, expected, strict=True)) > 6
