"""Index maps, distances and texts of all images, whose features and pixels may be more than memory holds.

T tokens of some images one after another, of each level by level and row by row; N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from soho_fast.explore.sources import SeenImage

# Of a chunk: some thousand images, some MB.
_TOKENS_AT_A_TIME = 2**18


@dataclass(slots=True)
class Chunk:
    """The tokens of the images `first` to `last` (exclusive).

    image: int64 (T,), from 0 for the first; row, column: int32 (T,), in the image's grid; rows, columns: int32 (T,),
    of that grid; index: int32 (T,), -1 where there is no code; distance: float32 (T,), 0 where none is known.
    """

    first: int
    last: int
    image: np.ndarray
    row: np.ndarray
    column: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    index: np.ndarray
    distance: np.ndarray


class Spool:
    """Written once, image by image, then read as often as is needed.

    Attributes:
        texts: Of each image the fields of `SeenImage` but its tokens.
        distance_range: Smallest and largest distance of a token with a code.
        rows_N, columns_N, captioned_N: From `finish` on; int32, and bool, whether an image's captions say anything.
    """

    def __init__(self) -> None:
        self.texts: list[dict[str, Any]] = []
        self.distance_range = (np.inf, -np.inf)
        self.has_distances = True
        self._grids: list[tuple[int, int]] = []
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, image: SeenImage, words: np.ndarray) -> None:
        """Append an image with the numbers of its captions' words, int32, each once."""
        rows, columns = image.index.shape[-2:]
        if len(self) and self.has_distances != (image.distance is not None):
            raise ValueError(f"features: expected those of all images or of none; {image.name} differs from others")
        self.has_distances = image.distance is not None
        index = np.array(image.index, np.int32).ravel()
        distance = np.array(np.zeros(index.shape) if image.distance is None else image.distance, np.float32).ravel()
        known = distance[index >= 0]
        if known.size:
            low, high = self.distance_range
            self.distance_range = min(low, float(known.min())), max(high, float(known.max()))
        about = {each.name: getattr(image, each.name) for each in fields(image)}
        about |= {
            "patches_high": float(image.patches_high or rows),
            "patches_wide": float(image.patches_wide or columns),
        }
        del about["index"], about["distance"]
        self.texts.append(about)
        self._grids.append((rows, columns))
        self._parts.append((index, distance, words))

    def finish(self) -> None:
        """From here on it is read."""
        self.rows_N, self.columns_N = np.array(self._grids, dtype=np.int32).T
        captioned = [any(caption.strip() for caption in text["captions"]) for text in self.texts]
        self.captioned_N = np.array(captioned, dtype=np.bool_)
        self._index, self._distance, self._words = map(np.concatenate, zip(*self._parts, strict=True))
        sizes = [(len(index), len(words)) for index, _, words in self._parts]
        self.first_N, self._first_word = np.cumsum([(0, 0), *sizes], axis=0).T
        self._parts.clear()

    def words(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the images `first` to `last` the words, int32, and where each image's begin, int64 (last - first + 1,)."""
        begins = self._first_word[first : last + 1]
        return self._words[begins[0] : begins[-1]], begins - begins[0]

    def index(self, number: int) -> np.ndarray:
        """int32 (Q * h * w,), the codes of an image, level by level and row by row; -1 where a patch has no code."""
        return self._index[self.first_N[number] : self.first_N[number + 1]]

    def tokens(self) -> Iterator[Chunk]:
        """The tokens of all images."""
        first = 0
        while first < len(self):
            last = int(np.searchsorted(self.first_N, self.first_N[first] + _TOKENS_AT_A_TIME, side="left"))
            last = min(max(last, first + 1), len(self))
            yield self._chunk(first, last)
            first = last

    def _chunk(self, first: int, last: int) -> Chunk:
        begin, end = int(self.first_N[first]), int(self.first_N[last])
        sizes = np.diff(self.first_N[first : last + 1])
        image_T = np.repeat(np.arange(last - first), sizes)
        place_T = np.arange(end - begin) - (self.first_N[first:last] - begin)[image_T]
        rows_T, columns_T = self.rows_N[first:last][image_T], self.columns_N[first:last][image_T]
        return Chunk(
            first,
            last,
            image_T,
            (place_T // np.maximum(columns_T, 1) % np.maximum(rows_T, 1)).astype(np.int32),
            (place_T % np.maximum(columns_T, 1)).astype(np.int32),
            rows_T,
            columns_T,
            self._index[begin:end],
            self._distance[begin:end],
        )
