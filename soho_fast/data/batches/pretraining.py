"""Pre-training examples: each image with its positive and negative texts, all masked alike.

Shapes: B images, P texts of the batch (those of image 0 first, its positives before its negatives), S tokens of the
longest text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval
from torch.utils.data import Dataset

from soho_fast.data.images import BrokenImageError
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.records import ImageTextRecord
from soho_fast.data.sampling import SAMPLE_STREAM
from soho_fast.data.text import IGNORED_LABEL, EncodedText, encode_texts, mask_tokens
from soho_fast.data.batches.pair_sampling import PairSampler


@dataclass(frozen=True)
class TextMasking:
    """How words are masked for MLM.

    Args:
        probability: Share of tokens (of words with `whole_words`) chosen for prediction; BERT and the paper: 0.15.
        mask_share: Share of the chosen that become [MASK]; BERT: 0.8.
        random_share: Share of the chosen that become a random token; BERT: 0.1. The rest stays as it is.
        whole_words: Choose whole words: all pieces of a word are masked together.
        at_least_one: Choose one at random in a text in which chance chose none.
    """

    probability: ClosedUnitInterval = 0.15
    mask_share: ClosedUnitInterval = 0.8
    random_share: ClosedUnitInterval = 0.1
    whole_words: bool = False
    at_least_one: bool = False

    def __post_init__(self) -> None:
        for name in ("probability", "mask_share", "random_share"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"masking.{name}: expected a share between 0 and 1, got {value}")
        if self.mask_share + self.random_share > 1.0:
            raise ValueError(
                f"masking: mask_share + random_share is {self.mask_share + self.random_share}, expected at most 1"
            )


@dataclass(slots=True)
class PretrainingSample:
    """One image with its texts, before batching. `broken` holds the reason when the image can't be used."""

    sample_id: str
    broken: str | None = None
    pixels_3HW: torch.Tensor | None = None
    texts_ids: tuple[np.ndarray, ...] = ()
    texts_labels: tuple[np.ndarray, ...] = ()
    num_positive: int = 0
    mask_uniform: float = 0.0


class PretrainingDataset(Dataset[PretrainingSample]):
    """Samples that depend on (seed, epoch, index) only: not on the rank, the worker, or what was drawn before.

    Ask for an epoch's sample by `set_epoch`, then `dataset[index]`.
    """

    def __init__(
        self,
        records: Sequence[ImageTextRecord],
        processor: SohoProcessor,
        *,
        seed: int = 0,
        num_positive: int = 2,
        num_negative: int = 2,
        max_text_length: int = 32,
        masking: TextMasking | None = None,
    ) -> None:
        """Keep the records, packed so that worker processes share them.

        Args:
            records: Images with their captions.
            processor: Image processor and tokenizer.
            seed: Seed of everything drawn.
            num_positive: Texts per image taken from its captions (paper, section 4.1: 2).
            num_negative: Texts per image taken from other images (paper: 2).
            max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
            masking: How words are masked.
        """
        if num_positive < 1 or num_negative < 0:
            raise ValueError(f"expected num_positive >= 1 and num_negative >= 0, got {num_positive} and {num_negative}")
        if max_text_length < 3:
            raise ValueError(f"max_text_length: expected at least 3 ([CLS], a token, [SEP]), got {max_text_length}")
        if seed < 0:
            raise ValueError(f"seed: expected a non-negative integer, got {seed}")
        if not records:
            raise ValueError("records: the data set is empty; expected at least 2 images with captions")
        self.processor = processor
        self.seed = seed
        self.num_positive = num_positive
        self.num_negative = num_negative
        self.max_text_length = max_text_length
        self.masking = masking or TextMasking()
        self._images = [record.image for record in records]
        self._sample_ids = [f"{record.source}/{record.image_id}" for record in records]
        self._pairs = PairSampler([record.captions for record in records])
        self._special_ids = frozenset(processor.tokenizer.all_special_ids)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._images)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the samples asked for from here on, in this process (the engine's loaders tell each worker)."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> PretrainingSample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)}")
        sample = PretrainingSample(self._sample_ids[index])
        try:
            sample.pixels_3HW = self.processor.image_processor.load(self._images[index])
        except BrokenImageError as error:
            sample.broken = f"{sample.sample_id}: {error}"
            return sample
        rng = np.random.default_rng([SAMPLE_STREAM, self.seed, self._epoch, index])
        sample.mask_uniform = float(rng.random())
        texts = self._pairs.positives(index, self.num_positive, rng)
        texts += self._pairs.negatives(index, self.num_negative, rng)
        masked = [self._mask(text, rng) for text in encode_texts(self.processor.tokenizer, texts, self.max_text_length)]
        sample.texts_ids = tuple(ids for ids, _ in masked)
        sample.texts_labels = tuple(labels for _, labels in masked)
        sample.num_positive = self.num_positive
        return sample

    def _mask(self, text: EncodedText, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return mask_tokens(
            text,
            rng,
            mask_token_id=self.processor.tokenizer.mask_token_id,
            vocab_size=len(self.processor.tokenizer),
            special_ids=self._special_ids,
            probability=self.masking.probability,
            mask_share=self.masking.mask_share,
            random_share=self.masking.random_share,
            whole_words=self.masking.whole_words,
            at_least_one=self.masking.at_least_one,
        )


def pad_texts(texts_ids: Sequence[np.ndarray], pad_token_id: int, length: int | None = None) -> dict[str, torch.Tensor]:
    """Pad texts at the right to `length`, or to the longest.

    Returns:
        `input_ids` and `attention_mask` (1 on tokens), both int64 (P, S).
    """
    length = length or max(map(len, texts_ids))
    ids_PS = np.full((len(texts_ids), length), pad_token_id, dtype=np.int64)
    mask_PS = np.zeros((len(texts_ids), length), dtype=np.int64)
    for row, ids in enumerate(texts_ids):
        ids_PS[row, : len(ids)] = ids
        mask_PS[row, : len(ids)] = 1
    return {"input_ids": torch.from_numpy(ids_PS), "attention_mask": torch.from_numpy(mask_PS)}


class PretrainingCollator:
    """Batches samples into the keywords of the model's forward, plus "skipped" and "sample_ids".

    The keywords: `pixel_values` (B, 3, H, W) float32, `pixel_mask` (B, H, W) bool, int64 `input_ids`, `attention_mask`
    and `mlm_labels` (P, S; -100 outside, and everywhere on negatives), int64 `image_index` (P,) and `itm_labels` (P,;
    1 = matched), and `mask_uniform` (B,) float64. "skipped" lists the messages of broken images, which are left out;
    "sample_ids" names the B images that remain.
    """

    def __init__(self, processor: SohoProcessor, *, pad_text_to: int | None = None) -> None:
        """Take the processor.

        Args:
            processor: Image processor and tokenizer.
            pad_text_to: Pad every text to so many tokens (fixed shapes); None pads to the longest of the batch.
        """
        self.processor = processor
        self.pad_text_to = pad_text_to

    def __call__(self, samples: Sequence[PretrainingSample]) -> dict[str, torch.Tensor | list[str]]:
        """Batch the samples.

        Raises:
            BrokenImageError: Every image of the batch is broken; the message lists them.
        """
        skipped = [sample.broken for sample in samples if sample.broken is not None]
        usable = [sample for sample in samples if sample.broken is None]
        if not usable:
            raise BrokenImageError(f"all {len(samples)} images of a batch are broken:\n  " + "\n  ".join(skipped))
        texts_ids = [ids for sample in usable for ids in sample.texts_ids]
        texts = pad_texts(texts_ids, self.processor.tokenizer.pad_token_id, self.pad_text_to)
        counts = torch.tensor([len(sample.texts_ids) for sample in usable])
        image_index_P = torch.repeat_interleave(torch.arange(len(usable)), counts)
        itm_labels_P = torch.cat(
            [(torch.arange(len(sample.texts_ids)) < sample.num_positive).long() for sample in usable]
        )
        labels_PS = torch.full_like(texts["input_ids"], IGNORED_LABEL)
        for row, labels in enumerate(labels for sample in usable for labels in sample.texts_labels):
            if itm_labels_P[row]:
                labels_PS[row, : len(labels)] = torch.from_numpy(labels)
        return {
            **self.processor.image_processor.collate([sample.pixels_3HW for sample in usable]),
            **texts,
            "image_index": image_index_P,
            "mlm_labels": labels_PS,
            "itm_labels": itm_labels_P,
            "mask_uniform": torch.tensor([sample.mask_uniform for sample in usable], dtype=torch.float64),
            "skipped": skipped,
            "sample_ids": [sample.sample_id for sample in usable],
        }
