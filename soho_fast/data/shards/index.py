"""The index of a shard as it is read: a file beside the shard, mapped into memory.

The file is of safetensors' format, whose arrays are used where they lie: processes of a machine share their pages, and
no sample is a Python object. Shapes: R images of a shard, C captions.
"""

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from safetensors import SafetensorError, safe_open

INDEX_SUFFIX = ".index"
"""The index of `00000.tar` is `00000.tar.index`."""

FORMAT = "soho_fast shard index 1"
"""What an index calls its own format."""


@dataclass
class ShardCounts:
    """What a shard holds, and what of it is left out."""

    images: int = 0
    captions: int = 0
    without_caption: int = 0
    without_image: int = 0
    empty_captions: int = 0
    broken: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """The number of samples of each `status` that reports a failed download."""
    left_out: list[str] = field(default_factory=list)
    """Of the first samples that are left out otherwise, broken ones before others: which, and why."""

    def add(self, other: "ShardCounts") -> None:
        """Count those of another shard too."""
        for name in ("images", "captions", "without_caption", "without_image", "empty_captions", "broken"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failed = dict(Counter(self.failed) + Counter(other.failed))

    def __str__(self) -> str:
        parts = [f"{self.images:,} images, {self.captions:,} captions"]
        left_out = [
            *((count, f"failed downloads ({status})") for status, count in sorted(self.failed.items())),
            (self.broken, "broken samples"),
            (self.without_image, "samples without an image"),
            (self.without_caption, "images without a caption"),
            (self.empty_captions, "empty captions"),
        ]
        return "; ".join(parts + [f"{count:,} {what}" for count, what in left_out if count])


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """An index as it is mapped into memory.

    `offset` int64 (R,) of an image's bytes, `size` uint32 (R,), `header` uint32 (R,) the CRC-32 of the header in front
    of them, `hash` int64 (R,) of its name, `shape` float64 (R,) as `shapes_of` gives it. Names, ids and captions are
    UTF-8 in flat arrays, and where each ends; `first` uint32 (R + 1,) is where an image's captions begin.
    """

    shard: str
    counts: ShardCounts
    offset: np.ndarray
    size: np.ndarray
    header: np.ndarray
    hash: np.ndarray
    shape: np.ndarray
    first: np.ndarray
    names: np.ndarray
    names_ends: np.ndarray
    ids: np.ndarray
    ids_ends: np.ndarray
    captions: np.ndarray
    captions_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)

    def name(self, row: int) -> str:
        """Name of the image's file in the shard."""
        return _text(self.names, self.names_ends, row)

    def image_id(self, row: int) -> str:
        """`image_id` of the sample's `.json`, else its key."""
        return (_text(self.ids, self.ids_ends, row) if len(self.ids_ends) else "") or key_of(self.name(row))

    def num_captions(self, row: int) -> int:
        """How many captions the image has."""
        return int(self.first[row + 1]) - int(self.first[row])

    def caption(self, row: int, number: int) -> str:
        """One of its captions."""
        return _text(self.captions, self.captions_ends, int(self.first[row]) + number)


def _text(packed: np.ndarray, ends: np.ndarray, number: int) -> str:
    return packed[int(ends[number - 1]) if number else 0 : int(ends[number])].tobytes().decode()


def key_of(name: str) -> str:
    """WebDataset's key of a member: its name up to the first dot after the folder."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def name_hash(name: str) -> int:
    """64 bits of a name, the same for names that differ only by case."""
    return int.from_bytes(hashlib.blake2b(name.lower().encode(), digest_size=8).digest(), "big", signed=True)


def index_path(shard: str | os.PathLike[str]) -> str:
    """Path of a shard's index."""
    return os.fspath(shard) + INDEX_SUFFIX


def stamp_of(shard: str) -> dict[str, str]:
    """By what a shard is known again: its size and when it was last changed."""
    status = os.stat(shard)
    return {"shard_bytes": str(status.st_size), "shard_mtime_ns": str(status.st_mtime_ns)}


def checksum_of(arrays: Mapping[str, np.ndarray], counts: str, written_from: str = "") -> str:
    """CRC-32 of an index's contents; `written_from` is in those of version 0.1."""
    checksum = zlib.crc32(f"{counts}\0{written_from}".encode())
    for name in sorted(arrays):
        checksum = zlib.crc32(arrays[name].data, checksum)
    return f"{checksum:08x}"


def read_index(shard: str) -> ShardIndex:
    """A shard's index, mapped into memory.

    Raises:
        FileNotFoundError: There is no such shard, or it has no index.
        ValueError: The index is not this shard's, or of an earlier state of it, or damaged.
    """
    path = index_path(shard)
    command = f"python -m soho_fast.data.shards index {shard}"
    stamp = stamp_of(shard)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{shard}: has no index; make it with: {command}")
    try:
        # As torch's tensors, which are mapped; for numpy safetensors makes copies.
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r:.60}")
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        if metadata["checksum"] != checksum_of(arrays, metadata["counts"], metadata.get("written_from", "")):
            raise ValueError("its checksum differs")
        counts = ShardCounts(**json.loads(metadata["counts"]))
        index = ShardIndex(shard, counts, **arrays)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: damaged, or no index of a shard ({reason}); make it again with: {command} --again"
        ) from None
    for name, what in (("shard_bytes", "bytes"), ("shard_mtime_ns", "ns, the time of its last change")):
        if metadata.get(name) != stamp[name]:
            raise ValueError(
                f"{path}: stale, or of another file: it was made of a shard of {metadata.get(name)} {what}, "
                f"{shard} has {stamp[name]}; make it again with: {command}"
            )
    return index
