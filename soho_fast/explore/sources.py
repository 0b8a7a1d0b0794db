"""What an explorer is made from: images, each with the code of every patch.

From a model they come by `from_model.py`, from arrays by `from_arrays.py`.

K codes, C channels, h x w patches of an image.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from soho_fast.common.extras import from_extra

with from_extra("explore"):
    from PIL import Image, ImageOps

    from soho_fast.common.images import FORMATS, check_cost, check_header, decoding, to_rgb

LONGER_EDGE = 256
"""Of a small copy, pixels."""
_JPEG_QUALITY = 85

UNKNOWN_LICENCE = {"what": "those whose licence is not known here", "credit": "unknown", "licence": "unknown"}
"""The entry of meta's licences for images of which nothing else is known."""


class ImageError(ValueError):
    """An image that can't be read; the message names it and what went wrong."""


@dataclass(slots=True)
class SeenImage:
    """An image after the lookup.

    index: int32 (h, w), or (Q, h, w) of Q levels, -1 where there is no code; distance: float32, in index's shape, of
    each feature to its code, as it is measured in the feature space (not squared), of all images or of none. `place`:
    by which the source finds the image again. `source`: number in the source's `data_sets`; `licences`: numbers in its
    `licences`. `patches_high`, `patches_wide`: the image's size in patches, fractions included; 0 is that of the grid.
    """

    index: np.ndarray
    distance: np.ndarray | None
    name: str
    place: int
    captions: Sequence[str] = ()
    source: int = 0
    licences: Sequence[int] = ()
    patches_high: float = 0.0
    patches_wide: float = 0.0


class Source(Protocol):
    """Where the images and the codes come from.

    num_codes: K, those of all levels, one level after another. num_levels: Q, of as many codes each. codebook: float32
    (K, C); None where it is not known. title, model, licences: see `bundle`, data/meta.js. data_sets: names.
    num_images: how many `images` gives at most; None where that is not known.
    """

    codebook: np.ndarray | None
    num_codes: int
    num_levels: int
    title: str
    model: str
    data_sets: list[str]
    num_images: int | None
    licences: list[dict[str, str]]

    def images(self) -> Iterator[SeenImage]:
        """The images in their order, once. Those that can't be read are reported, and left out."""

    def small_copy(self, place: int) -> tuple[bytes, int, int]:
        """(JPEG, width, height) of an image, see `small_copy`. Raises ImageError: it can't be read."""

    def masked(self, places: Sequence[int], captions: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """Of each of some images, read with a caption, `masked` of data/images-0000.js."""


def as_array(value: Any) -> np.ndarray:
    """An array of what is one, or a tensor of any device and type."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)


def small_copy(image: Image.Image) -> tuple[bytes, int, int]:
    """(JPEG, width, height) of an image, its longer edge at most `LONGER_EDGE` pixels; never enlarged."""
    image = image.convert("RGB")
    scale = min(1.0, LONGER_EDGE / max(image.size))
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue(), width, height


def by_level(index: np.ndarray, level_codes: int) -> np.ndarray:
    """Indices int32 (Q, ...) that count from 0 in each level as numbers of all levels' codes; -1 stays."""
    levels = np.arange(len(index), dtype=np.int32).reshape(-1, *[1] * (index.ndim - 1))
    return np.where(index < 0, np.int32(-1), index + levels * np.int32(level_codes))


def fields_of(integers: str, floats: str) -> list[tuple[str, type]]:
    """Names of fields, int64 and float64, as numpy takes them for records."""
    return [(name, np.int64) for name in integers.split()] + [(name, np.float64) for name in floats.split()]


def digest_of(codebook: np.ndarray) -> str:
    """SHA-256 of a codebook, float32 (K, C), in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(codebook, dtype="<f4").tobytes()).hexdigest()


def open_image(file: str | os.PathLike[str] | io.BytesIO, name: str, least: int | None = 512) -> Image.Image:
    """An image file in RGB, upright. Raises ImageError, which calls it `name`: it can't be read.

    least: Of a JPEG a half, quarter or eighth is decoded, so many pixels wide and high at least; None decodes it whole.
    """
    try:
        data = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes()
        check_header(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size = image.size
            check_cost(image, data)
            if least is not None:
                image.draft("RGB", (least, least))
            with decoding(image, size):
                return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # A decoder meets damage with errors of any kind.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split(" <_io")[0]
        raise ImageError(f"{name}: can't be read as an image ({reason})") from error
