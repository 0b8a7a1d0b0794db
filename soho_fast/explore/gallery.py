"""Which pictures are shown, and the occurrences of codes in them.

N images, K codes, G pictures of the gallery.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from soho_fast.explore.spool import Chunk, Spool

MOST_PICTURES = 10_000
NUM_OCCURRENCES = 12


def draw(image: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """uint64, a number for each cell of each image by which it is drawn at random: it depends on these two alone.

    The finaliser of SplitMix64, over both.
    """
    x = image.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + cell.astype(np.uint64)
    for _ in range(2):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x


class SmallestOfEach:
    """Of each code the images with the smallest keys, `NUM_OCCURRENCES` of them, in ascending order of the key.

    image: int64 (K, 12), -1 where there are fewer.
    """

    def __init__(self, num_codes: int) -> None:
        self.image = np.full((num_codes, NUM_OCCURRENCES), -1, dtype=np.int64)
        self._key = np.full((num_codes, NUM_OCCURRENCES), np.inf)

    def add(self, code: np.ndarray, image: np.ndarray, key: np.ndarray) -> None:
        """Take in the cells of some more images; an image's cells all come in one call."""
        hopeful = key < self._key[code, -1]
        code, image, key = code[hopeful].astype(np.int64), image[hopeful], key[hopeful]
        touched = np.unique(code)
        kept = self.image[touched] >= 0
        code = np.concatenate([code, np.repeat(touched, kept.sum(1))])
        image = np.concatenate([image, self.image[touched][kept]])
        key = np.concatenate([key, self._key[touched][kept]])
        order = np.lexsort((image, key, code))
        code, image, key = code[order], image[order], key[order]
        first = first_of_each(code, image)
        code, image, key = code[first], image[first], key[first]
        place = np.arange(len(code)) - np.searchsorted(code, code, side="left")
        kept = place < NUM_OCCURRENCES
        self.image[code[kept], place[kept]] = image[kept]
        self._key[code[kept], place[kept]] = key[kept]


def first_of_each(*columns: np.ndarray) -> np.ndarray:
    """The places, ascending, at which a combination of values stands for the first time."""
    distinct = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        _, number = np.unique(column, return_inverse=True)
        distinct = distinct * (int(number.max(initial=0)) + 1) + number
    return np.sort(np.unique(distinct, return_index=True)[1])


def choose_pictures(spool: Spool, images_K: np.ndarray, most: int = MOST_PICTURES) -> np.ndarray:
    """Ascending numbers of the images that are shown: all of them, or `most`.

    Rare codes choose first, in turn the nearest and one drawn at random, until each code has `NUM_OCCURRENCES` images
    or all there are. What is left goes to the nearest image of each code, then to its second, and so on, and at last to
    any.

    Args:
        spool: All images.
        images_K: how many have each code.
        most: How many may be shown.
    """
    num_images, num_codes = len(spool), len(images_K)
    if num_images <= most:
        return np.arange(num_images)
    nearest, drawn = SmallestOfEach(num_codes), SmallestOfEach(num_codes)
    for chunk in spool.tokens():
        known = chunk.index >= 0
        image = chunk.first + chunk.image[known]
        cell = (chunk.row * chunk.columns + chunk.column)[known]
        nearest.add(chunk.index[known], image, chunk.distance[known].astype(np.float64))
        drawn.add(chunk.index[known], image, draw(image, cell).astype(np.float64))
    chosen: set[int] = set()
    has_K = np.zeros(num_codes, dtype=np.int64)

    def take(image: int) -> None:
        if image < 0 or image in chosen or len(chosen) >= most:
            return
        chosen.add(image)
        (chunk,) = spool.tokens([image])
        has_K[np.unique(chunk.index[chunk.index >= 0])] += 1

    in_turn = np.stack([nearest.image, drawn.image], axis=2).reshape(num_codes, -1)
    by_rarity = np.argsort(images_K, kind="stable")
    for code in by_rarity[images_K[by_rarity] > 0]:
        for image in in_turn[code]:
            if has_K[code] >= min(NUM_OCCURRENCES, images_K[code]):
                break
            take(int(image))
    for images in (*nearest.image.T, *drawn.image.T):
        for image in images[by_rarity[::-1]]:
            take(int(image))
    order = np.argsort(draw(np.arange(num_images), np.zeros(num_images, dtype=np.int64)), kind="stable")
    for image in order:
        if len(chosen) >= most:
            break
        take(int(image))
    return np.array(sorted(chosen), dtype=np.int64)


@dataclass
class Members:
    """All cells of a block of codes in the gallery, by code: int64, float64, uint64 (cells,)."""

    code: np.ndarray
    picture: np.ndarray
    row: np.ndarray
    column: np.ndarray
    distance: np.ndarray
    key: np.ndarray

    @classmethod
    def gather(cls, chunks: Iterator[Chunk], images: np.ndarray, first: int, last: int) -> Members:
        """Of the pictures, whose images have the numbers `images`, the cells with codes from `first` to `last`."""
        parts: list[tuple[np.ndarray, ...]] = []
        for chunk in chunks:
            wanted = (chunk.index >= first) & (chunk.index < last)
            picture = chunk.first + chunk.image[wanted]
            row, column = chunk.row[wanted].astype(np.int64), chunk.column[wanted].astype(np.int64)
            cell = row * chunk.columns[wanted] + column
            code, distance = chunk.index[wanted].astype(np.int64), chunk.distance[wanted].astype(np.float64)
            parts.append((code, picture, row, column, distance, draw(images[picture], cell)))
        if not parts:
            return cls(*(np.zeros(0, dtype=kind) for kind in (np.int64,) * 4 + (np.float64, np.uint64)))
        columns = [np.concatenate(part) for part in zip(*parts, strict=True)]
        # Within a code by picture and then row by row, which is what ties are decided by.
        order = np.argsort(columns[0], kind="stable")
        return cls(*(column[order] for column in columns))

    def of(self, code: int) -> Members:
        """Those of one code."""
        first, last = np.searchsorted(self.code, [code, code + 1])
        return self.at(slice(first, last))

    def at(self, places: np.ndarray | slice) -> Members:
        """Those at some places."""
        names = ("code", "picture", "row", "column", "distance", "key")
        return Members(*(getattr(self, name)[places] for name in names))

    def each_picture_once(self, key: np.ndarray) -> Members:
        """Of each picture the cell with the smallest key, in ascending order of the key."""
        order = np.argsort(key, kind="stable")
        return self.at(order[first_of_each(self.picture[order])])


def choose_occurrences(members: Members) -> dict[str, Members]:
    """The cells of one code that are shown: nearest, quantiles, random; of distinct pictures each.

    Of each picture its nearest cell stands for `nearest`, and for the others one that is drawn: the quantiles are those
    of the cells drawn, from the nearest to the farthest.
    """
    nearest = members.each_picture_once(members.distance)
    drawn = members.each_picture_once(members.key)
    by_distance = drawn.at(np.argsort(drawn.distance, kind="stable"))
    count = min(NUM_OCCURRENCES, len(drawn.code))
    places = np.round(np.linspace(0, len(drawn.code) - 1, count)).astype(np.int64) if count else slice(0, 0)
    return {
        "nearest": nearest.at(slice(NUM_OCCURRENCES)),
        "quantiles": by_distance.at(places),
        "random": drawn.at(slice(NUM_OCCURRENCES)),
    }
