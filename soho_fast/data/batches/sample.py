"""A sample of any task, and the one collator that makes batches of them.

Shapes: B images of a batch, each once; P texts of a batch, in the order of the samples; N images of a sample (1, or 2
in NLVR2); S tokens of the longest text.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import Dataset

from soho_fast.common.errors import CorruptImageError
from soho_fast.data.images import shapes_of
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.text import IGNORED_LABEL

# First word of the entropy of each stream of random numbers, so that streams with the same (seed, epoch) differ. The
# engine's order of the samples is stream 1.
SAMPLE_STREAM = 2
EVALUATION_STREAM = 3
# 4 chooses the engine's stand-ins.
CAPTION_STREAM = 5

_NUM_SHOWN = 5


@dataclass(slots=True)
class Sample:
    """An image, or the two of a pair, with the texts that are read with it.

    Args:
        sample_ids: What the sample holds, for messages.
        image_keys: Identify its N images: images of one key are one in a batch.
        corrupt: The reason, when an image can't be used; what follows is then empty.
        pixels: The N images, uint8 (3, H, W); none where something else stands for them.
        texts_ids: int64 (tokens,) of each text.
        token_labels: int64 (tokens,) of each text by name, padded as the texts, with -100.
        text_fields: An array by name, with one row for each text.
        image_fields: A number by name, one for the sample; of samples of one image in a batch, the first one's.
    """

    sample_ids: Sequence[Any]
    image_keys: Sequence[int]
    corrupt: str | None = None
    pixels: Sequence[torch.Tensor] = ()
    texts_ids: Sequence[np.ndarray] = ()
    token_labels: dict[str, Sequence[np.ndarray]] = field(default_factory=dict)
    text_fields: dict[str, np.ndarray] = field(default_factory=dict)
    image_fields: dict[str, float] = field(default_factory=dict)


class Images(Dataset[Sample]):
    """The images of a data set by their numbers, which are its samples' `image_keys`; as a data set, one in a sample.

    Args:
        images: Where each image is.
        processor: Image processor.
    """

    def __init__(self, images: Sequence[ImageRef], processor: SohoProcessor) -> None:
        self._images, self._processor = images, processor
        self._corrupt: Mapping[int, str] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def set_epoch(self, epoch: int) -> None:
        """They are the same in every epoch."""

    def __getitem__(self, number: int) -> Sample:
        sample = Sample([number], [number])
        self.read_into(sample)
        return sample

    def without_pixels(self, corrupt: Mapping[int, str]) -> Self:
        """The same, but nothing is read: `pixels` stay empty. `corrupt` has the corrupt ones, and why."""
        images = copy.copy(self)
        images._corrupt = corrupt
        return images

    def shapes(self, progress: Callable[[int, int], None]) -> np.ndarray:
        """float64 (images,): see `shapes_of`."""
        return shapes_of(self._images, progress)

    def read_into(self, sample: Sample) -> bool:
        """Put a sample's images into it. False where one can't be read: `corrupt` then says which and why."""
        try:
            if self._corrupt is None:
                sample.pixels = [self._read(number) for number in sample.image_keys]
            else:
                for number in sample.image_keys:
                    if number in self._corrupt:
                        raise CorruptImageError(self._corrupt[number])
        except CorruptImageError as error:
            named = sample.sample_ids[0]  # the number of a row says nothing to a reader
            sample.corrupt = f"{named}: {error}" if isinstance(named, str) else str(error)
        return sample.corrupt is None

    def _read(self, number: int) -> torch.Tensor:
        return self._processor.image_processor.load(self._images[number])


class SampleDataset(Dataset[Sample]):
    """Samples of images that depend on (seed, epoch, index) only.

    Each is a part of a unit: of an image, or of a group of examples. Those of a unit follow each other.

    Args:
        images: The images, by the numbers that are a sample's `image_keys`.
        num_parts_U: Number of samples of each unit, int64 (units,).
    """

    def __init__(self, images: Images, num_parts_U: np.ndarray) -> None:
        self.images = images
        self._epoch = 0
        self._unit_of = np.repeat(np.arange(len(num_parts_U)), num_parts_U)
        self._first_of = np.cumsum(num_parts_U) - num_parts_U

    def __len__(self) -> int:
        return len(self._unit_of)

    def part(self, index: int) -> tuple[int, int]:
        """The unit of a sample, and which of its parts this is."""
        unit = int(self._unit_of[index])
        return unit, index - int(self._first_of[unit])

    def unit_shapes(self, progress: Callable[[int, int], None]) -> np.ndarray:
        """float64 (units,): see `Images.shapes`."""
        return self.images.shapes(progress)

    def group_keys(self, progress: Callable[[int, int], None]) -> np.ndarray:
        """Shapes of the samples' images, float64 (samples,)."""
        return self.unit_shapes(progress)[self._unit_of]

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the samples asked for from here on, in this process (the engine's loaders tell each worker)."""
        self._epoch = epoch

    def without_pixels(self, corrupt: Mapping[int, str]) -> Self:
        """The same samples, whose images are not read; see `Images.without_pixels`."""
        dataset = copy.copy(self)
        dataset.images = self.images.without_pixels(corrupt)
        return dataset


class Collator:
    """Batches samples into keywords of the models' forward, plus "skipped" and "sample_ids".

    The keywords: `pixel_values` (B, 3, H, W) uint8, of which the image processor's `normalised` makes floats on the
    device, `pixel_mask` (B, H, W) bool or, where nothing is padded, None (neither where the samples have no pixels),
    int64 `input_ids` and `attention_mask` (P, S), int64 `image_index` (P,) or, with two images a sample, (P, 2); token
    labels (P, S) under their names, and int64 (M,) where in the flattened table they are (`x_positions` of
    `x_labels`), so that the device need not be asked; text fields (P, ...) and image fields, float64 (B,). "skipped"
    lists the messages of corrupt images, whose samples are left out; "sample_ids" names what remains.

    Args:
        processor: Image processor and tokenizer.
    """

    def __init__(self, processor: SohoProcessor) -> None:
        self.processor = processor

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Batch the samples.

        Raises:
            CorruptImageError: No sample of the batch can be used; the message lists them.
        """
        skipped = [sample.corrupt for sample in samples if sample.corrupt is not None]
        usable = usable_samples(samples)
        images, image_index = collate_images(usable, self.processor)
        texts_ids = [ids for sample in usable for ids in sample.texts_ids]
        texts = pad_texts(texts_ids, self.processor.tokenizer.pad_token_id)
        # All samples of a task have the same names: the first one's are asked.
        labels = {
            name: pad_labels([row for sample in usable for row in sample.token_labels[name]], *texts["input_ids"].shape)
            for name in usable[0].token_labels
        }
        # Found here, on the CPU: on a GPU `nonzero` would make the host wait for the number of positions.
        positions = {
            f"{name.removesuffix('_labels')}_positions": (table_PS != IGNORED_LABEL).flatten().nonzero().squeeze(1)
            for name, table_PS in labels.items()
        }
        text_fields = {
            name: torch.from_numpy(np.concatenate([sample.text_fields[name] for sample in usable]))
            for name in usable[0].text_fields
        }
        first_of: dict[tuple[int, ...], Sample] = {}
        for sample in usable:
            # The order of `collate_images`: image fields have a row for each image of the batch.
            first_of.setdefault(tuple(sample.image_keys), sample)
        image_fields = {
            name: torch.from_numpy(np.array([sample.image_fields[name] for sample in first_of.values()], np.float64))
            for name in usable[0].image_fields
        }
        return {
            **images,
            **texts,
            "image_index": image_index,
            **labels,
            **positions,
            **text_fields,
            **image_fields,
            "skipped": skipped,
            "sample_ids": [identifier for sample in usable for identifier in sample.sample_ids],
        }


def usable_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Those that are not corrupt. Raises CorruptImageError: all are; the message lists them."""
    usable = [sample for sample in samples if sample.corrupt is None]
    if not usable:
        reasons = [sample.corrupt for sample in samples if sample.corrupt is not None]
        shown = "\n  ".join(reasons[:_NUM_SHOWN])
        raise CorruptImageError(f"all {len(samples)} images of a batch are corrupt; first:\n  {shown}")
    return usable


def collate_images(
    samples: Sequence[Sample], processor: SohoProcessor
) -> tuple[dict[str, torch.Tensor | None], torch.Tensor]:
    """The images of samples, each once, as `SohoImageProcessor.collate_bytes` gives them (nothing where the samples
    have no pixels); and int64 (P,) or (P, N), where those of each text are among them."""
    number_of: dict[int, int] = {}
    pixels: list[torch.Tensor] = []
    for sample in samples:
        for position, key in enumerate(sample.image_keys):
            if key not in number_of:
                number_of[key] = len(number_of)
                # A slice, which is empty where the samples have no pixels.
                pixels += sample.pixels[position : position + 1]
    images = processor.image_processor.collate_bytes(pixels) if pixels else {}
    index = [[number_of[key] for key in sample.image_keys] for sample in samples for _ in sample.texts_ids]
    # (P, 1) becomes (P,); (P, 2) of pairs stays.
    return images, torch.from_numpy(np.array(index)).squeeze(1)


def pad_texts(texts_ids: Sequence[np.ndarray | Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad texts at the right to the longest.

    Returns:
        `input_ids` and `attention_mask` (1 on tokens), both int64 (P, S).
    """
    length = max(map(len, texts_ids))
    is_token_PS = np.arange(length) < np.array([[len(ids)] for ids in texts_ids])
    input_ids_PS = pad_labels(texts_ids, len(texts_ids), length, pad_token_id)
    return {"input_ids": input_ids_PS, "attention_mask": torch.from_numpy(is_token_PS.astype(np.int64))}


def pad_labels(
    labels: Sequence[np.ndarray | Sequence[int]], num_texts: int, length: int, fill: int = IGNORED_LABEL
) -> torch.Tensor:
    """Labels of tokens, int64 (P, S), padded at the right by -100: nothing is to be predicted there."""
    labels_PS = np.full((num_texts, length), fill, dtype=np.int64)
    for row, own in enumerate(labels):
        labels_PS[row, : len(own)] = own
    return torch.from_numpy(labels_PS)
