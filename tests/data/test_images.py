import io
import math
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_corpus import COLOURS, draw, write_zip
from torchvision.io import decode_jpeg

from soho_fast.common import images
from soho_fast.common.errors import CorruptImageError
from soho_fast.data import images as data_images
from soho_fast.data.batches.downstream import DownstreamDataset, Examples, RetrievalDataset
from soho_fast.data.batches.pretraining import PretrainingDataset
from soho_fast.data.images import SohoImageProcessor, decode_image, image_to_pixels, shapes_of
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.stores import FolderStore, ZipStore


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def make_processor(shorter=60, longer=100, divisor=1):
    return SohoImageProcessor(size={"shortest_edge": shorter, "longest_edge": longer}, size_divisor=divisor)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_decode_gives_rgb_planes_in_order(kind):
    pixels = decode_image(encoded(Image.new("RGB", (30, 20), COLOURS["red"]), kind))
    assert pixels.shape == (3, 20, 30) and pixels.dtype == torch.uint8
    assert pixels[0].float().mean() > 240 and pixels[1:].float().mean() < 20


def test_heic_is_decoded_or_named(monkeypatch):
    monkeypatch.setattr(images, "FORMATS", tuple(name for name in images.FORMATS if name != "HEIF"))
    monkeypatch.setattr(data_images, "FORMATS", images.FORMATS)
    with pytest.raises(CorruptImageError, match=r"it is HEIC; convert it to JPEG, or: pip install .*\[heic\]"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(99))
    heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr(data_images, "FORMATS", (*images.FORMATS, "HEIF"))
    content = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (30, 20), COLOURS["red"])).save(content)
    pixels = decode_image(content.getvalue())
    assert pixels.shape == (3, 20, 30) and pixels[0].float().mean() > 240 and pixels[1:].float().mean() < 20


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA"])
def test_every_mode_becomes_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    pixels = decode_image(encoded(Image.new("L", (16, 12), 255).convert(mode), kind))
    assert pixels.shape == (3, 12, 16) and (pixels > 250).all()


def test_transparency_is_laid_over_white():
    assert (decode_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG")) == 255).all()


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (255, 0, 0)), ("L", 7), ("P", 7)])
def test_a_colour_that_stands_for_transparency_is_white(mode, colour):
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette(bytes(value for value in range(256) for _ in "RGB"))
    image.putpixel((0, 0), 1 if mode != "RGB" else (1, 2, 3))
    pixels = decode_image(encoded(image, "PNG", transparency=colour))
    assert (pixels[:, 1:, 1:] == 255).all()
    assert pixels[:, 0, 0].tolist() == ([1, 2, 3] if mode == "RGB" else [1, 1, 1])


def test_reduced_decode_is_close_to_the_full_one():
    data = encoded(noise(1600, 1200), quality=95)
    reduced = decode_image(data, shorter_edge=100)
    assert reduced.shape == (3, 300, 400), "a quarter: never below twice the wanted edge"
    processor = make_processor(100, 200)
    difference = processor.resize_one(reduced).float() - processor.resize_one(decode_image(data)).float()
    assert difference.abs().mean() < 2.0
    assert decode_image(data, shorter_edge=700).shape == (3, 1200, 1600)


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 20}],
)
def test_the_decoder_of_plain_jpegs_gives_pillows_values(options, monkeypatch):
    images = [noise(61, 47), noise(64, 48).convert("L")]
    plain = []
    monkeypatch.setattr(data_images, "decode_jpeg", lambda *x, **y: plain.append(decode_jpeg(*x, **y)) or plain[-1])
    for image in images:
        data = encoded(image, **options)
        assert torch.equal(decode_image(data), image_to_pixels(Image.open(io.BytesIO(data))))
    assert len(plain) == 2
    monkeypatch.undo()
    monkeypatch.setattr(data_images, "decode_jpeg", lambda *x, **y: plain[0][:, 1:])
    data = encoded(images[0], **options)
    assert decode_image(data).shape == (3, 47, 61), "another size than the header's is not taken"


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_jpegs_of_other_colours_are_pillows(mode):
    data = encoded(noise(40, 30).convert(mode))
    assert torch.equal(decode_image(data), image_to_pixels(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_truncated_jpeg_is_corrupt(share):
    data = encoded(noise(200, 160))
    with pytest.raises(CorruptImageError, match=r"can't be decoded as an image \(\d+ bytes\)"):
        decode_image(data[: int(len(data) * share)])


def test_an_image_that_cannot_be_opened_for_want_of_open_files_is_not_corrupt(tmp_path):
    (tmp_path / "whole.jpg").write_bytes(encoded(noise(40, 30)))
    processor, image = make_processor(), ImageRef(FolderStore(str(tmp_path)), "whole.jpg")
    _, most = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            processor.load(image)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    processor.load(image)


def test_text_instead_of_an_image_is_corrupt_and_named(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(CorruptImageError, match=r"page\.jpg: can't be decoded"):
        make_processor().load(ImageRef(FolderStore(str(tmp_path)), "page.jpg"))
    with pytest.raises(CorruptImageError, match=r"gone\.jpg"):
        make_processor().load(ImageRef(FolderStore(str(tmp_path)), "gone.jpg"))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(640, 480, (60, 80)), (480, 640, (80, 60)), (1000, 200, (20, 100)), (60, 60, (60, 60)), (30, 30, (60, 60))],
)
def test_shorter_edge_and_longest_edge(width, height, expected):
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    assert tuple(make_processor().resize_one(pixels).shape[1:]) == expected


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(640, 427, (600, 899)), (640, 478, (600, 803)), (500, 333, (600, 901))]
)
def test_edges_are_rounded_as_the_authors_round_them(width, height, expected):
    """int(edge * scale + 0.5), of the longer edge too; transformers' own function cuts it."""
    processor = SohoImageProcessor()
    assert tuple(processor.resize_one(torch.zeros(3, height, width, dtype=torch.uint8)).shape[1:]) == expected
    called = processor([Image.new("RGB", (width, height))], return_tensors="pt")
    assert called["pixel_mask"][0].sum() == expected[0] * expected[1]


def test_extreme_shapes_keep_at_least_one_pixel():
    assert make_processor().resize_one(torch.zeros(3, 1, 5000, dtype=torch.uint8)).shape == (3, 1, 100)


def test_collate_normalises_pads_with_zero_and_masks():
    processor = make_processor(divisor=32)
    images = [torch.full((3, 60, 80), 255, dtype=torch.uint8), torch.zeros(3, 65, 60, dtype=torch.uint8)]
    batch = processor.collate(images)
    assert batch["pixel_values"].shape == (2, 3, 96, 96) and batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [60 * 80, 65 * 60]
    assert batch["pixel_mask"][0, :60, :80].all() and batch["pixel_mask"][1, :65, :60].all()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(batch["pixel_values"][0, :, 0, 0], (1 - mean) / std)
    torch.testing.assert_close(batch["pixel_values"][1, :, 64, 59], -mean / std)
    outside = batch["pixel_mask"][:, None].expand(-1, 3, -1, -1) == 0
    assert (batch["pixel_values"][outside] == 0).all()


def test_bytes_are_normalised_on_the_device_to_the_same_bits():
    """As one image at a time in plain torch: the product rounded, then the sum; by the processor's own statistics."""
    size = {"shortest_edge": 60, "longest_edge": 100}
    processor = SohoImageProcessor(size=size, size_divisor=32, image_mean=[0.5, 0.4, 0.3], image_std=[0.25, 0.2, 0.3])
    planes = torch.arange(256, dtype=torch.uint8).view(1, 8, 32).expand(3, 8, 32)
    # As a decoder leaves an image, and as planes.
    images = [torch.from_numpy(np.array(noise(40, 70))).permute(2, 0, 1), planes]
    batch = processor.collate_bytes(images)
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_mask"].dtype == torch.bool
    on_device = {**batch, "input_ids": torch.ones(2, 3)}
    found = processor.normalised(on_device)
    assert found["input_ids"] is on_device["input_ids"] and found["pixel_values"].is_contiguous()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (processor.image_mean, processor.image_std))
    expected = torch.zeros(2, 3, 96, 64)
    for number, image in enumerate(images):
        scaled = image.float() * (torch.full((3, 1, 1), 1 / 255) / std)
        expected[number, :, : image.shape[1], : image.shape[2]] = scaled + -mean / std
    assert torch.equal(found["pixel_values"].view(torch.int32), expected.view(torch.int32)), "no -0.0 on padding"
    assert torch.equal(processor.collate(images)["pixel_values"], expected)
    kept = {"backbone_features": torch.ones(2, 3)}
    assert processor.normalised(kept) == kept, "batches that are without pixels stay"


@pytest.mark.parametrize(
    ("name", "value"), [("size_divisor", 20_000), ("size_divisor", 0), ("image_std", [1, 0, 1]), ("image_mean", [1, 1])]
)
def test_numbers_that_no_batch_can_have_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected \d number\(s\) above 0, of at most 1(024|e\+06), got "):
        SohoImageProcessor(**{name: value})


def test_there_is_a_mask_only_where_there_is_padding():
    processor, image = make_processor(divisor=32), torch.full((3, 64, 96), 9, dtype=torch.uint8)
    assert processor.collate([image, image])["pixel_mask"] is None
    assert not processor.collate([image, image[:, :, :60]])["pixel_mask"].all()
    assert not processor.collate([image[:, :60]])["pixel_mask"].all(), "padded to the divisor"


def test_call_and_training_path_agree(tmp_path):
    draw(tmp_path / "0.jpg", "olive", (300, 200))
    noise(150, 400).save(tmp_path / "1.png")
    processor = make_processor(divisor=32)
    called = processor([Image.open(tmp_path / name) for name in ("0.jpg", "1.png")], return_tensors="pt")
    refs = [ImageRef(FolderStore(str(tmp_path)), name) for name in ("0.jpg", "1.png")]
    trained = processor.collate([processor.load(ref) for ref in refs])
    torch.testing.assert_close(called["pixel_values"], trained["pixel_values"], atol=0.05, rtol=0)
    assert torch.equal(called["pixel_mask"], trained["pixel_mask"])


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
