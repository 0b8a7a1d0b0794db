"""Images in tar shards, by name: a store beside the folder and the zip file."""

import io
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import BinaryIO

import numpy as np

from soho_fast.common.images import one_line
from soho_fast.common.path_ranges import expand_range
from soho_fast.data.shards.index import ShardCounts, ShardIndex, name_hash, read_index
from soho_fast.data.shards.members import BLOCK

_MOST_OPEN = 64


def part_of(bounds: np.ndarray, number: int) -> tuple[int, int]:
    """Of parts that lie one after the other the one with item `number` of all, and the item's number in it.

    Args:
        bounds: int64 (parts + 1,), the number of items before each part.
        number: Less than the number of items.
    """
    # "right": bounds of empty parts are equal, and the last of these is the part that has the item.
    part = int(np.searchsorted(bounds, number, side="right")) - 1
    return part, number - int(bounds[part])


class TarStore:
    """Image files in one tar shard or a range of them.

    Each needs its index (`python -m soho_fast.data.shards index`). Indexes are mapped into memory, so that processes of
    a machine share their pages; a shard is opened at the first read of each process. Pickled, a store is its path.

    Args:
        path: A `.tar`, or a range of them: `cc3m/{00000..00331}.tar`.

    Attributes:
        shards: The indexes, in the order of the range.
        bounds: int64 (shards + 1,), the number of images before each shard.

    Raises:
        FileNotFoundError: A shard, or its index, is not there.
        ValueError: An index is stale or damaged, or a name is in two shards.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        paths = expand_range(self.path)
        missing = [each for each in paths if not os.path.isfile(each)]
        if missing:
            others = f" and {len(missing) - 1:,} more of the range" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{self.path}: there is no {missing[0]}{others}; expected {len(paths):,} shards")
        self.shards: list[ShardIndex] = [read_index(each) for each in paths]
        self.bounds = np.cumsum([0, *map(len, self.shards)], dtype=np.int64)
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()
        self._owner = os.getpid()
        # A name that comes twice in one shard was refused when its index was made.
        if len(self.shards) > 1:
            self._refuse_duplicates()

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, str]) -> None:
        TarStore.__init__(self, state["path"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TarStore) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __str__(self) -> str:
        return self.path

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """The names' hashes in ascending order, int64, and the row of each, uint32."""
        hashes = np.concatenate([shard.hash for shard in self.shards])
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order.astype(np.uint32)

    def _refuse_duplicates(self) -> None:
        hashes, rows = self._table
        for place in np.flatnonzero(hashes[1:] == hashes[:-1]):
            names = [self.name(int(row)) for row in rows[place : place + 2]]
            # Different names may have the same 64 bits by chance.
            if names[0].lower() == names[1].lower():
                wheres = [self.shards[self.place(int(row))[0]].shard for row in rows[place : place + 2]]
                raise ValueError(
                    f"{wheres[1]}!{names[1]}: also in {wheres[0]} as {names[0]}; expected each name once in all shards "
                    "(case does not count)"
                )

    @property
    def counts(self) -> ShardCounts:
        """What all shards hold, and what of it is left out."""
        total = ShardCounts()
        for shard in self.shards:
            total.add(shard.counts)
        return total

    def left_out(self) -> list[str]:
        """Which samples are left out and why, as far as the indexes list them: broken ones first."""
        lines = [
            (number >= shard.counts.broken, f"{shard.shard}!{line}")
            for shard in self.shards
            for number, line in enumerate(shard.counts.left_out)
        ]
        return [line for _, line in sorted(lines, key=lambda each: each[0])]

    def place(self, row: int) -> tuple[int, int]:
        """(shard, row in it) of an image by its number in all shards."""
        return part_of(self.bounds, row)

    def name(self, row: int) -> str:
        """Name of an image by its number in all shards."""
        shard, inside = self.place(row)
        return self.shards[shard].name(inside)

    def _rows_of(self, names: Sequence[str]) -> list[int]:
        """The number of each name, -1 where it is not there."""
        hashes, rows = self._table
        wanted = np.array([name_hash(name) for name in names], np.int64)
        places = np.searchsorted(hashes, wanted)
        found = [-1] * len(names)
        if not len(hashes):
            return found
        # A hash above all others gets the place behind the last one, which is no index; the last one differs from it.
        for number in np.flatnonzero(hashes[np.minimum(places, len(hashes) - 1)] == wanted).tolist():
            place = int(places[number])
            # Names that differ by case have one hash, as some have by chance: the names themselves decide.
            while place < len(hashes) and hashes[place] == wanted[number]:
                if self.name(int(rows[place])) == names[number]:
                    found[number] = int(rows[place])
                    break
                place += 1
        return found

    def existing(self, names: Iterable[str]) -> set[str]:
        """The subset of `names` in the shards."""
        names = list(names)
        return {name for name, row in zip(names, self._rows_of(names), strict=True) if row >= 0}

    def _find(self, name: str) -> tuple[int, int]:
        """(shard, row in it) of an image. Raises FileNotFoundError: it is not there."""
        (row,) = self._rows_of([name])
        if row < 0:
            raise FileNotFoundError(f"{self.path}!{name}: no such image in the shards")
        return self.place(row)

    def read(self, name: str) -> bytes:
        """The image's bytes. Raises OSError: it is not there, or the shard changed since it was indexed."""
        shard, inside = self._find(name)
        index = self.shards[shard]
        offset, size = int(index.offset[inside]), int(index.size[inside])
        try:
            # The header is read along, to see that it still is this image's. `pread` has no position that threads would
            # share.
            content = os.pread(self._file(shard).fileno(), BLOCK + size, offset - BLOCK)
        except OSError as error:
            raise OSError(f"{index.shard}!{name}: {one_line(error)}") from error
        if len(content) != BLOCK + size or zlib.crc32(content[:BLOCK]) != int(index.header[inside]):
            raise OSError(
                f"{index.shard}!{name}: not where the index has it: the shard was changed since; make the index again"
            )
        return content[BLOCK:]

    def open(self, name: str) -> BinaryIO:
        """The image's bytes as a file. Raises OSError, as `read`."""
        return io.BytesIO(self.read(name))

    def _file(self, shard: int) -> BinaryIO:
        # A file that another thread still reads is closed when that lets go of it.
        if self._owner != os.getpid():
            self._files, self._owner = OrderedDict(), os.getpid()
        file = self._files.get(shard)
        if file is None:
            file = self._files[shard] = open(self.shards[shard].shard, "rb", buffering=0)  # noqa: SIM115
            # The one that was opened first: an epoch reads shards forward, a few at a time.
            if len(self._files) > _MOST_OPEN:
                self._files.popitem(last=False)
        return file

    def size(self, name: str) -> int:
        """The image's size, as the index has it. Raises FileNotFoundError."""
        shard, inside = self._find(name)
        return int(self.shards[shard].size[inside])

    def locate(self, name: str) -> str:
        """Shard and member; the range where there is no such member."""
        (row,) = self._rows_of([name])
        return f"{self.path if row < 0 else self.shards[self.place(row)[0]].shard}!{name}"
