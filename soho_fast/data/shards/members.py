"""The files in an uncompressed tar, in order, and where their bytes are.

Plain headers, of which a shard has tens of thousands, are read here, and PAX headers that tell times only, which
WebDataset's writer puts before each; tarfile reads every other kind (long names, sizes in base 256), at some five times
the cost.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from soho_fast.common.files import packed_by

BLOCK = 512
"""A tar is made of blocks of so many bytes; a header is one."""

_EMPTY = bytes(BLOCK)
_EMPTY_TAR = 20 * BLOCK  # a tar's usual record: so long is one without a file, as img2dataset leaves it
_REGULAR = b"0\0"
_DIRECTORY = ord("5")
_SIMPLE = (*_REGULAR, _DIRECTORY)
_PAX = ord("x")
# What does not change which bytes a member has.
_TIMES = re.compile(rb"(?:\d+ (?:mtime|atime|ctime|uid|gid|uname|gname)=[^\n]*\n)+\0*")
_MOST_TIMES = 4096
_OCTAL = re.compile(rb"[ 0]*([0-7]*)[ \0]*")


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name, with forward slashes and without a leading `./`, where its bytes begin, how many; and
    what it is, where these are not the file's: a link, say."""

    name: str
    offset: int
    size: int
    odd: str = ""


def read_members(content: mmap.mmap, path: str) -> Iterator[Member]:
    """The files of a tar in order; folders are passed over.

    Args:
        content: The whole file.
        path: Its path, for messages.

    Raises:
        ValueError: It is no uncompressed tar, is cut off or damaged, or holds a name that leads out of where it would
            be unpacked; the message names the file and the member.
    """
    if packing := packed_by(content[:BLOCK]):
        raise ValueError(f"{path}: a {packing} file; expected a tar without compression: images gain nothing by it")
    offset, last, length = 0, "its beginning", len(content)
    while True:
        header = content[offset : offset + BLOCK]
        if header == _EMPTY:
            if offset == 0 and length > _EMPTY_TAR:
                raise ValueError(f"{path}: holds no file, but {length:,} bytes of zeros; fetch the file again")
            if np.frombuffer(content, np.uint8, offset=offset).any():
                raise ValueError(
                    f"{path}: damaged: an empty block after {last}, at byte {offset:,}, and data behind it"
                )
            return
        if len(header) < BLOCK:
            raise ValueError(f"{path}: cut off after {last}: {length:,} bytes, and no end mark; fetch the file again")
        plain, begin, odd = _plain(header), offset + BLOCK, ""
        if plain is not None and plain[0] == _PAX:
            after = begin + _padded(plain[2])
            times_only = plain[2] <= _MOST_TIMES and _TIMES.fullmatch(content[begin:after])
            plain, begin = _plain(content[after : after + BLOCK]) if times_only else None, after + BLOCK
        if plain is None or plain[0] not in _SIMPLE:
            kind, name, begin, size, after, odd = _other(path, offset, last)
        else:
            kind, name, size = plain
            after = begin + _padded(size)
        if kind in _REGULAR and name.endswith("/"):
            kind = _DIRECTORY  # as tars from before 1988 have it
        text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        odd = odd or "its name is not UTF-8" * (text != name)
        name = _checked(text, path)
        if max(begin + size * (not odd), after) > length:
            raise ValueError(
                f"{path}!{name}: cut off: its {size:,} bytes begin at {begin:,} of a file of {length:,} bytes; fetch "
                "the file again"
            )
        if kind != _DIRECTORY:
            yield Member(name, begin, size, odd)
        offset, last = after, name


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _plain(header: bytes) -> tuple[int, str, int] | None:
    """(type, name, size) as a header of 512 bytes has them; None where it is damaged, or has numbers in base 256."""
    if len(header) < BLOCK:
        return None
    kind = header[156]
    size, checksum = _OCTAL.fullmatch(header[124:136]), _OCTAL.fullmatch(header[148:156])
    if size is None or checksum is None:
        return None
    if int(checksum[1] or b"0", 8) != sum(header) - sum(header[148:156]) + 256:
        return None
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return kind, name.decode("utf-8", "surrogateescape"), int(size[1] or b"0", 8)


def _other(path: str, offset: int, last: str) -> tuple[int, str, int, int, int, str]:
    """(type, name, first byte, size, next header, `Member.odd`) of a member with any header that tarfile knows."""
    member = None
    with (
        open(path, "rb") as file,
        contextlib.suppress(tarfile.TarError, OSError, ValueError, OverflowError, IndexError),
    ):
        file.seek(offset)
        archive = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        member = archive.next()
    if member is None:
        what = f"damaged: no header of a file after {last}, at byte {offset:,}" if offset else "no tar file"
        raise ValueError(f"{path}: {what}; expected an uncompressed tar")
    odd = "a sparse file; expected one that is stored whole" if member.issparse() else ""
    if not (member.isreg() or member.isdir()):
        odd = f"a link or a device (type {chr(member.type[0])!r}); expected a file"
    return member.type[0], member.name, member.offset_data, member.size, archive.offset, odd


def _checked(name: str, path: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    name = name.rstrip("/") or "."
    if name.startswith("/") or ".." in name.split("/") or os.path.isabs(name):
        raise ValueError(f"{path}!{name!r:.120}: leads out of the archive; expected a path below it")
    return name
