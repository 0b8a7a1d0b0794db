"""Small images with codes of all kinds, and what an obvious program says of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from soho_fast.explore import bundle
from soho_fast.explore.sources import SeenImage, small_copy
from soho_fast.explore.spool import Spool

WORDS = ["dog", "cat", "tree", "sea", "car", "cup"]


def codebook(num_codes: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_codes, channels)).astype(np.float32)


def seen_images(num_images: int, num_codes: int, seed: int = 0, size: tuple[int, int] | None = None) -> list[SeenImage]:
    """Grids of all sizes (or of one), some patches without a code, the last codes dead, code 0 in image 1 alone, and
    distances of few values, so that there are ties and edges of the histogram are met."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(num_images):
        shape = size or tuple(rng.integers(1, 6, size=2))
        index = (1 + (num_codes - 3) * rng.random(shape) ** 2).astype(np.int32)
        index[rng.random(shape) < 0.1] = -1
        if number == 1:
            index[0, 0] = 0
        distance = (rng.integers(9, size=shape) / 4).astype(np.float32)
        captions = [" and ".join(rng.choice(WORDS, size=2)), f"a {WORDS[number % len(WORDS)]}"]
        images.append(SeenImage(index, distance, f"image {number}", number, captions))
    return images


def filled(images: list[SeenImage], folder: Path) -> Spool:
    """The spool of these images, without words."""
    spool = Spool(folder)
    for image in images:
        spool.add(image, np.zeros(0, dtype=np.int32))
    spool.finish()
    return spool


def described(file: str) -> set[str]:
    """The fields of a file of data/ that the docstring of bundle.py describes."""
    section = bundle.__doc__.split(f"\ndata/{file}", 1)[1].split("\n\n")[0]
    return {name for names in re.findall(r"^ {4}(\w[\w, ]*): ", section, re.MULTILINE) for name in names.split(", ")}


class MadeSource:
    """A `Source` of images that are there already."""

    title, model, data_sets = "made", "made", ["made"]
    licences = [{"what": "all", "credit": "nobody", "licence": "CC0"}]  # noqa: RUF012

    def __init__(self, images: list[SeenImage], codes: np.ndarray) -> None:
        self.seen, self.codebook, self.num_images = images, codes, len(images)
        self.num_codes, self.num_levels = len(codes), 2 if images and images[0].index.ndim == 3 else 1

    def images(self) -> Iterator[SeenImage]:
        yield from self.seen

    def small_copy(self, place: int) -> tuple[bytes, int, int]:
        return small_copy(Image.new("RGB", (10, 8), (place % 256, 0, 0)))

    def masked(self, places, captions):
        return iter(())


def patches_of(images: list[SeenImage]) -> dict[int, list[tuple[int, int, int, float]]]:
    """(image, row, column, distance) of each patch of each code."""
    found = defaultdict(list)
    for number, image in enumerate(images):
        for row in range(image.index.shape[0]):
            for column in range(image.index.shape[1]):
                if image.index[row, column] >= 0:
                    patch = (number, row, column, float(image.distance[row, column]))
                    found[int(image.index[row, column])].append(patch)
    return found


def beside(images: list[SeenImage]) -> Counter[tuple[int, int]]:
    """How often a patch of the first code has the second code beside it."""
    counts: Counter[tuple[int, int]] = Counter()
    for image in images:
        rows, columns = image.index.shape
        for row in range(rows):
            for column in range(columns):
                for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                    if 0 <= r < rows and 0 <= c < columns:
                        pair = int(image.index[row, column]), int(image.index[r, c])
                        counts[pair] += min(pair) >= 0
    return +counts
