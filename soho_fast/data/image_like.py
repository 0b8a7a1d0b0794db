"""An image in any form in which a caller may have it, as pixels: uint8 (3, height, width)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from soho_fast.common.reading import one_line
from soho_fast.data.images import MAX_PIXELS, SohoImageProcessor, image_to_pixels
from soho_fast.data.stores import FolderStore

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
"""A path; a file's bytes; a PIL image; or pixels, uint8: numpy's (height, width, 3) or (height, width), torch's (3,
height, width)."""


def is_image(value: Any) -> bool:
    """Whether a value is of one of these types."""
    return isinstance(value, (str, os.PathLike, bytes, Image.Image, np.ndarray, Tensor))


def load_any(image: ImageLike, processor: SohoImageProcessor) -> Tensor:
    """An image's pixels, resized as the model takes them: uint8 (3, height, width).

    Files, and PIL images that carry EXIF, are turned upright; what is transparent is white; of several frames the first
    is taken (of a PIL image the current one).

    Raises:
        ValueError: it can't be read, is larger than `MAX_PIXELS`, or of another type or shape.
    """
    if not is_image(image):
        raise ValueError(f"image: expected a path, bytes, a PIL image or pixels, got {type(image).__name__}")
    try:
        if isinstance(image, (str, os.PathLike)):
            path = Path(image)
            # A store opens regular files alone: a pipe would be waited for, a device has no end.
            return processor.decode(FolderStore(str(path.parent)).read(path.name))
        if isinstance(image, bytes):
            return processor.decode(image)
        if isinstance(image, Image.Image):
            _check_size(image.width, image.height)
            return processor.resize_one(image_to_pixels(image))
        return processor.resize_one(_pixels_of(image))
    except (
        Exception
    ) as error:  # A PIL image may be decoded only now, and a decoder meets damage with errors of any kind.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        named = f"{image!s:.200} can't be read ({reason})" if isinstance(image, (str, os.PathLike)) else reason
        raise ValueError(f"image: {named}") from error


def _pixels_of(image: np.ndarray | Tensor) -> Tensor:
    """Pixels as uint8 (3, height, width); raises ValueError."""
    of_torch = isinstance(image, Tensor)
    dtype, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
    is_grey = len(shape) == 2 and not of_torch
    if dtype != "uint8" or not (is_grey or (len(shape) == 3 and shape[0 if of_torch else 2] == 3)):
        expected = "(3, height, width)" if of_torch else "(height, width, 3) or (height, width)"
        raise ValueError(f"expected uint8 pixels {expected}, got {dtype} {shape}")
    height, width = shape[1:] if of_torch else shape[:2]
    _check_size(width, height)
    if of_torch:
        return image.detach().cpu()
    planes = np.stack([image] * 3) if is_grey else image.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; expected at least 1 and at most {MAX_PIXELS:,} in all")
