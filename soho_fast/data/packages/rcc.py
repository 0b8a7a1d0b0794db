"""Qt's resource files (.rcc): a tree of names over blocks of data, all numbers big-endian, as Qt's `rcc` writes it.

"qres", then the format's version and the offsets of tree, data and names. A node of the tree is its name's
offset, flags and, of a folder, how many nodes it holds and which is the first, of a file, country, language and the
offset of its data; from version 2 on also a time stamp. A name is its length, a hash and UTF-16; data are their length
and bytes.
"""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

_MAGIC = b"qres"
_COMPRESSED, _FOLDER, _COMPRESSED_ZSTD = 1, 2, 4
_NODE_BYTES = {1: 14, 2: 22, 3: 22}


def read_rcc(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Name ("folder/file.webp") -> content of every file, in the order of the tree.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no Qt resource file, is cut off, of an unknown version, or compressed by Zstandard.
    """
    return files_in_rcc(Path(path).read_bytes(), path)


def files_in_rcc(content: bytes, path: str | os.PathLike[str]) -> dict[str, bytes]:
    """As `read_rcc`, of a file's bytes; `path` is for messages."""
    if content[:4] != _MAGIC:
        raise ValueError(f"{path}: expected a Qt resource file, which begins with 'qres', got {content[:4]!r}")
    try:
        return _files(content, path)
    except (struct.error, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path}: this Qt resource file is cut off or damaged ({error})") from error


def _files(content: bytes, path: str | os.PathLike[str]) -> dict[str, bytes]:
    def numbers(layout: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(f">{layout}", content, at)

    version, tree, data, names = numbers("4I", 4)
    if version not in _NODE_BYTES:
        raise ValueError(f"{path}: expected a Qt resource file of version 1, 2 or 3, got version {version}")
    found: dict[str, bytes] = {}
    # Node 0 is the root, which has no name.
    pending = [(0, "")]
    while pending:
        node, folder = pending.pop()
        at = tree + node * _NODE_BYTES[version]
        start, flags, size, first = numbers("IHII", at)
        name = folder
        if node:
            length, _ = numbers("HI", names + start)
            name = f"{folder}/{numbers(f'{2 * length}s', names + start + 6)[0].decode('utf-16-be')}".removeprefix("/")
        if flags & _FOLDER:
            if size and first <= node:  # a folder's nodes come after it; a loop would never end
                raise ValueError(f"{path}: node {node} of the tree holds node {first}; expected later ones")
            numbers("B", tree + (first + size) * _NODE_BYTES[version] - 1)  # the last of them is there
            # Reversed, since the last one comes off first.
            pending += [(child, name) for child in reversed(range(first, first + size))]
            continue
        if flags & _COMPRESSED_ZSTD:
            raise ValueError(f"{path}: {name} is compressed by Zstandard; expected zlib, or as it is")
        (num_bytes,) = numbers("I", data + first)
        (packed,) = numbers(f"{num_bytes}s", data + first + 4)
        # Before what is compressed stands the size that it will have.
        found[name] = zlib.decompress(packed[4:]) if flags & _COMPRESSED else packed
    return found
