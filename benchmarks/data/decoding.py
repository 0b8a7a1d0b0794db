"""Ways from a JPEG's bytes to pixels of the model's size."""

import io
from collections.abc import Callable

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from soho_fast.data.images import SohoImageProcessor, image_to_pixels

SIZES = {"640 x 480": (640, 480), "1600 x 1200": (1600, 1200)}


def photographs(width: int, height: int) -> list[bytes]:
    """Three photographs as JPEGs; of 640 x 480 they take 150 to 190 KB, near COCO's 157."""
    found = []
    for pixels in (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()):
        file = io.BytesIO()
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", quality=97)
        found.append(file.getvalue())
    return found


def _by_torchvision(data: bytes) -> Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def decoders(processor: SohoImageProcessor) -> dict[str, Callable[[bytes], Tensor]]:
    """Bytes to uint8 (3, height, width) of the processor's size, by who does it."""
    found = {
        "soho_fast": processor.decode,
        "Pillow": lambda data: processor.resize_one(image_to_pixels(Image.open(io.BytesIO(data)))),
        "torchvision": lambda data: processor.resize_one(_by_torchvision(data)),
        "Pillow, resizing too": lambda data: _all_by_pillow(data, processor),
    }
    try:
        import simplejpeg
    except ImportError:
        return found

    def by_simplejpeg(data: bytes) -> Tensor:
        return processor.resize_one(torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1))

    return {**found, "simplejpeg": by_simplejpeg}


def _all_by_pillow(data: bytes, processor: SohoImageProcessor) -> Tensor:
    image = Image.open(io.BytesIO(data))
    scale = processor.size.shortest_edge / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    return torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR))).permute(2, 0, 1)
