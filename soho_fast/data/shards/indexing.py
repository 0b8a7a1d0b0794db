"""Makes the index of a shard.

A sample is what WebDataset calls one: members that follow each other and have the same name up to the first dot after
the folder. What is done with each:

- Names without a dot and what is in a folder `__NAME__` are passed over, as WebDataset does.
- An image, one of `IMAGE_SUFFIXES`, makes a row.
- Captions: `captions`, a list of texts, in its `.json`; else its `.txt`, a single one; else `caption` in its `.json`.
- A `.json` with a `status` other than "success" reports a failed download (img2dataset): the sample is left out.
- A sample without an image is left out. One without a caption stays as an image without captions.
- Broken is a sample whose `.json` is not JSON, whose text or name is not UTF-8, whose image is a link, a sparse file or
  larger than any image, or that has two. It is left out; an image with a broken text stays, as one without a caption.
- Two samples of one name (case does not count): refused.

Samples left out are counted, and the first of them listed.
"""

import io
import json
import mmap
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from soho_fast.common.errors import CorruptImageError, printable
from soho_fast.common.files import write_atomically
from soho_fast.common.images import MAX_FILE_BYTES
from soho_fast.data.readers.records import Entry, Fields, check_text, is_blank, parse_object, shown
from soho_fast.data.shards.index import (
    FORMAT,
    ShardCounts,
    checksum_of,
    index_path,
    key_of,
    name_hash,
    read_index,
    stamp_of,
)
from soho_fast.data.shards.members import BLOCK, Member, read_members

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif"})

_MOST_TEXT = 2**24
_MOST_LISTED = 20
_SUCCESS = "success"
_ABOUT: Fields = {"captions": list, "caption": str | None, "image_id": str | int | float | None}
_META = re.compile(r"__[^/]*__(/|$)")


def build_index(shard: str) -> ShardCounts:
    """Read a shard from end to end and write its index, whole or not at all.

    Args:
        shard: Path of the tar.

    Raises:
        ValueError: The shard does not follow the format (see above); the message names it and the member.
        FileNotFoundError, OSError: It can't be read, or the index can't be written.
    """
    stamp = stamp_of(shard)
    if not int(stamp["shard_bytes"]):
        raise ValueError(f"{shard}: empty; expected a tar of images")
    with open(shard, "rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
        tensors, counts = read_contents(content, shard)
    if stamp_of(shard) != stamp:
        raise ValueError(f"{shard}: changed while it was read; index it when it is whole")
    metadata = {
        "format": FORMAT,
        **stamp,
        "counts": (counted := json.dumps(vars(counts))),
        "checksum": checksum_of(tensors, counted),
    }
    write_atomically(Path(index_path(shard)), save(tensors, metadata))
    return counts


def check_shard(shard: str, *, decode: bool) -> list[str]:
    """Read a shard from end to end.

    Args:
        shard: Path of the tar.
        decode: Decode each image too.

    Returns:
        A line for each image that can't be decoded.

    Raises:
        FileNotFoundError, ValueError: The shard does not follow the format, or its index is missing, stale, damaged or
            does not match the shard.
    """
    from soho_fast.data.images import decode_image  # which loads torchvision

    index = read_index(shard)
    with open(shard, "rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
        arrays, counts = read_contents(content, shard)
        different = [name for name, array in arrays.items() if not np.array_equal(array, getattr(index, name))]
        # An index of an earlier version does not list what is left out.
        if different or replace(counts, left_out=[]) != replace(index.counts, left_out=[]):
            raise ValueError(
                f"{index_path(shard)}: does not match {shard}: {', '.join(different) or 'counts'} differ; "
                f"make it again with: python -m soho_fast.data.shards index {shard} --again"
            )
        corrupt = []
        for row in range(len(index)) if decode else ():
            begin = int(index.offset[row])
            try:
                decode_image(content[begin : begin + int(index.size[row])])
            except CorruptImageError as error:
                corrupt.append(f"{shard}!{index.name(row)}: {error}")
    return corrupt


def read_contents(content: mmap.mmap, shard: str) -> tuple[dict[str, np.ndarray], ShardCounts]:
    """The arrays of a shard's index by name, see `ShardIndex`, and what it holds.

    Raises ValueError: it does not follow the format.
    """
    from soho_fast.data.images import shapes_of  # which loads torchvision

    counts = ShardCounts()
    images: list[Member] = []
    ids: list[str] = []
    captions: list[str] = []
    first = [0]
    broken: list[str] = []
    without: list[str] = []
    for key, members in _samples(content, shard):
        found = [member for suffix, member in members.items() if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
        about = Entry({}, _ABOUT, shard)
        texts: list[str] = []
        image_id = ""
        wrong = _wrong_with(found, key)
        # Before the texts are read: a broken text does not make the image unusable.
        is_usable = bool(found) and not wrong
        try:
            about = _json_of(members, content, shard)
            image_id = "" if about["image_id"] is None else str(about["image_id"])
            texts = [text.strip() for text in _captions_of(about, members, content, shard)]
        except ValueError as error:
            # Counted below as broken; the image stays, as one without a caption.
            wrong = wrong or str(error).removeprefix(f"{shard}!")
        # Looked at first: a download that failed has no image, and counts as neither missing nor broken.
        status = about.content.get("status", _SUCCESS)
        if status != _SUCCESS:
            told = printable(status if isinstance(status, str) else shown(status))[:40]
            counts.failed[told] = counts.failed.get(told, 0) + 1
            continue
        if not found:
            counts.without_image += 1
            without.append(f"{key}: no image")
            continue
        kept = [text for text in texts if not is_blank(text)]
        if wrong:
            counts.broken += 1
            broken.append(wrong)
        elif not kept:
            counts.without_caption += 1
            without.append(f"{key}: no caption")
        if not is_usable:
            continue
        counts.empty_captions += len(texts) - len(kept)
        images.append(found[0])
        # "" stands for the key (`ShardIndex.image_id`), so that most shards keep no ids.
        ids.append(image_id if image_id != key else "")
        captions += kept
        first.append(len(captions))
    counts.images, counts.captions = len(images), len(captions)
    # Where no image has a caption they stand elsewhere.
    left_out = broken + without * bool(captions)
    counts.left_out = [printable(" ".join(line.split())) for line in left_out[:_MOST_LISTED]]
    names, names_ends = _packed([member.name for member in images], shard)
    # No ids at all where each is its sample's key: not even where they end.
    packed_ids, ids_ends = _packed(ids if any(ids) else [], shard)
    packed_captions, captions_ends = _packed(captions, shard)
    # By these `TarStore.read` sees that a shard was changed. In front of the bytes stands a header, however long the
    # name.
    headers = [zlib.crc32(content[member.offset - BLOCK : member.offset]) for member in images]
    return {
        "offset": np.array([member.offset for member in images], np.int64),
        "size": np.array([member.size for member in images], np.uint32),
        "header": np.array(headers, np.uint32),
        "hash": np.array([name_hash(member.name) for member in images], np.int64),
        "shape": shapes_of(images, opened=lambda member: io.BytesIO(_bytes_of(member, content))),
        "first": np.array(first, np.uint32),
        "names": names,
        "names_ends": names_ends,
        "ids": packed_ids,
        "ids_ends": ids_ends,
        "captions": packed_captions,
        "captions_ends": captions_ends,
    }, counts


def _samples(content: mmap.mmap, shard: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, members by what follows the key and its dot, in lower case) of each sample."""
    seen: dict[str, str] = {}
    key = ""
    members: dict[str, Member] = {}
    for member in read_members(content, shard):
        name_key = key_of(member.name)
        # The third is a hidden file, such as .DS_Store.
        if name_key == member.name or _META.match(member.name) or not name_key or name_key.endswith("/"):
            continue
        if name_key != key:
            if members:
                yield key, members
            folded = name_key.lower()
            if folded in seen:
                how = "a second time" if seen[folded] == name_key else f"beside {seen[folded]}, which differs by case"
                raise ValueError(f"{shard}!{member.name}: sample {name_key} comes {how}; expected each name once")
            seen[folded] = key = name_key
            members = {}
        suffix = member.name[len(name_key) + 1 :].lower()
        if suffix in members:
            raise ValueError(f"{shard}!{member.name}: comes twice in sample {key}; expected each name once")
        members[suffix] = member
    if members:
        yield key, members


def _wrong_with(images: Sequence[Member], key: str) -> str:
    """Why the image of a sample can't be used; empty where it can, or without an image."""
    if len(images) > 1:
        return f"{images[1].name}: a second image of sample {key}, beside {images[0].name}; expected one"
    for image in images:
        if image.odd:
            return f"{image.name}: {image.odd}"
        if image.size > MAX_FILE_BYTES:
            return f"{image.name}: {image.size:,} bytes; expected an image of at most {MAX_FILE_BYTES:,}"
    return ""


def _bytes_of(member: Member, content: mmap.mmap) -> bytes:
    return content[member.offset : member.offset + member.size]


def _text_of(member: Member, content: mmap.mmap, where: str) -> bytes:
    if member.odd:
        raise ValueError(f"{where}: {member.odd}")
    if member.size > _MOST_TEXT:
        raise ValueError(f"{where}: {member.size:,} bytes; expected a text of at most {_MOST_TEXT:,}")
    return _bytes_of(member, content)


def _json_of(members: dict[str, Member], content: mmap.mmap, shard: str) -> Entry:
    if "json" not in members:
        return Entry({}, _ABOUT, shard)
    where = f"{shard}!{members['json'].name}"
    return Entry(parse_object(_text_of(members["json"], content, where), where, "an object"), _ABOUT, where)


def _captions_of(about: Entry, members: dict[str, Member], content: mmap.mmap, shard: str) -> list[str]:
    if "captions" in about:
        return about.texts("captions")
    if "txt" in members:
        where = f"{shard}!{members['txt'].name}"
        try:
            text = _text_of(members["txt"], content, where).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 ({error}); expected a text in UTF-8") from None
        check_text(text, where)
        return [text]
    return [] if about["caption"] is None else [about["caption"]]


def _packed(texts: Sequence[str], shard: str) -> tuple[np.ndarray, np.ndarray]:
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    if len(ends) and ends[-1] >= 2**32:
        raise ValueError(f"{shard}: its texts have {ends[-1]:,} bytes; expected less than 4 GB: make smaller shards")
    return np.frombuffer(b"".join(encoded), np.uint8), ends.astype(np.uint32)
