"""Images, features and captions made by rule, as many as wanted: an explorer of any size without a model.

python tests/explore/by_rule.py FOLDER --images 100000 --codes 8192

What every image holds follows from its number alone:
- it belongs to topic `image % num_topics(num_codes)`; the left half of its patches have codes of that topic, the right
  half any code, low numbers more often than high ones;
- the last 16 codes are dead, and `rare_code(num_codes)`, the one before them, is in the first patch of image 7 alone;
- its captions say its topic's word and another that says nothing.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CHANNELS = 8
ROWS, COLUMNS = 10, 16
NUM_DEAD = 16
CODES_PER_TOPIC = 16
NOISE = 0.02
_SYLLABLES = [consonant + vowel for consonant in "bdklmn" for vowel in "aeiou"]
_RARE_IMAGE = 7


def num_topics(num_codes: int) -> int:
    return max(1, num_codes // CODES_PER_TOPIC - 2)


def rare_code(num_codes: int) -> int:
    return num_codes - NUM_DEAD - 1


def word(number: int) -> str:
    """A word of three syllables, another for each number below 27,000."""
    count = len(_SYLLABLES)
    return "".join(_SYLLABLES[number // count**place % count] for place in (2, 1, 0))


def codebook(num_codes: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_codes, CHANNELS)).astype(np.float32)


def index_maps(images: np.ndarray, num_codes: int, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """int64 (images, rows, columns): the codes that were meant, of which noise makes others here and there."""
    maps = np.empty((len(images), rows, columns), dtype=np.int64)
    for place, image in enumerate(images):
        rng = np.random.default_rng([1, image])
        first = CODES_PER_TOPIC * (image % num_topics(num_codes))
        maps[place] = ((rare_code(num_codes)) * rng.random((rows, columns)) ** 2).astype(np.int64)
        maps[place, :, : columns // 2] = first + rng.integers(CODES_PER_TOPIC, size=(rows, columns // 2))
        if image == _RARE_IMAGE:
            maps[place, 0, 0] = rare_code(num_codes)
    return maps


def captions(image: int, num_codes: int) -> list[str]:
    topic = image % num_topics(num_codes)
    noise = np.random.default_rng([2, image]).integers(1000)
    return [f"a {word(topic)} and a {word(20_000 + noise)}", f"the {word(topic)}"]


def pictures(maps: np.ndarray, side: int = 4) -> np.ndarray:
    """uint8 (images, H, W, 3): each patch a square of a colour of its code."""
    hue = np.stack([maps * 37 % 256, maps * 101 % 256, maps * 211 % 256], axis=-1).astype(np.uint8)
    return hue.repeat(side, axis=1).repeat(side, axis=2)


def batches(num_images: int, num_codes: int, size: int = 500) -> Iterator[tuple]:
    """(features, images, captions, names) of some images each, for `build_from_batches`."""
    codes = codebook(num_codes)
    for first in range(0, num_images, size):
        numbers = np.arange(first, min(first + size, num_images))
        maps = index_maps(numbers, num_codes)
        noise = np.random.default_rng([3, first]).normal(scale=NOISE, size=(*maps.shape, CHANNELS))
        features = (codes[maps] + noise).astype(np.float32)
        names = [f"made/{number:06d}.png" for number in numbers]
        yield features, pictures(maps), [captions(int(number), num_codes) for number in numbers], names


def main() -> None:
    from soho_fast.explore import build_from_batches

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--codes", type=int, default=8192)
    options = parser.parse_args()
    began = time.perf_counter()
    build_from_batches(
        batches(options.images, options.codes),
        codebook(options.codes),
        options.folder,
        title=f"{options.images:,} images by rule",
        licences="made by rule, CC0-1.0",
        num_images=options.images,
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{options.images:,} images: {time.perf_counter() - began:.0f} s, peak memory {memory:.0f} MiB")


if __name__ == "__main__":
    main()
