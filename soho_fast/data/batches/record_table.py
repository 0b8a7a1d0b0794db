"""Records as a data set keeps them: packed, so that worker processes share them."""

from collections.abc import Callable, Hashable, Iterator, Sequence, Sized
from itertools import chain
from typing import Any

import numpy as np

from soho_fast.data.images import shapes_of
from soho_fast.data.readers.records import ImageRef, ImageTextRecord
from soho_fast.data.shards.records import ShardRecords
from soho_fast.data.shards.store import part_of
from soho_fast.data.text import PackedTexts, TextLists


class JoinedTexts(TextLists):
    """Texts of several sets, one after the other.

    Args:
        parts: The texts of each set.
    """

    def __init__(self, parts: Sequence[TextLists]) -> None:
        self._parts = parts
        self._bounds = _bounds(parts)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def count(self, index: int) -> int:
        """How many texts list `index` has."""
        part, inside = part_of(self._bounds, index)
        return self._parts[part].count(inside)

    def counts(self) -> np.ndarray:
        """How many texts each list has, int64."""
        return np.concatenate([part.counts() for part in self._parts])

    def get(self, index: int, number: int) -> str:
        """Text `number` of list `index`."""
        part, inside = part_of(self._bounds, index)
        return self._parts[part].get(inside, number)


class FlatTexts(Sequence[str]):
    """All texts of lists, one after the other."""

    def __init__(self, texts: TextLists) -> None:
        self._texts, self._bounds = texts, np.append(0, np.cumsum(texts.counts()))

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # no slices are asked for
        return self._texts.get(*part_of(self._bounds, number))


class _Listed:
    """The images of a list of records in flat arrays: no Python object of an image is kept, whose reference counts
    would have a loader process copy its page."""

    def __init__(self, records: Sequence[ImageTextRecord]) -> None:
        # By identity: the records of a set share one store.
        self._stores, self._store_N = numbered([record.image.store for record in records], id)
        self._sources, self._source_N = numbered([record.source for record in records], str)
        self._names = PackedTexts([[record.image.name for record in records]])
        self._ids = PackedTexts([[record.image_id for record in records]])
        self.texts = PackedTexts([record.captions for record in records])
        self.bounds = np.array([0, len(records)])

    def __len__(self) -> int:
        return len(self._store_N)

    def image(self, number: int) -> ImageRef:
        return ImageRef(self._stores[self._store_N[number]], self._names.get(0, number))

    def sample_id(self, number: int) -> str:
        return f"{self._sources[self._source_N[number]]}/{self._ids.get(0, number)}"

    def sources(self) -> np.ndarray:
        return np.array(self._sources, object)[self._source_N]

    def shapes(self, progress: Callable[[int, int], None]) -> np.ndarray:
        return shapes_of(list(map(self.image, range(len(self)))), progress)

    def locations(self) -> Iterator[str]:
        return (str(self.image(number)) for number in range(len(self)))


def _bounds(parts: Sequence[Sized]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def numbered(items: Sequence[Any], key: Callable[[Any], Hashable]) -> tuple[list[Any], np.ndarray]:
    """The distinct items in the order in which they come first, and the number of each, int32."""
    number_of: dict[Hashable, int] = {}
    distinct: list[Any] = []
    numbers = np.empty(len(items), np.int32)
    for position, item in enumerate(items):
        number = numbers[position] = number_of.setdefault(key(item), len(distinct))
        if number == len(distinct):
            distinct.append(item)
    return distinct, numbers


class RecordTable(Sequence[ImageRef]):
    """The images of sets, one after the other, with their texts beside them.

    Args:
        sets: Lists of records, and `ShardRecords`.

    Attributes:
        texts: Those of each image.
        bounds: Of each set, as far as some are in shards, int64 (shards + 1,) where its shards begin and the last one
            ends; two numbers of a set that is not in shards. None where no set is in shards.
    """

    def __init__(self, sets: Sequence[Sequence[ImageTextRecord]]) -> None:
        self._parts = [part if isinstance(part, ShardRecords) else _Listed(part) for part in sets]
        self._bounds = _bounds(self._parts)
        texts = [part.texts for part in self._parts]
        self.texts: TextLists = texts[0] if len(texts) == 1 else JoinedTexts(texts)
        self.bounds: list[np.ndarray] | None = None
        if any(isinstance(part, ShardRecords) for part in self._parts):
            # `_bounds` has one number more, where the last set ends.
            self.bounds = [start + part.bounds for start, part in zip(self._bounds, self._parts, strict=False)]

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, number: int) -> ImageRef:  # type: ignore[override]  # no slices are asked for
        if not 0 <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        part, inside = part_of(self._bounds, number)
        return self._parts[part].image(inside)

    def sample_id(self, number: int) -> str:
        """A name for messages, unique among all sets."""
        part, inside = part_of(self._bounds, number)
        return self._parts[part].sample_id(inside)

    def sources(self) -> np.ndarray:
        """The name of the data set of each image, objects."""
        return np.concatenate([part.sources() for part in self._parts])

    def shapes(self, progress: Callable[[int, int], None]) -> np.ndarray:
        """float64 (images,): see `shapes_of`; those of shards are in their index."""
        return np.concatenate([part.shapes(progress) for part in self._parts])

    def locations(self) -> Iterator[str]:
        """Where each image is, as messages name it."""
        return chain.from_iterable(part.locations() for part in self._parts)
