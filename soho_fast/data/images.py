"""From file bytes, or any form in which a caller has an image, to `pixel_values` and `pixel_mask`.

Decode, resize, normalise, pad. Shapes: B images, H x W the padded size of the batch.
"""

import functools
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Unpack

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import TensorType

from soho_fast.common.errors import CorruptImageError
from soho_fast.common.images import FORMATS, MAX_PIXELS, check_cost, check_header, decoding, no_image, one_line, to_rgb
from soho_fast.common.limits import met_limit
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.stores import FolderStore

T = TypeVar("T")

# Pillow's own default for thumbnail(): decode a JPEG at a reduced DCT size only while that stays this many times larger
# than the wanted size, which keeps the result indistinguishable from a full decode.
_REDUCING_GAP = 2.0

# Pixels that are turned into RGB at a time: on the way they take several times their own memory.
_BAND = 2**22

# By the value of EXIF's Orientation; 1 and what is not listed is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)

# Most of the time goes into waiting, where the images lie on a disk of the network.
_HEADER_THREADS = 16
# So many that handing them to a thread costs little.
_HEADERS = 64


def decode_image(data: bytes, *, shorter_edge: int | None = None) -> torch.Tensor:
    """Decode an image in one of `FORMATS`, whatever the file's name says, to RGB: of several frames the first.

    The EXIF orientation is applied (damaged EXIF counts as none), transparency is laid over white. A JPEG much larger
    than `shorter_edge` is decoded at a half, quarter or eighth of its size (never below twice `shorter_edge`), which is
    what makes large photographs cheap.

    Args:
        data: The file's bytes.
        shorter_edge: The shorter edge the image will be resized to, in pixels; None decodes at full size.

    Returns:
        uint8 tensor (3, height, width).

    Raises:
        CorruptImageError: The bytes are no image, a truncated or damaged one, one that takes more than is given to any
            (`common/images.py`), or one whose values have no defined brightness (see `image_to_pixels`).
    """
    try:
        with warnings.catch_warnings():
            # Of odd metadata, and of sizes that are refused below.
            warnings.simplefilter("ignore")
            check_header(data)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            size = image.size
            check_cost(image, data)
            if shorter_edge is not None and image.format == "JPEG":
                scale = min(1.0, _REDUCING_GAP * shorter_edge / min(image.size))
                image.draft("RGB", (int(image.width * scale), int(image.height * scale)))
            # After `draft`, which has changed the size: a JPEG counts by what is decoded of it.
            with decoding(image, size):
                # Where `draft` has changed the size Pillow goes on: torchvision decodes at the full size only.
                pixels_3HW = _plain_jpeg(image, data) if image.size == size else None
                if pixels_3HW is not None:
                    return pixels_3HW
                image.load()
                return image_to_pixels(image)
    except UnidentifiedImageError as error:  # its own text names the buffer's address
        raise CorruptImageError(f"can't be decoded as an image ({len(data)} bytes): {no_image(data)}") from error
    except Exception as error:  # a decoder meets damage with errors of any kind: struct, zlib, RuntimeError, ...
        raise CorruptImageError(f"can't be decoded as an image ({len(data)} bytes): {one_line(error)}") from error


def _plain_jpeg(image: Image.Image, data: bytes) -> torch.Tensor | None:
    """The pixels of an opened JPEG that needs nothing but decoding; None of all else, and where the decoder gives up:
    Pillow then says why.

    Both have libjpeg-turbo and give the same values; torchvision makes no copies of them, as Pillow makes three.
    `benchmarks/data` has what that is worth.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    if image.info.get("exif") and _orientation(image) in _UPRIGHT:
        return None
    try:
        # A copy of the bytes: torch warns of memory that can't be written to.
        pixels_3HW = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError:
        return None
    return pixels_3HW if pixels_3HW.shape == (3, image.height, image.width) else None


def image_to_pixels(image: Image.Image) -> torch.Tensor:
    """An opened image as `decode_image` gives it: uint8 (3, height, width).

    16-bit grey is scaled from 0 to 65535, floating point from 0 to 1.

    Raises:
        ValueError: Values outside of these have no defined brightness, as those of a mode that Pillow can't turn into
            RGB.
    """
    if image.info.get("exif"):
        orientation = _orientation(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        # `array`, which copies: Pillow's own memory can't be written to.
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(to_rgb(image.crop((0, top, image.width, bottom))))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def shapes_of(
    images: Sequence[ImageRef], progress: Callable[[int, int], None] = lambda done, total: None
) -> np.ndarray:
    """The logarithm of width / height of each image, upright, from the beginning of its file: float64 (N,).

    What can't be read counts as square; reading its pixels will say why.

    Args:
        images: The images.
        progress: Called with how many are done, of how many.
    """
    with warnings.catch_warnings():
        # Of odd metadata and of large sizes, as in `decode_image`.
        warnings.simplefilter("ignore")
        return np.array(list(_in_threads(_shape_of, images, _HEADER_THREADS, progress, _HEADERS)), np.float64)


def _in_threads(
    work: Callable[[ImageRef], T],
    images: Sequence[ImageRef],
    threads: int | None,
    progress: Callable[[int, int], None],
    at_a_time: int = 1,
) -> Iterator[T]:
    def of_share(first: int) -> list[T]:
        return [work(images[number]) for number in range(first, min(first + at_a_time, len(images)))]

    with ThreadPoolExecutor(threads) as pool:
        shares = pool.map(of_share, range(0, len(images), at_a_time))
        for number, each in enumerate(chain.from_iterable(shares), start=1):
            yield each
            progress(number, len(images))


def look_at(
    images: Sequence[ImageRef], shorter_edge: int, progress: Callable[[int, int], None]
) -> list[tuple[str, str]]:
    """Decodes images once, as training does: of each the SHA-256 of its bytes, or "" and why it can't be read.

    Args:
        images: The images.
        shorter_edge: As that of `decode_image`.
        progress: Called with how many are done, of how many.
    """

    def look(image: ImageRef) -> tuple[str, str]:
        try:
            content = image.read()
            decode_image(content, shorter_edge=shorter_edge)
        except (OSError, CorruptImageError) as error:
            if met_limit(error):
                raise
            return "", f"{image} {error}"
        return hashlib.sha256(content).hexdigest(), ""

    return list(_in_threads(look, images, os.cpu_count(), progress))


def _shape_of(image: ImageRef) -> float:
    try:
        with image.open() as file:
            check_header(file.read(4096))
            file.seek(0)
            with Image.open(file, formats=FORMATS) as header:
                turned = bool(header.info.get("exif")) and _orientation(header) in _TURNED
                shape = math.log(header.width / header.height)
                return -shape if turned else shape
    except Exception:  # damage makes errors of any kind
        return 0.0


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # what is damaged is not the image
        return None


def fitted_size(height: int, width: int, shorter_edge: int, longer_edge: int) -> tuple[int, int]:
    """(height, width) with the shorter edge at `shorter_edge`, or less where the longer one would pass `longer_edge`.

    Rounded to the nearest pixel, as in the authors' code; transformers' `get_size_with_aspect_ratio` cuts the other
    edge, and is one pixel off for a third of all sizes.
    """
    scale = min(longer_edge / max(height, width), shorter_edge / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


class SohoImageProcessorKwargs(ImagesKwargs, total=False):
    """Keywords of `SohoImageProcessor`, beside those of every image processor.

    size_divisor: Height and width of the padded batch are multiples of this.
    antialias: Shrink by averaging over the pixels that fall together; False takes the four nearest ones alone.
    """

    size_divisor: int
    antialias: bool


class SohoImageProcessor(TorchvisionBackend):
    """Images to `pixel_values` (B, 3, H, W) float32 and `pixel_mask` (B, H, W) bool, False on padding.

    (transformers' own masks are int64: at 600 x 1000 pixels that is two thirds of the image's own size.)

    The shorter edge becomes `size["shortest_edge"]`, the longer one at most `size["longest_edge"]` (paper, section 4.1:
    600 and 1000), bilinear with antialiasing. Pixels are normalised by ImageNet's mean and standard deviation. Zeros at
    the right and bottom pad to the batch's largest height and width, rounded up to `size_divisor`.

    With `antialias=False`, as in the authors' code, large JPEGs are not decoded at a reduced size either; its uint8
    values are within one grey level of OpenCV's bilinear ones, which are computed in fixed point.
    """

    valid_kwargs = SohoImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size: ClassVar[Any] = {"shortest_edge": 600, "longest_edge": 1000}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad = True
    size_divisor = 32
    antialias = True
    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012  # as of every processor

    def __init__(self, **kwargs: Unpack[SohoImageProcessorKwargs]) -> None:
        """Raises ValueError: edges that no image can have, or invalid numbers."""
        super().__init__(**kwargs)  # type: ignore[misc]  # transformers hands on a processor's own too
        shorter, longer = self.size.shortest_edge, self.size.longest_edge
        if not (shorter and longer and 0 < shorter <= longer and shorter * longer <= MAX_PIXELS):
            raise ValueError(
                f"size: expected 0 < shorter_edge <= longer_edge, and at most {MAX_PIXELS:,} pixels in all, got "
                f"{shorter} and {longer}"
            )
        for name, count, most in (
            ("image_mean", 3, 1e6), ("image_std", 3, 1e6), ("rescale_factor", 1, 1e6), ("size_divisor", 1, 1024),
        ):  # fmt: skip
            value = getattr(self, name)
            numbers = [value] if count == 1 else value
            try:
                is_usable = len(numbers) == count and all(0 < number <= most for number in numbers)
            except TypeError:
                is_usable = False
            if not is_usable:
                raise ValueError(f"{name}: expected {count} number(s) above 0, of at most {most:g}, got {value!r:.60}")

    def load(self, image: ImageRef) -> torch.Tensor:
        """Read, decode and resize one image to a uint8 tensor (3, height, width), not yet normalised or padded.

        Args:
            image: Where it is.

        Raises:
            CorruptImageError: The file can't be read or decoded; the message names it.
        """
        try:
            return self.decode(image.read())
        except (OSError, ValueError) as error:
            if met_limit(error):
                raise
            raise CorruptImageError(f"{image}: {error}") from error

    def decode(self, data: bytes) -> torch.Tensor:
        """An image's bytes as `load` gives it. Raises CorruptImageError: as `decode_image`."""
        pixels_3HW = decode_image(data, shorter_edge=self.size.shortest_edge if self.antialias else None)
        return self.resize_one(pixels_3HW)

    def resize_one(self, pixels_3HW: torch.Tensor) -> torch.Tensor:
        """Resize a uint8 image (3, height, width) to this processor's size; the same tensor when it already fits."""
        height, width = pixels_3HW.shape[-2:]
        new_size = fitted_size(height, width, self.size.shortest_edge, self.size.longest_edge)
        if new_size == (height, width):
            return pixels_3HW
        bilinear = tvF.InterpolationMode.BILINEAR
        return tvF.resize(pixels_3HW, list(new_size), interpolation=bilinear, antialias=self.antialias)

    def resize(self, image: torch.Tensor, size: SizeDict, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As every image processor's, with the edges rounded by `fitted_size`."""
        if size.shortest_edge and size.longest_edge:
            height, width = fitted_size(image.shape[-2], image.shape[-1], size.shortest_edge, size.longest_edge)
            size = SizeDict(height=height, width=width)
        return super().resize(image, size, *args, **kwargs)

    def collate(self, images: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | None]:
        """Normalise and pad resized uint8 images (3, height, width) to one batch.

        Returns:
            `pixel_values` (B, 3, H, W) float32 and `pixel_mask` (B, H, W) bool, True on the image; None where nothing
            is padded, so that the device need not be asked whether there is anything to mask.
        """
        return self.normalised(self.collate_bytes(images))

    def collate_bytes(self, images: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | None]:
        """As `collate`, but `pixel_values` are uint8, not yet normalised: a quarter of the bytes on the way from a
        loader process to the device, where `normalised` makes of them what `collate` gives, bit for bit."""
        pixels_B3HW, mask_BHW = _padded(images, self.size_divisor)
        return {"pixel_values": pixels_B3HW, "pixel_mask": mask_BHW}

    def normalised(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with what `collate_bytes` gave, on any device, with its `pixel_values` normalised there; what else it
        holds, and a batch that is without them, stays."""
        if batch.get("pixel_values") is None:
            return dict(batch)
        statistics = self.rescale_factor, self.image_mean, self.image_std
        return {**batch, "pixel_values": _normalised(batch["pixel_values"], batch["pixel_mask"], *statistics)}

    def _preprocess(  # type: ignore[override]  # it is called with keywords alone
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | tvF.InterpolationMode | int | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: list[float] | None,
        image_std: list[float] | None,
        do_pad: bool | None,
        return_tensors: str | TensorType | None,
        size_divisor: int | None = None,
        antialias: bool = True,
        **kwargs: object,
    ) -> BatchFeature:
        if do_resize:
            images = [self.resize(image, size, resample, antialias=antialias) for image in images]
        if not do_pad and len({tuple(image.shape) for image in images}) > 1:
            raise ValueError("do_pad=False: the images differ in size after resizing; pass do_pad=True to batch them")
        pixels_B3HW, mask_BHW = _padded(images, size_divisor if do_pad else None)
        scale = rescale_factor if do_rescale else 1.0
        statistics = (image_mean, image_std) if do_normalize else (None, None)
        pixels_B3HW = _normalised(pixels_B3HW, mask_BHW, scale, *statistics)
        if mask_BHW is None:
            mask_BHW = torch.ones_like(pixels_B3HW[:, 0], dtype=torch.bool)
        return BatchFeature(data={"pixel_values": pixels_B3HW, "pixel_mask": mask_BHW}, tensor_type=return_tensors)


def _padded(images: Sequence[torch.Tensor], size_divisor: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images (3, height, width) of one type as one batch, zero at the right and below, and bool (B, H, W), True on the
    images; None where nothing is padded.

    The colours of a pixel lie together, as a decoder leaves them: to part them costs as much as to resize, and a device
    does it on the way to floats.
    """
    divisor = size_divisor or 1
    height, width = (-(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (-2, -1))
    kind = functools.reduce(torch.promote_types, (image.dtype for image in images))
    options: dict[str, Any] = {"dtype": kind, "device": images[0].device}
    if all(image.shape[-2:] == (height, width) for image in images):
        # Not cleared first: the images fill all of it.
        pixels_B3HW, mask_BHW = torch.empty(len(images), height, width, 3, **options).permute(0, 3, 1, 2), None
    else:
        pixels_B3HW = torch.zeros(len(images), height, width, 3, **options).permute(0, 3, 1, 2)
        mask_BHW = torch.zeros(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for number, image in enumerate(images):
        rows, columns = image.shape[-2:]
        pixels_B3HW[number, :, :rows, :columns] = image
        if mask_BHW is not None:
            mask_BHW[number, :rows, :columns] = True
    return pixels_B3HW, mask_BHW


def _normalised(
    pixels_B3HW: torch.Tensor,
    mask_BHW: torch.Tensor | None,
    rescale_factor: float,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> torch.Tensor:
    """Contiguous float32 (B, 3, H, W): a product and a sum, each rounded once, so the same bits on any device; 0 where
    the mask is False. Without `mean` and `std` the product alone."""
    scale_311, shift_311 = torch.full((3, 1, 1), rescale_factor), torch.zeros(3, 1, 1)
    if mean is not None:
        std_311 = torch.tensor(std).view(3, 1, 1)
        # (x * rescale - mean) / std as one product and one sum.
        shift_311 = -torch.tensor(mean).view(3, 1, 1) / std_311
        scale_311 = scale_311 / std_311
    device = pixels_B3HW.device
    # A copy that is not waited for: the device may have work to do still.
    scale_311, shift_311 = (each.to(device, non_blocking=True) for each in (scale_311, shift_311))
    # `copy_` turns bytes into floats and brings the colours into planes in one pass.
    values_B3HW = torch.empty(pixels_B3HW.shape, device=device).copy_(pixels_B3HW)
    values_B3HW.mul_(scale_311).add_(shift_311)
    return values_B3HW if mask_BHW is None else values_B3HW.masked_fill_(~mask_BHW.unsqueeze(1), 0.0)


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
            with decoding(image):
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
    _check_pixels(width, height)
    if isinstance(image, Tensor):
        return image.detach().cpu()
    planes = np.stack([image] * 3) if is_grey else image.transpose(2, 0, 1)
    # Contiguous: torch takes no arrays with negative strides, as of a flipped image.
    return torch.from_numpy(np.ascontiguousarray(planes))


def _check_pixels(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; expected at least 1 and at most {MAX_PIXELS:,} in all")
