"""Fine-tuning and evaluation examples: texts about one image or two, an image decoded and encoded once for its texts.

Shapes: E examples, I images, G groups (examples about the same image or pair), B images of a batch, P texts of a
batch, N images of an example (1, or 2 in NLVR2), S tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from soho_fast.data.images import BrokenImageError
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.records import ImageRef
from soho_fast.data.sampling import SAMPLE_STREAM
from soho_fast.data.text import PackedTexts, encode_texts
from soho_fast.data.batches.pretraining import pad_texts
from soho_fast.evaluation.sharing import fingerprint

# Pixels of an image that shows nothing, before normalisation: ImageNet's mean colour, which becomes about zero.
_BLANK_COLOUR = (124, 116, 104)
_BLANK_EDGE = 32


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
        number_of: dict[int, int] = {}
        self.images: list[ImageRef] = []
        self.image_EN = np.empty((len(texts), len(images[0])), dtype=np.int64)
        for row, refs in enumerate(images):
            for column, ref in enumerate(refs):
                number = number_of.setdefault(id(ref), len(self.images))
                if number == len(self.images):
                    self.images.append(ref)
                self.image_EN[row, column] = number
        self.texts = PackedTexts([[text] for text in texts])
        self.targets = targets
        _, group_E = np.unique(self.image_EN, axis=0, return_inverse=True)
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
        """What tells these images and texts, in this order, from others."""
        images = (str(self.images[number]) for number in self.image_EN.flat)
        return fingerprint(images, (self.text(row) for row in range(len(self))))


@dataclass(slots=True)
class DownstreamSample:
    """Some examples about the same image or images. `broken` holds the reason when an image can't be used."""

    rows: np.ndarray
    image_numbers: np.ndarray
    broken: str | None = None
    pixels: list[torch.Tensor] = field(default_factory=list)
    texts_ids: list[np.ndarray] = field(default_factory=list)


class DownstreamDataset(Dataset[DownstreamSample]):
    """Samples of at most `texts_per_sample` examples of a group, all examples in each epoch.

    A sample depends on (seed, epoch, index) only. With one text a sample is an example, as in the paper; with more, an
    image is decoded and encoded once for them, and which texts come together is drawn anew in each epoch.

    Args:
        examples: The split.
        processor: Image processor and tokenizer.
        seed: Seed of everything drawn.
        texts_per_sample: Largest number of examples in a sample.
        max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
        blank_images: Give an image that shows nothing in place of each: what remains is the text.
    """

    def __init__(
        self,
        examples: Examples,
        processor: SohoProcessor,
        *,
        seed: int,
        texts_per_sample: int,
        max_text_length: int,
        blank_images: bool,
    ) -> None:
        if texts_per_sample < 1:
            raise ValueError(f"data.texts_per_image: expected at least 1, got {texts_per_sample}")
        self.examples, self.processor, self.seed = examples, processor, seed
        self.max_text_length, self.blank_images = max_text_length, blank_images
        num_parts_G = [-(-len(rows) // texts_per_sample) for rows in examples.groups]
        self._group = np.repeat(np.arange(len(num_parts_G)), num_parts_G)
        self._part = np.concatenate([np.arange(count) for count in num_parts_G])
        self._num_parts_G = num_parts_G
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._group)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the samples asked for from here on, in this process."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> DownstreamSample:
        group = self._group[index]
        rows = self.examples.groups[group]
        if self._num_parts_G[group] > 1:
            rng = np.random.default_rng([SAMPLE_STREAM, self.seed, self._epoch, group])
            rows = np.array_split(rng.permutation(rows), self._num_parts_G[group])[self._part[index]]
        return load_sample(self.examples, rows, self.processor, self.max_text_length, self.blank_images)


def load_sample(
    examples: Examples, rows: np.ndarray, processor: SohoProcessor, max_text_length: int, blank_images: bool
) -> DownstreamSample:
    """Read the images and texts of examples of one group."""
    numbers = examples.image_EN[rows[0]]
    sample = DownstreamSample(rows, numbers)
    try:
        sample.pixels = [
            blank_image() if blank_images else processor.image_processor.load(examples.images[number])
            for number in numbers
        ]
    except BrokenImageError as error:
        sample.broken = str(error)
        return sample
    texts = [examples.text(row) for row in rows]
    sample.texts_ids = [text.ids for text in encode_texts(processor.tokenizer, texts, max_text_length)]
    return sample


def blank_image() -> torch.Tensor:
    """A small uint8 image (3, height, width) that shows nothing, the same for all."""
    return torch.tensor(_BLANK_COLOUR, dtype=torch.uint8).view(3, 1, 1).expand(3, _BLANK_EDGE, _BLANK_EDGE)


class DownstreamCollator:
    """Batches samples into the keywords of the model's forward, plus "skipped" and "sample_ids".

    The keywords: `pixel_values` (B, 3, H, W) float32 and `pixel_mask` (B, H, W) bool, each image once; int64
    `input_ids` and `attention_mask` (P, S); int64 `image_index` (P,), or (P, 2) with two images an example; and the
    targets, as `targets_of` makes them of the examples' own.
    """

    def __init__(
        self, examples: Examples, processor: SohoProcessor, targets_of: Callable[[torch.Tensor], Mapping[str, Any]]
    ) -> None:
        self.targets, self.processor, self.targets_of = examples.targets, processor, targets_of

    def __call__(self, samples: Sequence[DownstreamSample]) -> dict[str, Any]:
        """Batch the samples.

        Raises:
            BrokenImageError: No sample of the batch can be used; the message lists them.
        """
        skipped = [sample.broken for sample in samples if sample.broken is not None]
        usable = [sample for sample in samples if sample.broken is None]
        if not usable:
            raise BrokenImageError(f"all {len(samples)} images of a batch are broken:\n  " + "\n  ".join(skipped))
        place_of: dict[int, int] = {}
        pixels = []
        for sample in usable:
            for number, image in zip(sample.image_numbers, sample.pixels, strict=True):
                if number not in place_of:
                    place_of[number] = len(pixels)
                    pixels.append(image)
        index = [[place_of[number] for number in sample.image_numbers] for sample in usable for _ in sample.rows]
        index_PN = torch.tensor(index)
        rows = np.concatenate([sample.rows for sample in usable])
        texts_ids = [ids for sample in usable for ids in sample.texts_ids]
        return {
            **self.processor.image_processor.collate(pixels),
            **pad_texts(texts_ids, self.processor.tokenizer.pad_token_id),
            "image_index": index_PN.squeeze(1),
            **self.targets_of(torch.from_numpy(self.targets[rows])),
            "skipped": skipped,
            "sample_ids": rows.tolist(),
        }
