"""Retrieval samples: an image with one of its captions; in a batch every image is scored with every caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from soho_fast.data.batches.sample import SAMPLE_STREAM, Images, Sample, SampleDataset
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import ImageTextRecord
from soho_fast.data.text import PackedTexts, encode_texts


class RetrievalDataset(SampleDataset):
    """A sample is an image with one of its captions. An epoch holds every caption once, or every image once with a
    caption drawn by (seed, epoch, index) alone.

    Where chance brings two captions of an image into a batch, it holds the image once and both are right for it.

    Args:
        records: Images with their captions.
        processor: Image processor and tokenizer.
        seed: Seed of everything drawn.
        max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
        every_caption: Whether an epoch holds every caption, or every image once.

    Raises:
        ValueError: Nothing can be told apart: there is one image, or all captions are alike.
    """

    def __init__(
        self,
        records: Sequence[ImageTextRecord],
        processor: SohoProcessor,
        *,
        seed: int,
        max_text_length: int,
        every_caption: bool = False,
    ) -> None:
        first = records[0].captions[0]
        if len(records) < 2 or all(caption == first for record in records for caption in record.captions):
            raise ValueError(
                f"expected at least 2 images with different captions, got {len(records)} of which all captions are "
                f"{first!r:.100}"
            )
        self.processor, self.seed, self.max_text_length = processor, seed, max_text_length
        super().__init__(Images([record.image for record in records], processor))
        self._sample_ids = [f"{record.source}/{record.image_id}" for record in records]
        self._captions = PackedTexts([record.captions for record in records])
        num_samples_I = self._captions.counts() if every_caption else np.ones(len(records), np.int64)
        self._image_of = np.repeat(np.arange(len(records)), num_samples_I)
        self._first_of = np.cumsum(num_samples_I) - num_samples_I
        self.every_caption = every_caption

    def __len__(self) -> int:
        return len(self._image_of)

    def group_keys(self, progress: Callable[[int, int], None]) -> np.ndarray:
        """Shapes of the samples' images, float64 (samples,); see `Images.shapes`."""
        return self.images.shapes(progress)[self._image_of]

    def __getitem__(self, index: int) -> Sample:
        image = int(self._image_of[index])
        sample = Sample([self._sample_ids[image]], [image])
        if not self.images.read_into(sample):
            return sample
        if self.every_caption:
            number = index - int(self._first_of[image])
        else:
            rng = np.random.default_rng([SAMPLE_STREAM, self.seed, self._epoch, index])
            number = int(rng.integers(self._captions.count(image)))
        caption = self._captions.get(image, number)
        sample.texts_ids = [encode_texts(self.processor.tokenizer, [caption], self.max_text_length)[0].ids]
        return sample
