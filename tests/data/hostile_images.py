"""Hostile image files: small images of every format that is decoded, damaged by seed, and some made by hand."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

_SIZE = (28, 20)


def hostile_images(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` damaged images of a seed as (name, bytes); the same pair for the same seed and place.

    Those made by hand come first where the seed is 0. Of damaged TIFF files the library writes to the error output.
    """
    names = sorted(sound_images())
    made = list(handmade_images().items())[:count] if seed == 0 else []
    yield from made
    for number in range(len(made), count):
        chance = random.Random(f"{seed}/{number}")
        name = chance.choice(names)
        data, done = _damaged(name, sound_images()[name], chance)
        yield f"{name}, {done}, seed {seed}/{number}", data


@cache
def sound_images() -> dict[str, bytes]:
    """Undamaged images by name, of every format and of most kinds of pixels."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    colour = Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC)
    clear = colour.copy()
    clear.putalpha(colour.convert("L"))
    palette, grey = colour.quantize(16), colour.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a picture", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    with_exif = {"exif": exif}
    frames = {"save_all": True, "append_images": [colour.rotate(90)]}

    images = {
        "rgb.jpg": (colour, "JPEG", {}),
        "exif.jpg": (colour, "JPEG", with_exif),
        "progressive.jpg": (colour, "JPEG", {"progressive": True}),
        "grey.jpg": (grey, "JPEG", {}),
        "cmyk.jpg": (colour.convert("CMYK"), "JPEG", {}),
        "two.mpo": (colour, "MPO", frames),
        "rgb.webp": (colour, "WEBP", {}),
        "lossless.webp": (clear, "WEBP", {"lossless": True}),
        "moving.webp": (colour, "WEBP", frames),
        "exif.webp": (colour, "WEBP", with_exif),
        "palette.gif": (palette, "GIF", {}),
        "clear.gif": (clear, "GIF", {}),
        "moving.gif": (colour, "GIF", frames),
        "rgb.bmp": (colour, "BMP", {}),
        "palette.bmp": (palette, "BMP", {}),
        "bits.bmp": (grey.convert("1"), "BMP", {}),
        "rgb.ppm": (colour, "PPM", {}),
        "grey.pgm": (grey, "PPM", {}),
        "deep.pgm": (deep, "PPM", {}),
        "bits.pbm": (grey.convert("1"), "PPM", {}),
        "float.pfm": (Image.fromarray(np.asarray(grey, dtype=np.float32) / 255), "PPM", {}),
        "moving.png": (colour, "PNG", frames),
        "exif.png": (colour, "PNG", with_exif),
        "palette.png": (palette, "PNG", {"transparency": 3}),
        "deep.png": (deep, "PNG", {}),
        "bigendian.tif": (Image.frombytes("I;16B", _SIZE, np.asarray(deep).astype(">u2").tobytes()), "TIFF", {}),
        "integer.tif": (Image.fromarray(np.asarray(deep, dtype=np.int32)), "TIFF", {}),
        "float.tif": (Image.fromarray(np.asarray(grey, dtype=np.float32) / 255), "TIFF", {}),
        "lab.tif": (Image.frombytes("LAB", _SIZE, coarse.tobytes() * 16), "TIFF", {}),
        "fax.tif": (grey.convert("1"), "TIFF", {"compression": "group4"}),
        "jpeg.tif": (colour, "TIFF", {"compression": "jpeg"}),
        "lzw.tif": (clear, "TIFF", {"compression": "tiff_lzw"}),
        "exif.tif": (colour, "TIFF", with_exif),
        "pages.tif": (colour, "TIFF", frames),
        "rgb.avif": (colour, "AVIF", {"speed": 10}),
        "clear.avif": (clear, "AVIF", {"speed": 10, "exif": exif}),
    }
    images |= {f"{mode}.png": (clear.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "RGB", "RGBA")}
    images |= {f"{mode}.tif": (clear.convert(mode), "TIFF", {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK")}
    return {name: _encoded(*how) for name, how in images.items()} | {
        "plain.ppm": b"P3 2 2 255 " + b"9 " * 12,
        "plain.pbm": b"P1 3 2 0 1 0 1 1 0",
    }


def _encoded(image: Image.Image, kind: str, options: dict) -> bytes:
    file = io.BytesIO()
    if options.get("save_all"):  # what one format's writer notes on a frame misleads the next
        options = {**options, "append_images": [frame.copy() for frame in options["append_images"]]}
    image.copy().save(file, kind, **options)
    return file.getvalue()


@cache
def handmade_images() -> dict[str, bytes]:
    """What chance does not find: sizes without end or of nothing, values of no brightness, refused formats."""
    shape = np.full(_SIZE[::-1], 0.5, dtype=np.float32)
    values = {"nan": np.nan, "infinite": np.inf, "negative": -1.0, "large": 200.0}
    floats = {
        f"{name}.tif": Image.fromarray(np.where(shape.cumsum(1) == 1, value, shape)) for name, value in values.items()
    }
    floats["wide integer.tif"] = Image.fromarray(np.full((4, 4), 2**31 - 1, dtype=np.int32))
    floats["negative integer.tif"] = Image.fromarray(np.full((4, 4), -5, dtype=np.int32))
    deep = Image.fromarray(np.arange(560, dtype=np.uint16).reshape(20, 28) * 100)
    sizes = (
        (30_000, 30_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 0), (0, 9), (9, 0), (1, 200_000), (200_000, 1),
    )  # fmt: skip
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n0 0 50 50 rectfill\nshowpage\n%%EOF\n"
    return {
        **{name: _encoded(image, "TIFF", {}) for name, image in floats.items()},
        **{f"{w} x {h}.png": png(w, h) for w, h in sizes},
        **{f"{w} x {h}.ppm": b"P6 %d %d 255\n" % (w, h) + bytes(27) for w, h in sizes},
        **{f"{w} x {h}.bmp": bmp(w, h) for w, h in sizes},
        **{f"{w} x {h}.gif": gif(min(w, 65535), min(h, 65535)) for w, h in sizes},
        **{f"{w} x {h}.tif": tiff(min(w, 2**31), min(h, 2**31)) for w, h in sizes},
        "deep with transparency.png": _encoded(deep, "PNG", {"transparency": 0}),
        "a bomb of text.png": png(4, 4, (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**24), 9))),
        "a bomb of a profile.png": png(4, 4, (b"iCCP", b"k\0\0" + zlib.compress(bytes(2**24), 9))),
        "rows without end.png": png(4, 4, (b"IDAT", zlib.compress(bytes(2**24), 9))),
        "eps as.jpg": eps,
        "eps in DOS.jpg": struct.pack("<I7I", 0xC6D3D0C5, 32, len(eps), 0, 0, 0, 0, 0) + eps,
        "wmf as.jpg": struct.pack("<IHhhhhHI", 0x9AC6CDD7, 0, 0, 0, 100, 100, 96, 0) + bytes(64),
        "emf as.jpg": struct.pack("<II8i4s", 1, 88, 0, 0, 9, 9, 0, 0, 99, 99, b" EMF") + bytes(88),
        "dds as.jpg": b"DDS " + struct.pack("<7I", 124, 0x1007, 20, 28, 0, 0, 0) + bytes(200),
        "psd as.jpg": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 20, 28, 8, 3) + bytes(100),
        "jpeg 2000 as.jpg": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        "fits as.jpg": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "hdf5 as.jpg": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "grib as.jpg": b"GRIB\0\0\0\1" + bytes(100),
        "bufr as.jpg": b"BUFR\0\0\0\4" + bytes(100),
        "icns as.jpg": b"icns\0\0\0\x10ic07\0\0\0\x08",
        "ico as.jpg": b"\0\0\1\0\1\0\x1c\x14\0\0\1\0\x20\0\0\1\0\0\x16\0\0\0" + bytes(256),
        "xpm as.jpg": b'/* XPM */ static char *a[] = {"2 1 1 1", "a c #000000", "aa"};',
        "svg as.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "pdf as.jpg": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
        "page as.jpg": b"<!DOCTYPE html><html>404</html>",
        "nothing": b"",
        "a byte": b"\xff",
        "zeros": bytes(4096),
    }


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that says it has this size, with little in it; after its header come the chunks."""
    header = struct.pack(">IIBBBBB", width % 2**32, height % 2**32, 8, 2, 0, 0, 0)
    rows = (b"IDAT", zlib.compress(bytes(100)))
    every = (b"IHDR", header), *chunks, rows, (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in every)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def progressive_jpeg(times: int, width: int = 64, height: int = 64) -> bytes:
    """A JPEG whose last scan comes so many times, and that says it has this size."""
    data = bytearray(_encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG", {"progressive": True}))
    size = data.index(b"\xff\xc2") + 5
    data[size : size + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    last = data.rindex(b"\xff\xda")
    return bytes(data[:last] + data[last:-2] * times + data[-2:])


def bmp(width: int, height: int) -> bytes:
    """A BMP that says it has this size, with little in it."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 64, 0, 0, 54) + header + bytes(64)


def gif(width: int, height: int) -> bytes:
    """A GIF that says it has this size, with little in it."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame


def webp(width: int, height: int) -> bytes:
    """The header of a lossless one."""
    chunk = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + bytes(9)
    return b"RIFF" + (12 + len(chunk)).to_bytes(4, "little") + b"WEBPVP8L" + len(chunk).to_bytes(4, "little") + chunk


def tiff(width: int, height: int) -> bytes:
    """A TIFF that says it has this size, with little in it."""
    fields = (
        (256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, height),
        (279, 4, 64),
    )  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields)
    return b"II*\0" + struct.pack("<I", 72) + bytes(64) + struct.pack("<H", len(fields)) + entries + bytes(4)


_INTERESTING = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def _damaged(name: str, data: bytes, chance: random.Random) -> tuple[bytes, str]:
    changed = bytearray(data)
    kind = chance.choice(("flip", "flip", "set", "set", "number", "cut", "remove", "repeat", "insert", "splice"))
    for _ in range(chance.choice((1, 1, 2, 4, 16)) if kind in ("flip", "set", "number") else 1):
        # Headers are short, and what they say steers the rest.
        place = chance.randrange(min(len(changed), 128) if chance.random() < 0.5 else len(changed))
        length = min(chance.choice((1, 2, 4, 16, 64)), len(changed) - place)
        if kind == "flip":
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == "set":
            changed[place : place + length] = bytes([chance.choice(_INTERESTING)]) * length
        elif kind == "number":
            value = chance.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)))
            changed[place : place + 4] = value.to_bytes(4, chance.choice(("little", "big")))
        elif kind == "cut":
            del changed[place:]
        elif kind == "remove":
            del changed[place : place + length]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + length] * chance.choice((1, 2, 50))
        elif kind == "insert":
            changed[place:place] = chance.randbytes(length)
        else:
            other = sound_images()[chance.choice(sorted(sound_images()))]
            changed[place:] = other[chance.randrange(len(other)) :]
    if name.endswith(".png") and chance.random() < 0.7:
        changed = _with_checksums(changed)
    return bytes(changed), kind


def _with_checksums(data: bytearray) -> bytearray:
    """A PNG whose chunks are taken for intact, so that what is in them is read."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return data
