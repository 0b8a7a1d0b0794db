"""Reading images, wherever they lie: limits, errors in one line, and RGB of all kinds of pixels."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import AvifImagePlugin, Image

from soho_fast.common.extras import install_command

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""The formats that are decoded, by Pillow's names: those in which photographs and drawings are kept; with the extra
`heic` also HEIC.

Of Pillow's other forty some start a program (EPS), some only stand for a plug-in, and few are fed with hostile files.
"""

# Pillow's and pillow-heif's way to say it; by default one image takes all cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
try:
    from pillow_heif import options, register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()
    options.DECODE_THREADS = 1
    FORMATS += ("HEIF",)

# What stands at byte 4 of a HEIC file: a box of this type, and its brand.
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

MAX_DECODING_BYTES = 2**30
"""The memory that all images which a process decodes at a time may take, and so the most of one."""

# What a pixel takes on its way to RGB, measured: 3 (JPEG) to 12 (AVIF), but in WebP.
_PIXEL_BYTES, _WEBP_PIXEL_BYTES = 12, 16

MAX_PIXELS = MAX_DECODING_BYTES // _PIXEL_BYTES
"""Width times height of the largest image that is decoded, 89,478,485, of a JPEG after it was reduced on reading,
unless it is progressive; of a WebP 67,108,864."""

MAX_SCANS = 100
"""The most scans of a JPEG: programs write about ten, and each takes as long as the whole image."""

# Of a PPM: Pillow reads its header, and numbers that are written out, by Python code.
_PPM_HEADER, _MAX_PPM_COMMENTS, _MAX_DIGITS_BYTES = 4096, 100, 2**22

MAX_FILE_BYTES = 2**29
"""The largest image file that is read, in a folder or in an archive: 512 MiB, more than 170 million RGB pixels."""


def one_line(error: Exception) -> str:
    """What an error of a decoder says, in a line that can be shown: its text may hold bytes of the file."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())[:200]
    if text and isinstance(error, (OSError, ValueError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def no_image(data: bytes) -> str:
    """Why a file whose format is not in `FORMATS` is not decoded."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and "HEIF" not in FORMATS:
        return f"it is HEIC; convert it to JPEG, or: {install_command('heic')}"
    return f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def check_size(num_bytes: int) -> None:
    """Raises OSError: a file larger than any image."""
    if num_bytes > MAX_FILE_BYTES:
        raise OSError(f"{num_bytes:,} bytes; expected an image of at most {MAX_FILE_BYTES:,}")


class _Budget:
    """What of `MAX_DECODING_BYTES` is taken."""

    def __init__(self) -> None:
        self.taken, self.changed = 0, threading.Condition()


_BUDGET = _Budget()
# A thread that decodes is not there in a process that is forked meanwhile.
os.register_at_fork(after_in_child=_BUDGET.__init__)  # type: ignore[misc]


@contextmanager
def decoding(image: Image.Image, whole: tuple[int, int] | None = None) -> Iterator[None]:
    """Waits until there is memory to decode an image that is opened.

    Args:
        image: The image, of a JPEG as it was reduced on reading.
        whole: Its size before that, which a progressive JPEG takes.

    Raises:
        ValueError: it takes more than `MAX_DECODING_BYTES` alone, or has no pixels.
    """
    width, height = whole if whole and image.info.get("progressive") else image.size
    each = _WEBP_PIXEL_BYTES if image.format == "WEBP" else _PIXEL_BYTES
    need, most = width * height * each, MAX_DECODING_BYTES // each
    if not 0 < width * height <= most:
        raise ValueError(f"{width} x {height} pixels; expected at least 1 and at most {most:,} in all")
    with _BUDGET.changed:
        _BUDGET.changed.wait_for(lambda: _BUDGET.taken + need <= MAX_DECODING_BYTES)
        _BUDGET.taken += need
    try:
        yield
    finally:
        with _BUDGET.changed:
            _BUDGET.taken -= need
            _BUDGET.changed.notify_all()


def check_header(data: bytes) -> None:
    """Raises ValueError: the beginning of a file is that of a PPM whose header has comments without end."""
    if re.match(rb"P[0-6fy]", data):
        numbers = 3 if data[1:2] in b"14" else 4
        head = re.sub(rb"#[^\r\n]*[\r\n]", b"", data[:_PPM_HEADER])
        if not re.match(rb"(?:\s*[^\s#]+\s){%d}" % numbers, head):
            raise ValueError(f"no header of a PPM in its first {_PPM_HEADER:,} bytes")


def check_cost(image: Image.Image, data: bytes) -> None:
    """Raises ValueError: an opened image costs far more than its pixels: a JPEG, a TIFF of such, or a PPM."""
    if image.format == "PPM" and data[1:2] in b"123":
        if len(data) > _MAX_DIGITS_BYTES:
            raise ValueError(f"{len(data):,} bytes; expected a PPM in plain digits of at most {_MAX_DIGITS_BYTES:,}")
        if (count := data.count(b"#")) > _MAX_PPM_COMMENTS:
            raise ValueError(f"{count:,} comments; expected at most {_MAX_PPM_COMMENTS}")
    if image.format not in ("JPEG", "MPO") and image.info.get("compression") not in ("jpeg", "tiff_jpeg"):
        return
    # The marker that begins a scan.
    if (count := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"{count:,} scans; expected a JPEG of at most {MAX_SCANS}")
    pixels = image.width * image.height
    # Each block of 8 x 8 takes a bit at least, and what is progressive is held in full before it is reduced.
    if pixels > 8 * 64 * len(data) or (image.info.get("progressive") and pixels > MAX_PIXELS):
        raise ValueError(
            f"{image.width} x {image.height} pixels in {len(data):,} bytes; they take more, or are too many"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image of any of Pillow's modes as RGB, as it is seen on white paper.

    16-bit grey is scaled from 0 to 65535, floating point from 0 to 1; what is transparent is white.

    Raises:
        ValueError: values outside of these have no defined brightness.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    # Pillow's own conversion clips these instead of scaling.
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if image.mode == "I" and (grey.min() < 0 or grey.max() > 65535):
            raise ValueError(f"grey from {grey.min()} to {grey.max()}; expected 0 to 65535 (16 bits)")
        # Without one it is compared with None, which is False everywhere; 65535 = 255 * 257.
        white = grey == image.info.get("transparency")
        return Image.fromarray(np.where(white, 255, grey // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.asarray(image)
        if not (grey.min() >= 0 and grey.max() <= 1):  # NaN is neither
            raise ValueError(f"floating-point grey from {grey.min():g} to {grey.max():g}; expected 0 to 1")
        return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
