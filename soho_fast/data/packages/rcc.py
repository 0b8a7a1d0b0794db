"""Qt's resource files (.rcc): a tree of names over blocks of data, all numbers big-endian, as Qt's `rcc` writes it.

"qres", then the format's version and the offsets of tree, data and names. A node of the tree is its name's
offset, flags and, of a folder, how many nodes it holds and which is the first, of a file, country, language and the
offset of its data; from version 2 on also a time stamp. A name is its length, a hash and UTF-16; data are their length
and bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

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
        return _Tree(content, path).files()
    except (struct.error, UnicodeDecodeError, zlib.error, RecursionError) as error:
        raise ValueError(f"{path}: this Qt resource file is cut off or damaged ({error})") from error


class _Tree:
    def __init__(self, content: bytes, path: str | os.PathLike[str]) -> None:
        self.content, self.path = content, path
        version, self.tree, self.data, self.names = struct.unpack_from(">4I", content, 4)
        if version not in _NODE_BYTES:
            raise ValueError(f"{path}: expected a Qt resource file of version 1, 2 or 3, got version {version}")
        self.node_bytes = _NODE_BYTES[version]

    def files(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        self._walk(0, "", found)
        return found

    def _walk(self, number: int, name: str, found: dict[str, bytes]) -> None:
        at = self.tree + number * self.node_bytes
        (flags,) = struct.unpack_from(">H", self.content, at + 4)
        if flags & _FOLDER:
            size, first = struct.unpack_from(">2I", self.content, at + 6)
            for child in range(first, first + size):
                if child <= number:  # a folder's nodes come after it; a loop would never end
                    raise ValueError(f"{self.path}: node {number} of the tree holds node {child}; expected later ones")
                self._walk(child, f"{name}/{self._name(child)}".removeprefix("/"), found)
            return
        (start,) = struct.unpack_from(">I", self.content, at + 10)
        found[name] = self._data(name, self.data + start, flags)

    def _name(self, number: int) -> str:
        (start,) = struct.unpack_from(">I", self.content, self.tree + number * self.node_bytes)
        length, _ = struct.unpack_from(">HI", self.content, self.names + start)
        (name,) = struct.unpack_from(f">{2 * length}s", self.content, self.names + start + 6)
        return name.decode("utf-16-be")

    def _data(self, name: str, at: int, flags: int) -> bytes:
        (size,) = struct.unpack_from(">I", self.content, at)
        (data,) = struct.unpack_from(f">{size}s", self.content, at + 4)
        if flags & _COMPRESSED_ZSTD:
            raise ValueError(f"{self.path}: {name} is compressed by Zstandard; expected zlib, or as it is")
        return zlib.decompress(data[4:]) if flags & _COMPRESSED else data  # before it stands the size it will have
