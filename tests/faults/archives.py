"""Zip archives that are damaged, encrypted, far larger than they look, or that name files outside."""

import io
import os
import random
import resource
import struct
import zipfile
import zlib
from pathlib import Path

from tiny_runs import Bench, LostError

_TIMES = 20
_MOST_MEGABYTES = 1500


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """Twenty archives of one picture and more; each picture is decoded or refused as corrupt."""
    from PIL import Image

    from soho_fast.common.errors import CorruptImageError
    from soho_fast.data.images import SohoImageProcessor
    from soho_fast.data.readers.records import ImageRef
    from soho_fast.data.stores import open_stores

    draw = random.Random(seed)
    processor = SohoImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    picture = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(picture, "PNG")
    inside, outside = folder / "inside", folder / "secret.png"
    inside.mkdir()
    outside.write_bytes(picture.getvalue())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(_TIMES):
        kind = _KINDS[(seed * _TIMES + number) % len(_KINDS)]
        path = inside / f"{number}.zip"
        names = kind(path, picture.getvalue(), draw)
        for name in [*names, "../secret.png", str(outside), "a/../../secret.png"]:
            for where in (path, inside):
                try:
                    (store,) = open_stores([str(where)])
                    pixels = processor.load(ImageRef(store, name))
                except (CorruptImageError, OSError, ValueError):
                    continue
                except BaseException as error:
                    raise LostError(f"{kind.__name__}, {name!r}: {type(error).__name__}: {error}") from error
                if where is inside and "secret" in name:
                    raise LostError(f"{name!r} was read from outside its folder {tuple(pixels.shape)}")
        path.unlink()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if grown > _MOST_MEGABYTES:
            raise LostError(f"{kind.__name__}: {grown} MB of memory were taken")
    return _TIMES


def _plain(path: Path, picture: bytes, method: int = zipfile.ZIP_DEFLATED) -> list[str]:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("a.png", "b/c.png", "d.png"):
            archive.writestr(name, picture)
    return ["a.png", "b/c.png", "d.png", "absent.png"]


def _edited(path: Path, picture: bytes, local: int, central: int, value: bytes) -> list[str]:
    """The bytes at these places of the local and central headers replaced."""
    names = _plain(path, picture)
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        found = content.find(signature)
        while found >= 0 and at >= 0:
            content[found + at : found + at + len(value)] = value
            found = content.find(signature, found + 4)
    path.write_bytes(content)
    return names


def encrypted(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    return _edited(path, picture, 6, 8, b"\x01\x00")


def unknown_compression(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    return _edited(path, picture, 8, 10, struct.pack("<H", draw.choice((1, 6, 12, 14, 93, 95, 97, 98, 99))))


def lying_size(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    return _edited(path, picture, 22, 24, struct.pack("<I", draw.choice((0, 1, 2**31, 2**32 - 2))))


def wrong_offset(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    return _edited(path, picture, -1, 42, struct.pack("<I", draw.choice((1, 2**20, 2**32 - 2))))


def wrong_checksum(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    return _edited(path, picture, 14, 16, draw.randbytes(4))


def truncated(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    names = _plain(path, picture)
    os.truncate(path, draw.randrange(path.stat().st_size))
    return names


def flipped(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    names = _plain(
        path, picture, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    )
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 3, 30))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return names


def no_archive(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    path.write_bytes(draw.choice((b"", picture, draw.randbytes(1000), b"PK\x05\x06" + bytes(18), b"PK\x03\x04")))
    return ["a.png"]


def names_outside(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    names = ["../secret.png", "/etc/passwd", "a/../../x.png", "\\windows.png", "nul\x00.png", "\udc80.png", "x" * 5000]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names[:4]:
            archive.writestr(name, picture)
        archive.writestr("folder.png/", b"")
        archive.writestr("twice.png", picture)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return [*names, "folder.png/", "folder.png", "twice.png", "link.png", "", ".", "b"]


def bomb(path: Path, picture: bytes, draw: random.Random) -> list[str]:
    """Three gigabytes of zeros (or so its directory says), in three megabytes."""
    size = 3 * 2**30 if draw.random() < 0.1 else 2**28
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    block, check = bytes(2**24), 0
    with path.open("wb") as file:
        head = b"PK\x03\x04" + struct.pack("<5H3I2H", 45, 0, 8, 0, 0, 0, 0, 0, 5, 0) + b"a.png"
        file.write(head)
        for _ in range(size // len(block)):
            check = zlib.crc32(block, check)
            file.write(packer.compress(block))
        file.write(packer.flush())
        packed = file.tell() - len(head)
        sizes = (check, packed, size)
        central = b"PK\x01\x02" + struct.pack("<6H3I5H2I", 45, 45, 0, 8, 0, 0, *sizes, 5, 0, 0, 0, 0, 0, 0) + b"a.png"
        at = file.tell()
        file.write(central)
        file.write(b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, len(central), at, 0))
        file.seek(14)
        file.write(struct.pack("<3I", *sizes))
    return ["a.png"]


_KINDS = (
    encrypted, unknown_compression, lying_size, wrong_offset, wrong_checksum, truncated, flipped, flipped, no_archive,
    names_outside, flipped, truncated, bomb,
)  # fmt: skip
