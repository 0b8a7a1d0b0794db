"""Images with captions in tar shards, as records that are made when they are asked for, and their order in an epoch.

The order is nearly that of the disk, yet shuffled: shards are put in a random order, and then no sample moves further
than `WINDOW` places. At any time reading touches the few shards that so many samples fill, and goes forward through
them. The order is a function of the generator alone, not of processes or workers.

Shapes: N images with captions.
"""

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath

import numpy as np

from soho_fast.common.errors import MIN_SEEN, too_many_corrupt
from soho_fast.data.readers.records import ImageRef, ImageTextRecord, ReadReport
from soho_fast.data.shards.store import TarStore
from soho_fast.data.text import TextLists


class ShardTexts(TextLists):
    """The captions of `ShardRecords`."""

    def __init__(self, store: TarStore, row_N: np.ndarray, max_captions: int | None) -> None:
        self._store, self._row_N, self._most = store, row_N, max_captions

    def __len__(self) -> int:
        return len(self._row_N)

    def row(self, index: int) -> int:
        """The image's number in the store."""
        return int(self._row_N[index])

    def count(self, index: int) -> int:
        """How many captions image `index` has."""
        shard, inside = self._store.place(self.row(index))
        count = self._store.shards[shard].num_captions(inside)
        return count if self._most is None else min(count, self._most)

    def counts(self) -> np.ndarray:
        """How many captions each image has, int64 (N,)."""
        counts = np.concatenate([np.diff(shard.first.astype(np.int64)) for shard in self._store.shards])[self._row_N]
        return counts if self._most is None else np.minimum(counts, self._most)

    def get(self, index: int, number: int) -> str:
        """Caption `number` of image `index`."""
        shard, inside = self._store.place(self.row(index))
        return self._store.shards[shard].caption(inside, number)


class ShardRecords(Sequence[ImageTextRecord]):
    """The images of shards that have a caption, in the shards' order.

    Args:
        store: The shards.
        source: Name of the set in messages.
        max_captions: Keep only the first so many captions of an image; None keeps all.
    """

    def __init__(self, store: TarStore, source: str, max_captions: int | None = None) -> None:
        self.store, self.source = store, source
        captioned = [np.diff(shard.first.astype(np.int64)) > 0 for shard in store.shards]
        self._max_captions = max_captions
        self._is_whole = True
        self._take(np.flatnonzero(np.concatenate(captioned)).astype(np.uint32))

    def _take(self, row_N: np.ndarray) -> None:
        self._row_N = row_N
        # Rows ascend, so these are the numbers of images with captions before each shard.
        self.bounds = np.searchsorted(row_N, self.store.bounds)
        self.texts = ShardTexts(self.store, row_N, self._max_captions)

    def where(self, is_kept_N: np.ndarray) -> "ShardRecords":
        """Those of these images, bool (N,), of which not all are True, in the same order."""
        records = copy.copy(self)
        records._take(self._row_N[is_kept_N])
        records._is_whole = False
        return records

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> ImageTextRecord:  # type: ignore[override]  # no slices are asked for
        if not 0 <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        return ImageTextRecord(self.image(number), tuple(self.texts.all(number)), self._image_id(number), self.source)

    def image(self, number: int) -> ImageRef:
        """Where an image is."""
        return ImageRef(self.store, self.store.name(self.texts.row(number)))

    def sample_id(self, number: int) -> str:
        """A name for messages, unique among all sets."""
        return f"{self.source}/{self._image_id(number)}"

    def _image_id(self, number: int) -> str:
        shard, inside = self.store.place(self.texts.row(number))
        return self.store.shards[shard].image_id(inside)

    def sources(self) -> np.ndarray:
        """The name of the set of each image, objects (N,)."""
        return np.full(len(self), self.source, object)

    def shapes(self, progress: Callable[[int, int], None]) -> np.ndarray:
        """float64 (N,): see `shapes_of`; they are in the index, so that there is no progress to report."""
        return np.concatenate([shard.shape for shard in self.store.shards])[self._row_N]

    def locations(self) -> Iterator[str]:
        """Shard and member of each image, as `str(image)` gives them."""
        for number in range(len(self)):
            shard, inside = self.store.place(self.texts.row(number))
            yield f"{self.store.shards[shard].shard}!{self.store.shards[shard].name(inside)}"

    def identity(self) -> str:
        """Number and hash of names, ids and captions, in order."""
        digest = hashlib.sha256(repr(self._max_captions).encode())
        for shard in self.store.shards:
            for array in (shard.first, shard.names, shard.names_ends, shard.ids, shard.ids_ends):
                digest.update(array.data)
            digest.update(shard.captions.data)
            digest.update(shard.captions_ends.data)
        # Which images are left; of a whole set the texts above say it.
        if not self._is_whole:
            digest.update(self._row_N.data)
        return f"{len(self):,} records, {digest.hexdigest()[:12]}"


def read_shards(
    shards: str | os.PathLike[str],
    *,
    max_captions: int | None = None,
    source: str | None = None,
    max_broken: float = 0.01,
    report: ReadReport | None = None,
) -> ShardRecords:
    """Images with captions in tar shards as img2dataset writes them (docs/own_data.md).

    Args:
        shards: A `.tar`, or a range of them: `cc3m/{00000..00331}.tar`, each with its index.
        max_captions: Keep only the first so many captions of an image; None keeps all.
        source: Name of the set in messages; the name of the shards' folder when None.
        max_broken: Largest share of the samples that may be broken (of at least 1,000).
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError: A shard or its index is missing.
        ValueError: An index is stale or damaged, a name comes twice, no image has a caption, or more are broken.
    """
    store = TarStore(shards)
    total = store.counts
    records = ShardRecords(store, source or PurePath(os.path.abspath(shards)).parent.name, max_captions)
    if not len(records):
        raise ValueError(f"{store}: no image with a caption was found ({total}); expected .txt or .json members")
    first_broken = store.left_out()[0] if total.broken else ""
    if too_many_corrupt(total.broken, len(records) + total.broken, max_broken):
        raise ValueError(
            f"batch.corrupt_images: {total.broken:,} of {len(records) + total.broken:,} samples of {store} are broken, "
            f"more than the share of {max_broken:g} that is allowed (of at least {MIN_SEEN}), as {first_broken}"
        )
    report = report or ReadReport()
    report.source, report.num_images = records.source, len(records)
    report.num_captions = int(records.texts.counts().sum())
    report.num_failed = sum(total.failed.values())
    report.num_missing = total.without_image
    report.num_broken, report.first_broken = total.broken, first_broken
    report.num_without_caption = total.without_caption
    report.num_empty_captions = total.empty_captions
    return records


WINDOW = 2**16
"""Samples among which one is drawn: a hundred batches of the paper, and some seven shards of img2dataset."""


def epoch_order(parts: Sequence[np.ndarray], rng: np.random.Generator, *, window: int = WINDOW) -> np.ndarray:
    """The samples of an epoch, each once, int64 (samples,).

    Args:
        parts: Of each data set, in turn, int64 (shards + 1,): where its shards begin, and where the last one ends. One
            that is not in shards is one shard: two numbers, and is shuffled whole.
        rng: Source of all draws.
        window: Largest number of places that a sample moves, in its data set.

    Returns:
        Data sets are mixed evenly: each place draws at random from which one it takes the next sample.
    """
    orders = [_of_one(bounds, rng, window) for bounds in parts]
    if len(orders) == 1:
        return orders[0]
    # Each set as often as it has samples: each is read in its own order, to its end.
    part_of = rng.permutation(np.repeat(np.arange(len(orders)), [len(order) for order in orders]))
    mixed = np.empty(len(part_of), np.int64)
    for part, order in enumerate(orders):
        mixed[part_of == part] = order
    return mixed


def _of_one(bounds: np.ndarray, rng: np.random.Generator, window: int) -> np.ndarray:
    if len(bounds) == 2:
        return bounds[0] + rng.permutation(int(bounds[1] - bounds[0]))
    shards = rng.permutation(len(bounds) - 1)
    samples = np.concatenate([np.arange(bounds[shard], bounds[shard + 1], dtype=np.int64) for shard in shards])
    # Sorted by places to which less than a window was added: none overtakes a sample that lies a window before it.
    return samples[np.argsort(np.arange(len(samples)) + rng.random(len(samples)) * window, kind="stable")]
