"""The files in an uncompressed tar, in order, and where their bytes are.

tarfile reads the headers; what it takes for the end of a tar, as a block of zeros or a file that is cut off, is looked
at here.
"""

import mmap
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from soho_fast.common.files import packed_by

BLOCK = 512
"""A tar is made of blocks of so many bytes; a header is one."""

_EMPTY = bytes(BLOCK)
_EMPTY_TAR = 20 * BLOCK  # a tar's usual record: so long is one without a file, as img2dataset leaves it
# What tarfile meets damage with.
_DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, IndexError)


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
    archive, offset, last, length = None, 0, "its beginning", len(content)
    while True:
        header = content[offset : offset + BLOCK]
        # The end mark: from here on there are zeros alone.
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
        try:
            archive = archive or tarfile.TarFile(fileobj=content, encoding="utf-8", errors="surrogateescape")
            # Making the archive has read its first header already.
            content.seek(offset)
            member = tarfile.TarInfo.fromtarfile(archive)
        except _DAMAGE as error:
            what = f"damaged: no header of a file after {last}, at byte {offset:,}" if offset else "no tar file"
            raise ValueError(f"{path}: {what}; expected an uncompressed tar") from error
        # `archive.offset` is where the next header stands: behind the bytes, rounded up to a block.
        begin, size, after = member.offset_data, member.size, archive.offset
        text = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        odd = "its name is not UTF-8" if text != member.name else ""
        if member.issparse():
            odd = "a sparse file; expected one that is stored whole"
        elif not (member.isreg() or member.isdir()):
            odd = f"a link or a device (type {chr(member.type[0])!r}); expected a file"
        name = _checked(text, path)
        # The size of what is odd is not that of its bytes here: a sparse file's is of the unpacked one.
        if max(begin + size * (not odd), after) > length:
            raise ValueError(
                f"{path}!{name}: cut off: its {size:,} bytes begin at {begin:,} of a file of {length:,} bytes; fetch "
                "the file again"
            )
        if not member.isdir():
            yield Member(name, begin, size, odd)
        offset, last = after, name


def _checked(name: str, path: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    name = name.rstrip("/") or "."
    if name.startswith("/") or ".." in name.split("/") or os.path.isabs(name):
        raise ValueError(f"{path}!{name!r:.120}: leads out of the archive; expected a path below it")
    return name
