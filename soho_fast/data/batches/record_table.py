"""Records as a data set keeps them: packed, so that worker processes share them."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from soho_fast.data.readers.records import ImageRef, ImageTextRecord
from soho_fast.data.text import FlatTexts, PackedTexts


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
    """Images with captions in flat arrays: no Python object of an image is kept, whose reference counts would have a
    loader process copy its page.

    Attributes:
        texts: The captions of each image.
    """

    def __init__(self, records: Sequence[ImageTextRecord]) -> None:
        # By identity: the records of a set share one store.
        self._stores, self._store_N = numbered([record.image.store for record in records], id)
        self._sources, self._source_N = numbered([record.source for record in records], str)
        self._names = FlatTexts(record.image.name for record in records)
        self._ids = FlatTexts(record.image_id for record in records)
        self.texts = PackedTexts([record.captions for record in records])

    def __len__(self) -> int:
        return len(self._store_N)

    def __getitem__(self, number: int) -> ImageRef:  # type: ignore[override]  # no slices are asked for
        if not 0 <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        return ImageRef(self._stores[self._store_N[number]], self._names[number])

    def sample_id(self, number: int) -> str:
        """A name for messages, unique among all sets."""
        return f"{self._sources[self._source_N[number]]}/{self._ids[number]}"

    def sources(self) -> np.ndarray:
        """The name of the data set of each image, objects."""
        return np.array(self._sources, object)[self._source_N]
