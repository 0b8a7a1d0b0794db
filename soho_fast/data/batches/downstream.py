"""Fine-tuning and evaluation examples: texts about one image or two, an image decoded and encoded once for its texts;
and retrieval samples: an image with one of its captions, where in a batch every image is scored with every caption.

Shapes: E examples, I images, G groups (examples about the same image or pair), N images of an example (1, or 2 in
NLVR2).
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass

import numpy as np

from soho_fast.data.batches.record_table import numbered
from soho_fast.data.batches.sample import SAMPLE_STREAM, Images, Sample, SampleDataset
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import ImageRef, ImageTextRecord, fingerprint
from soho_fast.data.text import PackedTexts, encode_texts


class Examples:
    """A split, packed so that worker processes share it: its images, each once, and its examples in groups.

    Args:
        images: N images for each example, in the model's order; N the same for all.
        texts: The text of each example.
        targets: int64 (E, ...), what is asked; None where it is not known.
    """

    def __init__(
        self, images: Sequence[tuple[ImageRef, ...]], texts: Sequence[str], targets: np.ndarray | None
    ) -> None:
        # Readers give one object to all records of an image.
        self.images, numbers = numbered([ref for refs in images for ref in refs], id)
        self.image_EN = numbers.reshape(len(texts), -1).astype(np.int64)
        self.texts = PackedTexts([[text] for text in texts])
        self.targets = targets
        _, group_E = np.unique(self.image_EN, axis=0, return_inverse=True)
        # Stable: within a group the examples stay in the order of the file, and the first row is the lowest.
        order_E = np.argsort(group_E, kind="stable")
        self.groups = np.split(order_E, np.flatnonzero(np.diff(group_E[order_E])) + 1)
        # Groups in the order of their first example: that of the file.
        self.groups.sort(key=lambda rows: rows[0])

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, row: int) -> str:
        """The text of an example."""
        return self.texts.get(row, 0)

    def fingerprint(self) -> str:
        """A hash of these images and texts in this order."""
        images = (self.images[number].name for number in self.image_EN.flat)
        return fingerprint(images, (self.text(row) for row in range(len(self))))


@dataclass(eq=False, repr=False)
class DownstreamDataset(SampleDataset):
    """Samples of at most `texts_per_sample` examples of a group, all examples in each epoch.

    A sample depends on (seed, epoch, index) only. With one text a sample is an example, as in the paper; with more, an
    image is decoded and encoded once for them, and which texts come together is drawn in each epoch.

    Args:
        examples: The split.
        processor: Image processor and tokenizer.
        seed: Seed of everything drawn.
        texts_per_sample: Largest number of examples in a sample.
        max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
    """

    examples: Examples
    processor: SohoProcessor
    _: KW_ONLY
    seed: int
    texts_per_sample: int
    max_text_length: int

    def __post_init__(self) -> None:
        self._num_parts_G = np.array([-(-len(rows) // self.texts_per_sample) for rows in self.examples.groups])
        super().__init__(Images(self.examples.images, self.processor), self._num_parts_G)

    def unit_shapes(self, progress: Callable[[int, int], None]) -> np.ndarray:
        """float64 (groups,), of a pair the mean; see `Images.shapes`."""
        shapes_I = self.images.shapes(progress)
        return np.array([shapes_I[self.examples.image_EN[rows[0]]].mean() for rows in self.examples.groups])

    def __getitem__(self, index: int) -> Sample:
        group, part = self.part(index)
        rows = self.examples.groups[group]
        if self._num_parts_G[group] > 1:
            # By the group: its samples divide one permutation, so that each example is in one of them.
            rng = np.random.default_rng([SAMPLE_STREAM, self.seed, self._epoch, group])
            rows = np.array_split(rng.permutation(rows), self._num_parts_G[group])[part]
        return load_sample(self.examples, rows, self.images, self.processor, self.max_text_length)


def load_sample(
    examples: Examples, rows: np.ndarray, images: Images, processor: SohoProcessor, max_text_length: int
) -> Sample:
    """Read the images and texts of examples of one group."""
    sample = Sample(rows.tolist(), examples.image_EN[rows[0]].tolist())
    if not images.read_into(sample):
        return sample
    texts = [examples.text(row) for row in rows]
    sample.texts_ids = [text.ids for text in encode_texts(processor.tokenizer, texts, max_text_length)]
    if examples.targets is not None:
        sample.text_fields["targets"] = examples.targets[rows]
    return sample


@dataclass(eq=False, repr=False)
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
        ValueError: There is nothing to distinguish: there is one image, or all captions are alike.
    """

    records: InitVar[Sequence[ImageTextRecord]]
    processor: SohoProcessor
    _: KW_ONLY
    seed: int
    max_text_length: int
    every_caption: bool = False

    def __post_init__(self, records: Sequence[ImageTextRecord]) -> None:
        first = records[0].captions[0]
        if len(records) < 2 or all(caption == first for record in records for caption in record.captions):
            raise ValueError(
                f"data.train: expected at least 2 images with different captions, got {len(records)} of which all "
                f"captions are {first!r:.100}"
            )
        self._sample_ids = [f"{record.source}/{record.image_id}" for record in records]
        self._captions = PackedTexts([record.captions for record in records])
        counts_I = self._captions.counts()
        num_samples_I = counts_I if self.every_caption else np.ones_like(counts_I)
        super().__init__(Images([record.image for record in records], self.processor), num_samples_I)

    def __getitem__(self, index: int) -> Sample:
        image, number = self.part(index)
        sample = Sample([self._sample_ids[image]], [image])
        if not self.images.read_into(sample):
            return sample
        if not self.every_caption:
            rng = np.random.default_rng([SAMPLE_STREAM, self.seed, self._epoch, index])
            number = int(rng.integers(self._captions.count(image)))
        captions = [self._captions.get(image, number)]
        sample.texts_ids = [encode_texts(self.processor.tokenizer, captions, self.max_text_length)[0].ids]
        return sample
