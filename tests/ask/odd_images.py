"""Odd images as files, and what Pillow's own functions make of them; and files that are no usable image."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

SIZE = (48, 40)


def _drawn() -> Image.Image:
    patches = np.random.default_rng(7).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(SIZE, Image.Resampling.NEAREST)


def _file(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _deep() -> np.ndarray:
    """uint16 (height, width, 3)."""
    return np.asarray(_drawn()).astype(np.uint16) * 256 + 91


def _png16(pixels: np.ndarray) -> bytes:
    """A PNG of three channels of 16 bits, which Pillow reads but does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    listed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(listed)


def _tiff16(pixels: np.ndarray) -> bytes:
    """The same as TIFF."""
    height, width, _ = pixels.shape
    data = pixels.astype("<u2").tobytes()
    bits_at = 8 + len(data)
    fields = (
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8),
        (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data)),
    )  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *field) for field in fields)
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", bits_at + 6) + data + struct.pack("<HHH", 16, 16, 16) + directory


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def odd_images() -> dict[str, tuple[bytes, Image.Image]]:
    """File and the RGB image that it stands for, by file name."""
    drawn = _drawn()
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = drawn.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(SIZE))
    palette = drawn.quantize(16)
    grey = np.asarray(drawn.convert("L")).astype(np.uint16)
    files = {
        "one pixel.png": (_file(drawn.crop((0, 0, 1, 1)), "PNG"), drawn.crop((0, 0, 1, 1))),
        "20000 x 10.png": (_file(drawn.resize((20000, 10)), "PNG"), drawn.resize((20000, 10))),
        "10 x 20000.png": (_file(drawn.resize((10, 20000)), "PNG"), drawn.resize((10, 20000))),
        "deep.png": (_file(Image.fromarray(grey * 257), "PNG"), drawn.convert("L").convert("RGB")),
        "deep.tif": (_file(Image.fromarray(grey * 257), "TIFF"), drawn.convert("L").convert("RGB")),
        "deep colour.png": (_png16(_deep()), drawn),
        "deep colour.tif": (_tiff16(_deep()), drawn),
        "clear.png": (_file(clear, "PNG"), _on_white(clear)),
        "moving.gif": (_file(palette, "GIF", save_all=True, append_images=[drawn.rotate(180).quantize(16)]), None),
        "cmyk.tif": (_file(drawn.convert("CMYK"), "TIFF"), None),
        "cmyk.jpg": (_file(drawn.convert("CMYK"), "JPEG"), None),
        "bits.png": (_file(drawn.convert("1"), "PNG"), drawn.convert("1").convert("RGB")),
    }
    palette_file = _file(palette, "PNG", transparency=3)
    files["palette.png"] = (palette_file, _on_white(Image.open(BytesIO(palette_file))))
    for name in ("moving.gif", "cmyk.tif", "cmyk.jpg"):
        files[name] = (files[name][0], Image.open(BytesIO(files[name][0])).convert("RGB"))
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        file = _file(drawn, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        turned = ImageOps.exif_transpose(Image.open(BytesIO(file))).convert("RGB")
        assert turned.size == SIZE[::-1]
        files[f"turned.{kind.lower()}"] = (file, turned)
    return files


def unusable_images() -> dict[str, tuple[bytes, str]]:
    """File, and what is said of it, by file name."""
    jpeg = _file(_drawn().resize((480, 400)), "JPEG")
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(9000))), (b"IEND", b""))
    )
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "bomb.png": (b"\x89PNG\r\n\x1a\n" + bomb, "could be decompression bomb"),
        "empty.jpg": (b"", "it is no JPEG, PNG"),
        "text.jpg": (b"a dog on a beach", "it is no JPEG, PNG"),
        "nan.tif": (_file(Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)), "TIFF"), "floating-point grey"),
    }
