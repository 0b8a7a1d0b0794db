"""Records as a data set keeps them: packed, so that worker processes share them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from soho_fast.data.images import shapes_of
from soho_fast.data.readers.records import ImageRef, ImageTextRecord
from soho_fast.data.shards.records import JoinedRecords, ShardRecords
from soho_fast.data.text import PackedTexts, TextLists


def parts_of(records: Sequence[ImageTextRecord]) -> list[Sequence[ImageTextRecord]]:
    """The sets that records consist of, as far as some are in shards: lists, and `ShardRecords`."""
    return records.parts if isinstance(records, JoinedRecords) else [records]


def texts_of(records: Sequence[ImageTextRecord]) -> Sequence[Sequence[str]] | TextLists:
    """The captions of each image, of those in shards as they lie there."""
    if isinstance(records, ShardRecords):
        return records.texts
    if isinstance(records, JoinedRecords):
        return JoinedTexts([texts_of(part) for part in records.parts])
    return [record.captions for record in records]


def locations_of(records: Sequence[ImageTextRecord]) -> Iterator[str]:
    """Where each image is, as messages tell it."""
    for part in parts_of(records):
        yield from part.locations() if isinstance(part, ShardRecords) else (str(record.image) for record in part)


class JoinedTexts:
    """Texts of several sets, one after the other: `TextLists`.

    Args:
        parts: The texts of each set.
    """

    def __init__(self, parts: Sequence[Sequence[Sequence[str]] | TextLists]) -> None:
        self._parts = [part if isinstance(part, TextLists) else PackedTexts(part) for part in parts]
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[TextLists, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part], index - (int(self._ends[part - 1]) if part else 0)

    def count(self, index: int) -> int:
        """How many texts list `index` has."""
        part, inside = self._place(index)
        return part.count(inside)

    def counts(self) -> np.ndarray:
        """How many texts each list has, int64."""
        return np.concatenate([part.counts() for part in self._parts])

    def get(self, index: int, number: int) -> str:
        """Text `number` of list `index`."""
        part, inside = self._place(index)
        return part.get(inside, number)

    def all(self, index: int) -> list[str]:
        """All texts of list `index`."""
        part, inside = self._place(index)
        return part.all(inside)


class FlatTexts(Sequence[str]):
    """All texts of lists, one after the other."""

    def __init__(self, texts: TextLists) -> None:
        self._texts, self._ends = texts, np.cumsum(texts.counts())

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # no slices are asked for
        index = int(np.searchsorted(self._ends, number, side="right"))
        return self._texts.get(index, number - (int(self._ends[index - 1]) if index else 0))


class _Listed(Sequence[ImageRef]):
    """The images of a list of records in flat arrays: no Python object of an image is kept, whose reference counts
    would have a loader process copy its page."""

    def __init__(self, records: Sequence[ImageTextRecord]) -> None:
        self._stores, self._store_N = _numbered([record.image.store for record in records], id)
        self._sources, self._source_N = _numbered([record.source for record in records], str)
        self._names = PackedTexts([[record.image.name for record in records]])
        self._ids = PackedTexts([[record.image_id for record in records]])
        self.texts = PackedTexts([record.captions for record in records])
        self.bounds = np.array([0, len(records)])

    def __len__(self) -> int:
        return len(self._store_N)

    def __getitem__(self, number: int) -> ImageRef:  # type: ignore[override]  # no slices are asked for
        if not 0 <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        return self.image(number)

    def image(self, number: int) -> ImageRef:
        return ImageRef(self._stores[self._store_N[number]], self._names.get(0, number))

    def sample_id(self, number: int) -> str:
        return f"{self._sources[self._source_N[number]]}/{self._ids.get(0, number)}"

    def sources(self) -> np.ndarray:
        return np.array(self._sources, object)[self._source_N]


def _numbered(items: Sequence[Any], key: Callable[[Any], Hashable]) -> tuple[list[Any], np.ndarray]:
    """The distinct items in the order in which they come first, and the number of each, int32."""
    number_of: dict[Hashable, int] = {}
    distinct: list[Any] = []
    numbers = np.empty(len(items), np.int32)
    for place, item in enumerate(items):
        number = numbers[place] = number_of.setdefault(key(item), len(distinct))
        if number == len(distinct):
            distinct.append(item)
    return distinct, numbers


class RecordTable(Sequence[ImageRef]):
    """The images of records, with their texts beside them.

    Attributes:
        texts: Those of each image.
        bounds: Of each set, as far as some are in shards, int64 (shards + 1,) where its shards begin and the last one
            ends; two numbers of a set that is not in shards. None where no set is in shards.
    """

    def __init__(self, records: Sequence[ImageTextRecord]) -> None:
        self._parts = [part if isinstance(part, ShardRecords) else _Listed(part) for part in parts_of(records)]
        self._ends = np.cumsum([len(part) for part in self._parts])
        texts = [part.texts for part in self._parts]
        self.texts: TextLists = texts[0] if len(texts) == 1 else JoinedTexts(texts)
        self.bounds: list[np.ndarray] | None = None
        if any(isinstance(part, ShardRecords) for part in self._parts):
            starts = [0, *self._ends[:-1]]
            self.bounds = [start + part.bounds for start, part in zip(starts, self._parts, strict=True)]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, number: int) -> tuple[_Listed | ShardRecords, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self._parts[part], number - (int(self._ends[part - 1]) if part else 0)

    def __getitem__(self, number: int) -> ImageRef:  # type: ignore[override]  # no slices are asked for
        part, inside = self._place(number)
        return part.image(inside)

    def sample_id(self, number: int) -> str:
        """What tells an image from those of other sets too, for messages."""
        part, inside = self._place(number)
        return part.sample_id(inside)

    def sources(self) -> np.ndarray:
        """The name of the data set of each image, objects."""
        return np.concatenate([part.sources() for part in self._parts])

    def shapes(self, progress: Callable[[int, int], None]) -> np.ndarray:
        """float64 (images,): see `shapes_of`; those of shards are in their index."""
        return np.concatenate(
            [part.shapes() if isinstance(part, ShardRecords) else shapes_of(part, progress) for part in self._parts]
        )
