"""Retrieval examples: t images, each with one of its captions; every image is then scored with every caption.

Shapes: B images of a batch, one text each; S tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from soho_fast.data.images import BrokenImageError
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.records import ImageTextRecord
from soho_fast.data.sampling import SAMPLE_STREAM
from soho_fast.data.text import PackedTexts, encode_texts
from soho_fast.data.batches.pretraining import pad_texts


@dataclass(slots=True)
class RetrievalSample:
    """An image and a caption. `broken` holds the reason when the image can't be used."""

    sample_id: str
    broken: str | None = None
    pixels_3HW: torch.Tensor | None = None
    ids: np.ndarray | None = None


class RetrievalDataset(Dataset[RetrievalSample]):
    """A sample is an image with one caption, drawn by (seed, epoch, index) alone: no batch holds an image twice.

    Args:
        records: Images with their captions.
        processor: Image processor and tokenizer.
        seed: Seed of everything drawn.
        max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
    """

    def __init__(
        self, records: Sequence[ImageTextRecord], processor: SohoProcessor, *, seed: int, max_text_length: int
    ) -> None:
        self.processor, self.seed, self.max_text_length = processor, seed, max_text_length
        self._images = [record.image for record in records]
        self._sample_ids = [f"{record.source}/{record.image_id}" for record in records]
        self._captions = PackedTexts([record.captions for record in records])
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._images)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the samples asked for from here on, in this process."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> RetrievalSample:
        sample = RetrievalSample(self._sample_ids[index])
        try:
            sample.pixels_3HW = self.processor.image_processor.load(self._images[index])
        except BrokenImageError as error:
            sample.broken = f"{sample.sample_id}: {error}"
            return sample
        rng = np.random.default_rng([SAMPLE_STREAM, self.seed, self._epoch, index])
        caption = self._captions.get(index, int(rng.integers(self._captions.count(index))))
        sample.ids = encode_texts(self.processor.tokenizer, [caption], self.max_text_length)[0].ids
        return sample


def collate_retrieval(samples: Sequence[RetrievalSample], processor: SohoProcessor) -> dict[str, Any]:
    """The keywords of the model's forward, with "skipped" and "sample_ids".

    `pixel_values` (B, 3, H, W) float32, `pixel_mask` (B, H, W) bool, int64 `input_ids` and `attention_mask` (B, S), and
    `own_image` (B,): 0, 1, ..., by which the model scores all B x B pairs.

    Raises:
        BrokenImageError: Every image of the batch is broken; the message lists them.
    """
    skipped = [sample.broken for sample in samples if sample.broken is not None]
    usable = [sample for sample in samples if sample.broken is None]
    if not usable:
        raise BrokenImageError(f"all {len(samples)} images of a batch are broken:\n  " + "\n  ".join(skipped))
    return {
        **processor.image_processor.collate([sample.pixels_3HW for sample in usable]),
        **pad_texts([sample.ids for sample in usable], processor.tokenizer.pad_token_id),
        "own_image": torch.arange(len(usable)),
        "skipped": skipped,
        "sample_ids": [sample.sample_id for sample in usable],
    }
