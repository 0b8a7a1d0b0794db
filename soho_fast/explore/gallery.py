"""Which images are shown, and the occurrences of codes in them.

N images, of which G are shown (the gallery), K codes.
"""

from __future__ import annotations

import numpy as np
import torch

from soho_fast.explore.sources import fields_of
from soho_fast.explore.spool import Chunk, Spool
from soho_fast.ops.hashing import mix64

MOST_SHOWN = 10_000
NUM_OCCURRENCES = 12

_MEMBER = [*fields_of("code image row column", "distance"), ("key", np.uint64)]


def draw(image: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """uint64, a number for each patch of each image by which it is drawn at random: it depends on these two alone.

    The finaliser of SplitMix64, over both.
    """
    x = image.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + patch.astype(np.uint64)
    return mix64(mix64(torch.from_numpy(x.view(np.int64)))).numpy().view(np.uint64)


class SmallestOfEach:
    """Of each code the images with the smallest keys, `NUM_OCCURRENCES` of them, in ascending order of the key.

    image: int64 (K, 12), -1 where there are fewer.
    """

    def __init__(self, num_codes: int) -> None:
        self.image = np.full((num_codes, NUM_OCCURRENCES), -1, dtype=np.int64)
        self._key = np.full((num_codes, NUM_OCCURRENCES), np.inf)

    def add(self, code: np.ndarray, image: np.ndarray, key: np.ndarray) -> None:
        """Take in the patches of some more images; an image's patches all come in one call."""
        # What is behind a code's last kept one cannot come among them.
        hopeful = key < self._key[code, -1]
        code, image, key = code[hopeful].astype(np.int64), image[hopeful], key[hopeful]
        touched = np.unique(code)
        # What was kept takes part again beside what is new.
        kept = self.image[touched] >= 0
        code = np.concatenate([code, np.repeat(touched, kept.sum(1))])
        image = np.concatenate([image, self.image[touched][kept]])
        key = np.concatenate([key, self._key[touched][kept]])
        order = np.lexsort((image, key, code))
        code, image, key = code[order], image[order], key[order]
        # Of an image with several patches of a code the one with the smallest key, which comes first in this order.
        first = first_of_each(code * (image.max(initial=0) + 1) + image)
        code, image, key = code[first], image[first], key[first]
        # The rank of each within its code.
        place = np.arange(len(code)) - np.searchsorted(code, code, side="left")
        kept = place < NUM_OCCURRENCES
        self.image[code[kept], place[kept]] = image[kept]
        self._key[code[kept], place[kept]] = key[kept]


def first_of_each(values: np.ndarray) -> np.ndarray:
    """The places, ascending, at which a value stands for the first time."""
    return np.sort(np.unique(values, return_index=True)[1])


def choose_images(spool: Spool, images_K: np.ndarray, most: int = MOST_SHOWN) -> np.ndarray:
    """Ascending numbers of the images that are shown: all of them, or `most`.

    Rare codes choose first, in turn the nearest and one drawn at random, until each code has `NUM_OCCURRENCES` images
    or all there are. What is left goes to the nearest image of each code, then to its second, and so on, and at last to
    any. Without distances all are drawn.

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
        patch = (chunk.row * chunk.columns + chunk.column)[known]
        nearest.add(chunk.index[known], image, chunk.distance[known].astype(np.float64))
        drawn.add(chunk.index[known], image, draw(image, patch).astype(np.float64))
    if not spool.has_distances:
        nearest = drawn
    chosen: set[int] = set()
    has_K = np.zeros(num_codes, dtype=np.int64)

    def take(image: int) -> None:
        if image < 0 or image in chosen or len(chosen) >= most:
            return
        chosen.add(image)
        index = spool.index(image)
        has_K[np.unique(index[index >= 0])] += 1

    # Of each code the nearest, one drawn, the second nearest, ...
    in_turn = np.stack([nearest.image, drawn.image], axis=2).reshape(num_codes, -1)
    by_rarity = np.argsort(images_K, kind="stable")
    for code in by_rarity[images_K[by_rarity] > 0]:
        for image in in_turn[code]:
            if has_K[code] >= min(NUM_OCCURRENCES, images_K[code]):
                break
            take(int(image))
    order = np.argsort(draw(np.arange(num_images), np.zeros(num_images, dtype=np.int64)), kind="stable")
    # First the nearest of every code, then the second nearest, ...
    by_turns = (images[by_rarity[::-1]] for images in (*nearest.image.T, *drawn.image.T))
    for image in np.concatenate([*by_turns, order]):
        take(int(image))
    return np.array(sorted(chosen), dtype=np.int64)


def assigned_patches(chunk: Chunk, shown_N: np.ndarray, first: int, last: int) -> np.ndarray:
    """The patches of a chunk that have codes from `first` to `last` (exclusive) and lie in images of the gallery.

    Args:
        chunk: Some images.
        shown_N: Number of each image in the gallery, -1 where it is not shown.
        first, last: Codes.

    Returns:
        A record a patch, image by image and row by row: `code`, `image`, `row`, `column`, `distance`, and `key`, by
        which it is drawn at random.
    """
    image_T = chunk.first + chunk.image
    wanted = (chunk.index >= first) & (chunk.index < last) & (shown_N[image_T] >= 0)
    found = np.empty(np.count_nonzero(wanted), dtype=_MEMBER)
    found["code"], found["distance"] = chunk.index[wanted], chunk.distance[wanted]
    found["image"] = shown_N[image_T[wanted]]
    found["row"], found["column"] = chunk.row[wanted], chunk.column[wanted]
    found["key"] = draw(image_T[wanted], found["row"] * chunk.columns[wanted] + found["column"])
    return found


def choose_occurrences(assigned: np.ndarray, has_distances: bool = True) -> dict[str, np.ndarray]:
    """The patches of one code that are shown: nearest, quantiles, random; of distinct images each.

    Of each image its nearest patch stands for `nearest`, and for the others one that is drawn: the quantiles are those
    of the patches drawn, from the nearest to the farthest. Without distances there are random ones alone.
    """
    drawn = _each_image_once(assigned, "key")
    if not has_distances:
        return {"nearest": drawn[:0], "quantiles": drawn[:0], "random": drawn[:NUM_OCCURRENCES]}
    by_distance = drawn[np.argsort(drawn["distance"], kind="stable")]
    places = np.round(np.linspace(0, len(drawn) - 1, min(NUM_OCCURRENCES, len(drawn)))).astype(np.int64)
    return {
        "nearest": _each_image_once(assigned, "distance")[:NUM_OCCURRENCES],
        "quantiles": by_distance[places],
        "random": drawn[:NUM_OCCURRENCES],
    }


def _each_image_once(assigned: np.ndarray, key: str) -> np.ndarray:
    """Of each image the patch with the smallest key, in ascending order of the key."""
    ordered = assigned[np.argsort(assigned[key], kind="stable")]
    return ordered[first_of_each(ordered["image"])]
