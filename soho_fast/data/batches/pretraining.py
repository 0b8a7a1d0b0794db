"""Pre-training samples: each image with texts that match and texts that do not, all masked alike.

Which texts go with an image: its own captions, and captions of other images that do not describe it, or foils of its
own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np

from soho_fast.data.batches.record_table import RecordTable
from soho_fast.data.batches.sample import CAPTION_STREAM, SAMPLE_STREAM, Images, Sample, SampleDataset
from soho_fast.data.foils import Foils
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import ImageTextRecord
from soho_fast.data.text import (
    IGNORED_LABEL,
    KEPT_TEXTS,
    PackedTexts,
    content_words,
    encode_text,
    mask_tokens,
)

# A random caption of another image is rejected now and then; after so many rejections in a row the images are so much
# alike that looking further would cost more than it gives.
_MAX_DRAWS = 20


def _part_of(bounds: np.ndarray, number: int) -> tuple[int, int]:
    """Of parts that lie one after the other the one with item `number` of all, and the item's number in it.

    Args:
        bounds: int64 (parts + 1,), the number of items before each part.
        number: Less than the number of items.
    """
    # "right": bounds of empty parts are equal, and the last of these is the part that has the item.
    part = int(np.searchsorted(bounds, number, side="right")) - 1
    return part, number - int(bounds[part])


@lru_cache(KEPT_TEXTS)
def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def check_negatives(captions_of: PackedTexts, where: str = "") -> None:
    """Raises ValueError, which begins with `where`: fewer than two images, or one that has every caption of the data
    set."""
    if len(captions_of) < 2:
        raise ValueError(f"{where}expected at least 2 images to draw negative captions from, got {len(captions_of)}")
    most = int(captions_of.counts().max())
    distinct: set[str] = set()
    for captions in map(captions_of.all, range(len(captions_of))):
        distinct.update(map(_folded, captions))
        # More distinct captions than any image has: none can have all of them. Mostly after a few images.
        if len(distinct) > most:
            return
    for number, captions in enumerate(map(captions_of.all, range(len(captions_of)))):
        if distinct <= set(map(_folded, captions)):
            raise ValueError(
                f"{where}no negative caption for image {number} of {len(captions_of)}: every caption of the data set "
                f"is one of its own ({', '.join(sorted(distinct))[:200]}); expected images with different captions"
            )


class PairSampler:
    """Draws positive and negative captions of an image. Every draw comes from the generator given."""

    def __init__(
        self,
        captions_of: Sequence[Sequence[str]] | PackedTexts,
        sources: Sequence[str] | np.ndarray | None = None,
        *,
        negatives: bool = True,
        replacing_groups_of: int = 0,
    ) -> None:
        """Keep the captions of all images.

        Args:
            captions_of: For every image its captions, at least one each; `PackedTexts` are kept as they are.
            sources: For every image the data set it is of, whose images stand together: negatives are drawn within it,
                or their style would tell them apart. None: all are of one.
            negatives: Whether negatives will be drawn too.
            replacing_groups_of: So many captions make a group where `replacement` will be asked for; 0: it will not.

        Raises:
            ValueError: There is nothing to draw negatives from: fewer than two images, or one that has every caption
                of the data set. Or there is no replacement: a data set with one image.
        """
        self._texts = captions_of if isinstance(captions_of, PackedTexts) else PackedTexts(captions_of)
        if negatives:
            check_negatives(self._texts)
        starts = [0]
        if sources is not None:
            starts += [number for number in range(1, len(sources)) if sources[number] != sources[number - 1]]
        self._bounds = np.array([*starts, len(captions_of)])
        self._group_size = replacing_groups_of
        if replacing_groups_of:
            for alone in np.flatnonzero(np.diff(self._bounds) == 1):
                name = f" {sources[self._bounds[alone]]}" if sources is not None else ""
                raise ValueError(f"data set{name}: expected at least 2 images to replace captions between, got 1")
            # As many groups as an image has samples, the last one perhaps not full.
            num_groups_I = -(-self._texts.counts() // replacing_groups_of)
            self._first_group = np.concatenate([[0], np.cumsum(num_groups_I)])

    def positives(self, index: int, count: int, rng: np.random.Generator) -> list[str]:
        """`count` of the image's captions; different ones as long as it has enough, repeated evenly after that."""
        available = self._texts.count(index)
        chosen: list[int] = []
        while len(chosen) < count:
            # A permutation at a time: no caption comes again before each has come once.
            chosen.extend(rng.permutation(available)[: count - len(chosen)].tolist())
        return [self._texts.get(index, number) for number in chosen]

    def group(self, index: int, number: int, count: int, rng: np.random.Generator) -> list[str]:
        """Group `number` of the image's captions, divided at random into groups of `count`, each caption in one.

        The last group is filled with captions of the others, and with its own where there are no others.
        """
        available = self._texts.count(index)
        # `resize` repeats the permutation from its start, which fills the last group.
        order = np.resize(rng.permutation(available), (-(-available // count), count))
        return [self._texts.get(index, int(chosen)) for chosen in order[number]]

    def fixed_group(self, index: int, number: int, count: int, rng: np.random.Generator) -> list[str]:
        """Group `number` of the image's captions, divided in their order into groups of `count`.

        What the last group lacks are captions of the image, drawn by `rng`, its own among them: different ones, or,
        where the image has fewer than that, any.
        """
        available = self._texts.count(index)
        chosen = list(range(number * count, min((number + 1) * count, available)))
        missing = count - len(chosen)
        drawn = rng.permutation(available) if missing <= available else rng.integers(available, size=missing)
        return [self._texts.get(index, int(place)) for place in [*chosen, *drawn[:missing]]]

    def _data_set_of(self, index: int) -> tuple[int, int]:
        """The first image of an image's data set, and the one after the last."""
        data_set, _ = _part_of(self._bounds, index)
        return int(self._bounds[data_set]), int(self._bounds[data_set + 1])

    def replacement(self, index: int, rng: np.random.Generator) -> str:
        """The first caption of a group of another image of the same data set, all groups alike. What it says is not
        looked at: it may describe this image too."""
        first, end = (self._first_group[bound] for bound in self._data_set_of(index))
        own_first, own_end = self._first_group[index], self._first_group[index + 1]
        group = first + rng.integers(end - first - (own_end - own_first))
        # Drawn among the others alone, then moved past the own groups: each other group is equally likely.
        group += (own_end - own_first) * (group >= own_first)
        other, group_of_other = _part_of(self._first_group, group)
        return self._texts.get(other, group_of_other * self._group_size)

    def negatives(self, index: int, count: int, rng: np.random.Generator) -> list[str]:
        """`count` captions of other images of its data set with content words that this image's captions have not.

        A text without content words says nothing and is rejected too. When nothing passes in 20 draws, the first one
        drawn that is not word for word one of the image's own captions is taken.
        """
        own = self._texts.all(index)
        own_texts = {_folded(text) for text in own}
        own_words = frozenset().union(*map(content_words, own))
        first, end = self._data_set_of(index)
        if end - first == 1:  # There is no other image in its data set.
            first, end = 0, len(self._texts)
        return [self._negative(index, (first, end), own_texts, own_words, rng) for _ in range(count)]

    def _negative(
        self,
        index: int,
        among: tuple[int, int],
        own_texts: set[str],
        own_words: frozenset[str],
        rng: np.random.Generator,
    ) -> str:
        fallback = ""
        first, end = among
        for _ in range(_MAX_DRAWS):
            other = first + int(rng.integers(end - first - 1))
            # Past the image itself.
            other += other >= index
            text = self._texts.get(other, int(rng.integers(self._texts.count(other))))
            if content_words(text) - own_words:
                return text
            if not fallback and _folded(text) not in own_texts:
                fallback = text
        # After 20 draws without a caption that differs: it is looked for, one after the other.
        return fallback or self._any_other(own_texts, rng)

    def _any_other(self, own_texts: set[str], rng: np.random.Generator) -> str:
        count, start = len(self._texts), int(rng.integers(len(self._texts)))
        others = ((start + offset) % count for offset in range(count))
        texts = (text for other in others for text in self._texts.all(other))
        # There is one: `check_negatives` has refused data in which an image has every caption.
        return next(text for text in texts if _folded(text) not in own_texts)


Epoch = Literal["captions", "caption_groups", "images"]
"""What an epoch holds once; see `PretrainingDataset`."""


@dataclass(eq=False, repr=False)
class PretrainingDataset(SampleDataset):
    """Samples that depend on (seed, epoch, index) only: not on the rank, the worker, or what was drawn before.

    A sample is an image with `num_positive` of its captions. An epoch holds each image once, with captions drawn at
    random, or as often as it takes: n captions are divided among ceil(n / num_positive) samples, so that each comes up;
    the last is filled with captions of the others.

    Ask for an epoch's sample by `set_epoch`, then `dataset[index]`. A batch has `mlm_labels` (P, S), -100 outside,
    `itm_labels` (P,; 1 = matched), `mask_uniform` (B,), and where not all pairs are masked `mask_pairs` (P,), bool.

    Args:
        records: Images with their captions, which are packed where they are not yet, so that worker processes share
            them.
        processor: Image processor and tokenizer.
        seed: Seed of everything drawn.
        num_positive: Texts per image taken from its captions (paper, section 4.1: 2).
        num_negative: Texts per image taken from other images (paper: 2).
        hard_negative_share: Each of these is a foil of a text of the sample with this probability, where one can be
            made, see `Foils`.
        hard_negatives_from_epoch: From this epoch on; earlier ones have none.
        replace_probability: With it each text taken from the captions is replaced by one of another image, see
            `PairSampler.replacement`; needs `caption_groups` and no `num_negative`.
        epoch: What an epoch holds: "images", each once; "captions", divided at random in each epoch; or
            "caption_groups", captions divided once and for all.
        max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
        masking: How tokens are masked: keywords of `mask_tokens`, its `probability` and those after it.
        predict_unmatched: Whether masked tokens have labels in texts of other images too.
        mvm_probability: Each text is read with masked visual tokens with this probability.
        unmask_from_epoch: From this epoch on such texts have no masked words; `None`: words are masked in all.
    """

    records: InitVar[Sequence[ImageTextRecord] | RecordTable]
    processor: SohoProcessor
    _: KW_ONLY
    seed: int = 0
    num_positive: int = 2
    num_negative: int = 2
    hard_negative_share: float = 0.0
    hard_negatives_from_epoch: int = 0
    replace_probability: float = 0.0
    epoch: Epoch = "images"
    max_text_length: int = 32
    masking: Mapping[str, Any] = field(default_factory=dict)
    predict_unmatched: bool = False
    mvm_probability: float = 1.0
    unmask_from_epoch: int | None = None

    def __post_init__(self, records: Sequence[ImageTextRecord] | RecordTable) -> None:
        self._table = records if isinstance(records, RecordTable) else RecordTable(records)
        self._pairs = PairSampler(
            self._table.texts,
            self._table.sources(),
            negatives=self.num_negative > 0,
            replacing_groups_of=self.num_positive if self.replace_probability else 0,
        )
        self._foils = Foils(self._table.texts.flat) if self.hard_negative_share else None
        counts_I = self._table.texts.counts()
        # Rounded up: the last sample of an image may hold fewer captions of its own, and is filled.
        num_samples_I = np.ones_like(counts_I) if self.epoch == "images" else -(-counts_I // self.num_positive)
        super().__init__(Images(self._table, self.processor), num_samples_I)
        tokenizer = self.processor.tokenizer
        self._mask: Callable[..., tuple[np.ndarray, np.ndarray]] = partial(
            mask_tokens,
            mask_token_id=tokenizer.mask_token_id,
            vocab_size=len(tokenizer),
            special_ids=frozenset(tokenizer.all_special_ids),
            **self.masking,
        )

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)}")
        image, number = self.part(index)
        sample = Sample([self._table.sample_id(image)], [image])
        if not self.images.read_into(sample):
            return sample
        rng = np.random.default_rng([SAMPLE_STREAM, self.seed, self._epoch, index])
        # By this number the model picks the code whose tokens it masks (`ops.sample_group`), the same on any rank.
        # The order of the draws is part of the data: another one makes other samples.
        sample.image_fields["mask_uniform"] = float(rng.random())
        texts = self._captions(image, number, rng)
        # Positives stand first, negatives behind them.
        matched = np.arange(len(texts) + self.num_negative) < self.num_positive
        if self.replace_probability:
            matched = rng.random(len(texts)) >= self.replace_probability
            for replaced in np.flatnonzero(~matched):
                texts[replaced] = self._pairs.replacement(image, rng)
        texts += self._negatives(image, texts, rng)
        encoded = [encode_text(self.processor.tokenizer, text, self.max_text_length) for text in texts]
        # Masked even where the masks are left out below: what is drawn next does not depend on that.
        masked = [self._mask(text, rng) for text in encoded]
        # All texts are masked alike, or a [MASK] would tell which ones match.
        nothing = np.full(0, IGNORED_LABEL)
        if self.mvm_probability < 1:
            sample.text_fields["mask_pairs"] = mask_pairs = rng.random(len(texts)) < self.mvm_probability
            if self.unmask_from_epoch is not None and self._epoch >= self.unmask_from_epoch:
                masked = [
                    (text.ids, nothing) if is_masked else each
                    for text, each, is_masked in zip(encoded, masked, mask_pairs, strict=True)
                ]
        sample.texts_ids = [ids for ids, _ in masked]
        sample.text_fields["itm_labels"] = matched.astype(np.int64)
        sample.token_labels["mlm_labels"] = [
            labels if own or self.predict_unmatched else nothing
            for own, (_, labels) in zip(matched, masked, strict=True)
        ]
        return sample

    def _captions(self, image: int, number: int, rng: np.random.Generator) -> list[str]:
        if self.epoch == "images":
            return self._pairs.positives(image, self.num_positive, rng)
        if self.epoch == "caption_groups":
            # By the image alone: a group has the same captions in every epoch.
            once_for_all = np.random.default_rng([CAPTION_STREAM, self.seed, image])
            return self._pairs.fixed_group(image, number, self.num_positive, once_for_all)
        # By the image, not the sample: all samples of an image divide its captions alike, and each comes in one.
        of_image = np.random.default_rng([CAPTION_STREAM, self.seed, self._epoch, image])
        return self._pairs.group(image, number, self.num_positive, of_image)

    def _negatives(self, image: int, texts: Sequence[str], rng: np.random.Generator) -> list[str]:
        """What does not describe an image that is read with these texts."""
        if self._foils is None or self._epoch < self.hard_negatives_from_epoch:
            return self._pairs.negatives(image, self.num_negative, rng)
        own = self._table.texts.all(image)
        hard = rng.random(self.num_negative) < self.hard_negative_share
        # Of each text in turn.
        found = [
            self._foils.make(texts[number % len(texts)], own, rng) if is_hard else None
            for number, is_hard in enumerate(hard)
        ]
        foils = [foil.text for foil in found if foil is not None]
        return foils + self._pairs.negatives(image, self.num_negative - len(foils), rng)
