"""Images as the released code sees them: its sizes and its resize, by the numbers of its own pipeline."""

import io

import numpy as np
import pytest
import torch
from official_parity_rule import uniform
from parity import fixture
from PIL import Image

from soho_fast.data.images import SohoImageProcessor, fitted_size
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.stores import FolderStore

RELEASED = {"size": {"shortest_edge": 600, "longest_edge": 1000}, "size_divisor": 32}


def test_sizes_are_rounded_as_the_release_does():
    rows = fixture()["geometry"].tolist()
    assert len(rows) == 14
    for height, width, *expected in rows:
        resized = fitted_size(height, width, 600, 1000)
        padded = [-(-edge // 32) * 32 for edge in resized]
        assert [*resized, *padded] == expected[:4]


def image_of(name: str) -> tuple[torch.Tensor, list[int]]:
    """The RGB image (3, H, W) that the release read, and its sizes: before, after, padded."""
    sizes = fixture()[f"pipeline.{name}.shape"].tolist()
    height, width = sizes[:2]
    cells = uniform(f"pipeline/{name}", (-(-height // 4), -(-width // 4), 3))
    bgr = np.floor(256 * cells).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    return torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1), sizes


@pytest.mark.parametrize("name", ["up", "down"])
def test_pixels_are_within_one_level_of_the_release(name):
    """Its OpenCV interpolates in fixed point. Averaging over pixels is far away where it shrinks."""
    pixels_3HW, sizes = image_of(name)
    level = 1 / 255 / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def off(antialias: bool) -> torch.Tensor:
        processor = SohoImageProcessor(**RELEASED, antialias=antialias)
        batch = processor.collate([processor.resize_one(pixels_3HW)])
        values = batch["pixel_values"][0]
        assert list(values.shape) == [3, *sizes[4:]]
        assert batch["pixel_mask"] is None or batch["pixel_mask"].sum() == sizes[2] * sizes[3]
        if not antialias:
            whole = processor(images=[pixels_3HW], return_tensors="pt")["pixel_values"][0]
            assert torch.equal(whole, values), "transformers' own way in gives the same"
            for key, power in (("sum", 1), ("square_sum", 2)):
                apart = (values.double() ** power).sum() - fixture()[f"pipeline.{name}.{key}"]
                assert abs(apart) / values.numel() < 0.1 * float(level.min()), "a tenth of a level on average"
        return (values[:, ::37, ::41] - fixture()[f"pipeline.{name}.sample"]).abs() / level

    assert off(antialias=False).max() <= 1.001
    if name == "down":
        assert off(antialias=True).max() > 20


def test_large_jpegs_are_decoded_in_full(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    (tmp_path / "noise.jpg").write_bytes(file.getvalue())
    ref = ImageRef(FolderStore(tmp_path), "noise.jpg")
    size = {"shortest_edge": 100, "longest_edge": 200}
    plain, smooth = (SohoImageProcessor(size=size, antialias=antialias).load(ref) for antialias in (False, True))
    in_full = torch.from_numpy(np.asarray(Image.open(tmp_path / "noise.jpg")).copy()).permute(2, 0, 1)
    # The middle of 12 pixels lies between two, of which bilinear interpolation takes half each, rounding both ways.
    half = in_full[:, 5::12].float() / 2 + in_full[:, 6::12].float() / 2
    half = half[:, :, 5::12] / 2 + half[:, :, 6::12] / 2
    assert (plain.float() - half).abs().max() <= 1
    assert smooth.float().std() < plain.float().std() / 3, "averages of noise are flat"


def test_the_way_of_resizing_is_saved_with_the_processor(tmp_path):
    SohoImageProcessor(**RELEASED, antialias=False).save_pretrained(tmp_path)
    assert SohoImageProcessor.from_pretrained(tmp_path).antialias is False
    SohoImageProcessor(**RELEASED).save_pretrained(tmp_path)
    assert SohoImageProcessor.from_pretrained(tmp_path).antialias is True
