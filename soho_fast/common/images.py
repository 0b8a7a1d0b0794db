"""Reading images, wherever they lie: limits, errors in one line, and RGB of all kinds of pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from soho_fast.common.extras import install_command

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""The formats that are decoded, by Pillow's names: those in which photographs and drawings are kept; with the extra
`heic` also HEIC.

Of Pillow's other forty some start a program (EPS), some only stand for a plug-in, and few are fed with hostile files.
"""

try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()
    FORMATS += ("HEIF",)

# What stands at byte 4 of a HEIC file: a box of this type, and its brand.
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

MAX_PIXELS = 89_478_485
"""Width times height of the largest image that is decoded, of a JPEG after it was reduced on reading, unless it is
progressive: from where on Pillow, as it comes, warns of a decompression bomb."""

MAX_SCANS = 100
"""The most scans of a JPEG: programs write about ten, and each takes as long as the whole image."""

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


def check_jpeg(image: Image.Image, data: bytes) -> None:
    """Raises ValueError: an opened image that is a JPEG, or a TIFF of such, which costs far more than its pixels."""
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
