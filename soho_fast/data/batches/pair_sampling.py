"""Which texts go with an image: its own captions, and captions of other images that do not describe it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from soho_fast.data.text import PackedTexts, content_words

# A random caption of another image is rejected now and then; after so many rejections in a row the images are so much
# alike that looking further would cost more than it gives.
_MAX_DRAWS = 20


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def check_negatives(captions_of: Sequence[Sequence[str]]) -> None:
    """Raises ValueError: fewer than two images, or one that has every caption of the data set."""
    if len(captions_of) < 2:
        raise ValueError(f"expected at least 2 images to draw negative captions from, got {len(captions_of)}")
    packed = hasattr(captions_of, "counts")
    most = int(captions_of.counts().max()) if packed else max(map(len, captions_of))
    list_of = captions_of.all if packed else captions_of.__getitem__
    distinct: set[str] = set()
    for captions in map(list_of, range(len(captions_of))):
        distinct.update(map(_folded, captions))
        if len(distinct) > most:
            return
    for number, captions in enumerate(map(list_of, range(len(captions_of)))):
        if distinct <= set(map(_folded, captions)):
            raise ValueError(
                f"no negative caption for image {number} of {len(captions_of)}: every caption of the data set is one "
                f"of its own ({', '.join(sorted(distinct))[:200]}); expected images with different captions"
            )


class PairSampler:
    """Draws positive and negative captions of an image. Every draw comes from the generator given."""

    def __init__(
        self,
        captions_of: Sequence[Sequence[str]],
        sources: Sequence[str] | None = None,
        *,
        negatives: bool = True,
        replacing_groups_of: int = 0,
    ) -> None:
        """Keep the captions of all images.

        Args:
            captions_of: For every image its captions, at least one each; what has the methods of `PackedTexts` is kept
                as it is.
            sources: For every image the data set it is of, whose images stand together: negatives are drawn within it,
                or their style would tell them apart. None: all are of one.
            negatives: Whether negatives will be drawn too.
            replacing_groups_of: So many captions make a group where `replacement` will be asked for; 0: it will not.

        Raises:
            ValueError: There is nothing to draw negatives from: fewer than two images, or one that has every caption
                of the data set. Or there is no replacement: a data set with one image.
        """
        if negatives:
            check_negatives(captions_of)
        self._texts = captions_of if hasattr(captions_of, "counts") else PackedTexts(captions_of)
        starts = [0]
        if sources is not None:
            starts += [number for number in range(1, len(sources)) if sources[number] != sources[number - 1]]
        self._bounds = np.array([*starts, len(captions_of)])
        self._group_size = replacing_groups_of
        if replacing_groups_of:
            for alone in np.flatnonzero(np.diff(self._bounds) == 1):
                name = f" {sources[self._bounds[alone]]}" if sources is not None else ""
                raise ValueError(f"data set{name}: expected at least 2 images to replace captions between, got 1")
            num_groups_I = -(-self._texts.counts() // replacing_groups_of)
            self._first_group = np.concatenate([[0], np.cumsum(num_groups_I)])

    def __len__(self) -> int:
        return len(self._texts)

    def captions(self, index: int) -> list[str]:
        """All captions of image `index`."""
        return self._texts.all(index)

    def positives(self, index: int, count: int, rng: np.random.Generator) -> list[str]:
        """`count` of the image's captions; different ones as long as it has enough, repeated evenly after that."""
        available = self._texts.count(index)
        chosen: list[int] = []
        while len(chosen) < count:
            chosen.extend(rng.permutation(available)[: count - len(chosen)].tolist())
        return [self._texts.get(index, number) for number in chosen]

    def counts(self) -> np.ndarray:
        """How many captions each image has, int64."""
        return self._texts.counts()

    def group(self, index: int, number: int, count: int, rng: np.random.Generator) -> list[str]:
        """Group `number` of the image's captions, divided at random into groups of `count`, each caption in one.

        The last group is filled with captions of the others, and with its own where there are no others.
        """
        available = self._texts.count(index)
        order = np.resize(rng.permutation(available), (-(-available // count), count))
        return [self._texts.get(index, int(chosen)) for chosen in order[number]]

    def fixed_group(self, index: int, number: int, count: int) -> list[str]:
        """Group `number` of the image's captions, divided in their order into groups of `count`, always the same.

        The last group is filled with the image's captions from the first one on.
        """
        available = self._texts.count(index)
        return [self._texts.get(index, (number * count + place) % available) for place in range(count)]

    def replacement(self, index: int, rng: np.random.Generator) -> str:
        """The first caption of a group of another image of the same data set, all groups alike. What it says is not
        looked at: it may describe this image too."""
        place = np.searchsorted(self._bounds, index, side="right")
        first, end = self._first_group[self._bounds[place - 1]], self._first_group[self._bounds[place]]
        own_first, own_end = self._first_group[index], self._first_group[index + 1]
        group = first + rng.integers(end - first - (own_end - own_first))
        group += (own_end - own_first) * (group >= own_first)
        other = int(np.searchsorted(self._first_group, group, side="right")) - 1
        return self._texts.get(other, int(group - self._first_group[other]) * self._group_size)

    def negatives(self, index: int, count: int, rng: np.random.Generator) -> list[str]:
        """`count` captions of other images of its data set with content words that this image's captions have not.

        A text without content words says nothing and is rejected too. When nothing passes in 20 draws, the first one
        drawn that is not word for word one of the image's own captions is taken.
        """
        own = self.captions(index)
        own_texts = {_folded(text) for text in own}
        own_words = frozenset().union(*map(content_words, own))
        return [self._negative(index, own_texts, own_words, rng) for _ in range(count)]

    def _negative(self, index: int, own_texts: set[str], own_words: frozenset[str], rng: np.random.Generator) -> str:
        fallback = ""
        place = np.searchsorted(self._bounds, index, side="right")
        first, end = int(self._bounds[place - 1]), int(self._bounds[place])
        if end - first == 1:  # There is no other image in its data set.
            first, end = 0, len(self._texts)
        for _ in range(_MAX_DRAWS):
            other = first + int(rng.integers(end - first - 1))
            other += other >= index
            text = self._texts.get(other, int(rng.integers(self._texts.count(other))))
            if content_words(text) - own_words:
                return text
            if not fallback and _folded(text) not in own_texts:
                fallback = text
        return fallback or self._any_other(own_texts, rng)

    def _any_other(self, own_texts: set[str], rng: np.random.Generator) -> str:
        count, start = len(self._texts), int(rng.integers(len(self._texts)))
        others = ((start + offset) % count for offset in range(count))
        texts = (text for other in others for text in self._texts.all(other))
        return next(text for text in texts if _folded(text) not in own_texts)
