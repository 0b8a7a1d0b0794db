"""Qt resource files: written here as Qt's rcc lays them out, read back; damaged ones are refused by name."""

import struct
import zlib

import pytest

from soho_fast.data.packages.rcc import read_rcc


def _rcc(version: int = 1, flags: int = 0, payload: bytes = b"RIFFwebp") -> bytes:
    """A tree of images/ (a.webp, b.txt compressed) beside c.bin."""
    names, offsets = b"", {}
    for name in ("images", "a.webp", "b.txt", "c.bin"):
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    text = b"hello " * 9
    blocks, starts = b"", []
    for content in (payload, struct.pack(">I", len(text)) + zlib.compress(text), b""):
        starts.append(len(blocks))
        blocks += struct.pack(">I", len(content)) + content
    stamp = struct.pack(">Q", 7) if version > 1 else b""

    def folder(name, size, first):
        return struct.pack(">IHII", offsets.get(name, 0), 2, size, first) + stamp

    def file(name, start, kind=0):
        return struct.pack(">IHHHI", offsets[name], kind, 0, 1, start) + stamp

    tree = folder("", 2, 1) + folder("images", 2, 3) + file("c.bin", starts[2])
    tree += file("a.webp", starts[0], flags) + file("b.txt", starts[1], 1)
    head = 20 if version < 3 else 24
    places = (head + len(names) + len(blocks), head + len(names), head)
    start = b"qres" + struct.pack(">4I", version, *places) + (b"\0" * 4 if version > 2 else b"")
    return start + names + blocks + tree


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_are_found_by_name(tmp_path, version):
    (tmp_path / "x.rcc").write_bytes(_rcc(version))
    found = read_rcc(tmp_path / "x.rcc")
    assert found == {"images/a.webp": b"RIFFwebp", "images/b.txt": b"hello " * 9, "c.bin": b""}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"RIFF" + bytes(40), "begins with 'qres', got b'RIFF'"),
        (b"", "begins with 'qres', got b''"),
        (_rcc()[:-20], "cut off or damaged"),
        (_rcc()[:10], "cut off or damaged"),
        (
            _rcc(version=1).replace(b"qres\0\0\0\1", b"qres\0\0\0\7"),
            "expected a Qt resource file of version 1, 2 or 3, got",
        ),
        (_rcc(flags=4), "images/a.webp is compressed by Zstandard"),
        (_rcc(flags=1), "cut off or damaged"),
    ],
)
def test_what_is_not_one_is_refused(tmp_path, content, words):
    (tmp_path / "x.rcc").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.rcc.*{words}"):
        read_rcc(tmp_path / "x.rcc")


def test_a_folder_that_holds_itself_is_refused(tmp_path):
    content = bytearray(_rcc())
    tree = struct.unpack_from(">I", content, 8)[0]
    struct.pack_into(">I", content, tree + 14 + 10, 0)  # images/ begins with the root
    (tmp_path / "x.rcc").write_bytes(content)
    with pytest.raises(ValueError, match="node 1 of the tree holds node 0; expected later ones"):
        read_rcc(tmp_path / "x.rcc")
