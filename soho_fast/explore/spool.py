"""Index maps, distances and texts of all images on disk, since they may be more than memory holds.

T tokens of some images one after another, of each level by level and row by row; N images.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
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

    Args:
        folder: An empty folder for its files.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {name: (folder / name).open("w+b") for name in ("index", "distance", "words", "texts")}
        self._rows, self._columns, self._captioned = array("i"), array("i"), array("b")
        self._first = {name: array("q", [0]) for name in ("tokens", "words", "texts")}
        self.distance_range = (np.inf, -np.inf)
        """Smallest and largest distance of a token with a code."""
        self.has_distances = True

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Close the files; they are the folder's owner's to delete."""
        for file in self._files.values():
            file.close()

    def add(self, image: SeenImage, words: np.ndarray) -> None:
        """Append an image with the numbers of its captions' words, int32, each once."""
        rows, columns = image.index.shape[-2:]
        index = np.ascontiguousarray(image.index, dtype=np.int32)
        if len(self) and self.has_distances != (image.distance is not None):
            raise ValueError(f"features: expected those of all images or of none; {image.name} differs from others")
        self.has_distances = image.distance is not None
        distance = np.zeros(index.shape, np.float32) if image.distance is None else image.distance
        distance = np.ascontiguousarray(distance, dtype=np.float32)
        known = distance[index >= 0]
        if known.size:
            low, high = self.distance_range
            self.distance_range = min(low, float(known.min())), max(high, float(known.max()))
        # All but the arrays, which have files of their own.
        about = {each.name: getattr(image, each.name) for each in fields(image) if each.name not in self._files}
        about["patches_high"] = float(image.patches_high or rows)
        about["patches_wide"] = float(image.patches_wide or columns)
        text = json.dumps(about).encode()
        contents = {"index": index.tobytes(), "distance": distance.tobytes(), "words": words.tobytes(), "texts": text}
        for name, content in contents.items():
            self._files[name].write(content)
        self._rows.append(rows)
        self._columns.append(columns)
        self._captioned.append(any(caption.strip() for caption in image.captions))
        for name, size in (("tokens", index.size), ("words", len(words)), ("texts", len(text))):
            self._first[name].append(self._first[name][-1] + size)

    def finish(self) -> None:
        """From here on it is read; `captioned_N`: bool, whether an image's captions say anything."""
        for file in self._files.values():
            file.flush()
        # Views, not copies: from here on `add` would raise, since the arrays can't grow.
        self.rows_N = np.frombuffer(self._rows, dtype=np.int32)
        self.columns_N = np.frombuffer(self._columns, dtype=np.int32)
        self.captioned_N = np.frombuffer(self._captioned, dtype=np.bool_)
        self.first_N = np.frombuffer(self._first["tokens"], dtype=np.int64)

    def texts(self, number: int) -> dict[str, Any]:
        """All of an image but its tokens: the fields of `SeenImage`."""
        first, last = self._first["texts"][number], self._first["texts"][number + 1]
        file = self._files["texts"]
        file.seek(first)
        return json.loads(file.read(last - first))

    def words(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the images `first` to `last` the words, int32, and where each image's begin, int64 (last - first + 1,)."""
        begins = np.frombuffer(self._first["words"], dtype=np.int64)[first : last + 1]
        return self._read("words", np.int32, int(begins[0]), int(begins[-1])), begins - begins[0]

    def index(self, number: int) -> np.ndarray:
        """int32 (Q * h * w,), the codes of an image, level by level and row by row; -1 where a patch has no code."""
        return self._read("index", np.int32, int(self.first_N[number]), int(self.first_N[number + 1]))

    def tokens(self) -> Iterator[Chunk]:
        """The tokens of all images."""
        first = 0
        while first < len(self):
            last = int(np.searchsorted(self.first_N, self.first_N[first] + _TOKENS_AT_A_TIME, side="left"))
            # One image at least, however many tokens it has.
            last = min(max(last, first + 1), len(self))
            yield self._chunk(first, last)
            first = last

    def _chunk(self, first: int, last: int) -> Chunk:
        begin, end = int(self.first_N[first]), int(self.first_N[last])
        sizes = np.diff(self.first_N[first : last + 1])
        image_T = np.repeat(np.arange(last - first), sizes)
        # Of each token its place in its own image.
        place_T = np.arange(end - begin) - (self.first_N[first:last] - begin)[image_T]
        rows_T, columns_T = self.rows_N[first:last][image_T], self.columns_N[first:last][image_T]
        row_T, column_T = np.divmod(place_T, np.maximum(columns_T, 1))
        # Rows are counted through all levels of an image.
        row_T = row_T % np.maximum(rows_T, 1)
        grid = row_T.astype(np.int32), column_T.astype(np.int32), rows_T, columns_T
        tokens = self._read("index", np.int32, begin, end), self._read("distance", np.float32, begin, end)
        return Chunk(first, last, image_T, *grid, *tokens)

    def _read(self, name: str, dtype: type, first: int, last: int) -> np.ndarray:
        # Not mapped: mapped pages count as this process's memory.
        file, size = self._files[name], np.dtype(dtype).itemsize
        # One position for all readers: the spool is read by one thread.
        file.seek(first * size)
        return np.frombuffer(file.read((last - first) * size), dtype=dtype)
