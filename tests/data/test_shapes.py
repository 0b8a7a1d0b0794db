"""Shapes of images from the beginnings of their files, by which like ones share micro-batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_corpus import draw, write_zip

from soho_fast.data.batches.downstream import DownstreamDataset, Examples, RetrievalDataset
from soho_fast.data.batches.pretraining import PretrainingDataset
from soho_fast.data.images import decode_image, shapes_of
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.stores import FolderStore, ZipStore

SIZES = [(48, 40), (40, 60), (50, 50), (100, 20)]


@pytest.fixture
def folder(tmp_path):
    for number, size in enumerate(SIZES):
        draw(tmp_path / f"{number}.jpg", size=size)
    return tmp_path


def ignored(done, total):
    """No progress is shown."""


def test_shapes_are_those_of_the_decoded_images(folder):
    exif = Image.Exif()
    for number, orientation in enumerate(range(1, 9), len(SIZES)):
        exif[0x0112] = orientation
        Image.new("RGB", (60, 20)).save(folder / f"{number}.jpg", exif=exif)
    Image.new("RGB", (30, 90)).save(folder / "12.png")
    (folder / "13.jpg").write_bytes(b"no image")
    names = [*(f"{number}.jpg" for number in range(12)), "12.png", "13.jpg", "14.jpg"]
    calls = []
    shapes = shapes_of([ImageRef(FolderStore(str(folder)), name) for name in names], lambda *at: calls.append(at))
    sizes = [decode_image((folder / name).read_bytes()).shape for name in names[:13]]
    expected = [math.log(width / height) for _, height, width in sizes]
    assert shapes.tolist() == pytest.approx([*expected, 0.0, 0.0]) and len(set(expected[4:12])) == 2
    assert calls[-1] == (15, 15)
    packed = ZipStore(str(write_zip(folder / "images.zip", folder, "*.*g")))
    assert shapes_of([ImageRef(packed, name) for name in names], ignored).tolist() == shapes.tolist()


def test_a_samples_key_is_its_images_shape(folder, records, processor):
    store = FolderStore(str(folder))
    images = [ImageRef(store, f"{number}.jpg") for number in range(4)]
    log = [math.log(width / height) for width, height in SIZES]
    mine = [replace(record, image=image) for record, image in zip(records, images, strict=False)]
    assert PretrainingDataset(mine, processor).group_keys(ignored).tolist() == pytest.approx(log)
    captions = RetrievalDataset(mine, processor, seed=0, max_text_length=8, every_caption=True)
    assert captions.group_keys(ignored).tolist() == pytest.approx(np.repeat(log, 2).tolist())

    pairs = [(images[0], images[3]), (images[1], images[2]), (images[0], images[3])]
    options = {"seed": 0, "max_text_length": 8}
    examples = Examples(pairs, ["a", "b", "c"], None)
    one = DownstreamDataset(examples, processor, texts_per_sample=1, **options)
    assert one.group_keys(ignored).tolist() == pytest.approx(np.array([log[0] + log[3]] * 2 + [log[1] + log[2]]) / 2)
