"""The images of a task's data sets, looked up in a model's dictionary.

B images of a batch, L tokens of an image, C channels, Q levels, h x w patches of a batch's grid.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from soho_fast.common.errors import UserError
from soho_fast.common.extras import from_extra
from soho_fast.common.spelling import did_you_mean
from soho_fast.explore.gallery import draw
from soho_fast.explore.licences import Licences, licence_finder
from soho_fast.explore.sources import LONGER_EDGE, ImageError, SeenImage, by_level, small_copy

with from_extra("train"):
    from PIL import Image

    from soho_fast.common.errors import CorruptImageError
    from soho_fast.common.workers import loaded_ahead
    from soho_fast.data.images import decode_image
    from soho_fast.data.readers.records import ImageRef
    from soho_fast.model import SohoForPreTraining
    from soho_fast.tasks.answering import AnsweringTask
    from soho_fast.tasks.base import BaseTask
    from soho_fast.tasks.evaluation.computing import Computing
    from soho_fast.tasks.fine_tuning import FineTuningTask
    from soho_fast.tasks.pretraining import HELDOUT, PretrainingTask, read_sources

TRAINING = "training"
"""What pre-training's images that are not held out are called as a split."""
_GUESSES = 5
# Small batches are fastest on a CPU, where a batch's activations stay in its caches.
_CPU_BATCH = 16


@dataclass(slots=True)
class DataImage:
    """An image of the data sets: where it is, its data set by name, whether pre-training holds it out, and its texts,
    each once."""

    ref: ImageRef
    data_set: str
    held_out: bool = False
    captions: list[str] = field(default_factory=list)


@dataclass
class ImageBatch:
    """Some images and their features, as the dictionary gets them.

    images: those that could be read, B. features: (B, L, C) on the device, L = h * w. valid: bool (B, h, w), False at
    padding. patches: each image's height and width in patches, fractions included. index: int64 (Q, B, h, w) of Q
    levels, -1 at padding. distance: (Q, B, h, w).
    """

    places: list[int]
    images: list[DataImage]
    features: torch.Tensor
    valid: torch.Tensor
    patches: list[tuple[float, float]]
    index: torch.Tensor
    distance: torch.Tensor


class TaskImages:
    """The images of a task's splits, each once, with all its texts.

    Args:
        task: Reads them.
        splits: Names of splits; all of the task when empty.
        most: So many of them, evenly spread; 0 takes all.
        licence: What holds for all of them; None looks for licences.json beside them.

    Attributes:
        images: In the order of the splits.
        data_sets: Their names.
        licences: Entries of meta's licences, and which hold for each image.
    """

    def __init__(
        self, task: BaseTask, splits: Sequence[str] = (), *, most: int = 0, licence: str | None = None
    ) -> None:
        found: dict[str, DataImage] = {}
        for name, held_out, records in records_of(task, splits):
            for record in records:
                refs, texts = shown_of(task, record)
                for ref in refs:
                    image = found.setdefault(str(ref), DataImage(ref, name or record.source, held_out))
                    # An image that many records are about has all their texts.
                    image.captions += [text for text in texts if text not in image.captions]
        self.images = list(found.values())
        if most and most < len(self.images):
            places = np.unique(np.round(np.linspace(0, len(self.images) - 1, most)).astype(np.int64))
            self.images = [self.images[place] for place in places]
        self.data_sets = list(dict.fromkeys(image.data_set for image in self.images))
        self.licences = Licences()
        roots = {str(image.ref.store) for image in self.images}
        self._entries_of = {root: licence_finder(root, licence) for root in roots}

    def licences_of(self, image: DataImage) -> list[int]:
        """Numbers in `licences.entries`."""
        entries = self._entries_of[str(image.ref.store)](image.ref.name)
        return [self.licences.number(entry) for entry in entries]


def shown_of(task: BaseTask, record: Any) -> tuple[Sequence[ImageRef], Sequence[str]]:
    """The images of a record, and its texts: captions, or what is asked about the images."""
    refs = task.images_of(record) if isinstance(task, FineTuningTask) else (record.image,)
    return refs, [task.text_of(record)] if isinstance(task, AnsweringTask) else record.captions


def heldout_of(task: BaseTask) -> str:
    """The split by which a model is judged while it is trained."""
    return HELDOUT if isinstance(task, PretrainingTask) else task.data.validate or list(task.data.splits)[-1]


def records_of(task: BaseTask, splits: Sequence[str]) -> Iterator[tuple[str | None, bool, Sequence[Any]]]:
    """(name of the data set, whether pre-training holds them out, records); None where the records tell theirs."""
    known = [TRAINING, HELDOUT] if isinstance(task, PretrainingTask) else list(task.data.splits)
    for split in splits:
        if split not in known:
            raise UserError(f"split: expected some of {', '.join(known)}, got {split!r}{did_you_mean(split, known)}")
    for split in splits or known:
        if isinstance(task, FineTuningTask):
            yield split, False, task.records(split)
        elif split == TRAINING or task.data.heldout:
            part: Literal["sources", "heldout"] = "sources" if split == TRAINING else "heldout"
            for record in read_sources(task.data, part, task._say):
                held_out = split == HELDOUT
                yield f"{record.source}, held out" if held_out else None, held_out, [record]


class ModelSource:
    """A `Source` of a model with a dictionary, and the images of a task's data sets.

    Args:
        task: Whose processor is the model's.
        model: In evaluation mode, on its device.
        images: What is looked up.
        title, called: `title` and `model` of data/meta.js.
        say: Called with a line for each image that can't be read.

    Raises:
        UserError: the model has no dictionary.
    """

    def __init__(
        self, task: BaseTask, model: Any, images: TaskImages, *, title: str, called: str, say: Callable[[str], None]
    ) -> None:
        self.dictionary = model.base().visual_dictionary
        if self.dictionary is None:
            raise UserError(f"{called} has no visual dictionary (dictionary: none): there are no codes to show")
        self._task, self._model, self._images, self._say = task, model, images, say
        self._computing = Computing(model, task.precision)
        self.num_levels = self.dictionary.num_levels
        levels = [self.dictionary.codebook_of(level) for level in range(self.num_levels)]
        self.codebook = torch.cat(levels).float().cpu().numpy()
        self.num_codes = len(self.codebook)
        # A folder that is sent away does not tell where the model lies on this machine.
        self.title, self.model = title, "/".join(called.split(os.sep)[-2:]) if os.path.isabs(called) else called
        self.data_sets, self.licences = images.data_sets, images.licences.entries
        self.num_images = len(images.images)
        self._patch = model.config.token_stride

    def batches(self) -> Iterator[ImageBatch]:
        """The images in their order, looked up; those that can't be read are reported, and left out."""
        size = _CPU_BATCH if self._computing.device.type == "cpu" else self._task.image_batch
        places = [range(first, min(first + size, self.num_images)) for first in range(0, self.num_images, size)]
        pin = self._computing.device.type == "cuda"
        loads = loaded_ahead(self._load, places, workers=self._task.workers, pin=pin)
        # The loader processes end too where this generator is not read to its end.
        with contextlib.closing(loads):
            for readable, pixels, batch, corrupt in loads:
                for line in corrupt:
                    self._say(f"left out: {line}")
                if readable:
                    yield self._look_up(readable, pixels, batch)

    def _load(self, places: Sequence[int]) -> tuple[list[int], list[tuple[int, int]], Any, list[str]]:
        readable, pixels, corrupt = [], [], []
        processor = self._task.processor.image_processor
        for place in places:
            try:
                pixels.append(processor.load(self._images.images[place].ref))
                readable.append(place)
            except CorruptImageError as error:
                corrupt.append(str(error))
        batch = processor.collate_bytes(pixels) if pixels else None
        return readable, [tuple(each.shape[-2:]) for each in pixels], batch, corrupt

    @torch.no_grad()
    def _look_up(self, places: list[int], sizes: list[tuple[int, int]], batch: Mapping[str, Any]) -> ImageBatch:
        with self._computing():
            pixels = self._task.on_device(self._computing.on_device(batch))
            feat_BLC, valid_Bhw = self._model.base().encode_features(**pixels)
        codes_BLQ = self.dictionary.codes_of(feat_BLC)
        found = codes_BLQ, self.dictionary.distances(feat_BLC, codes_BLQ)
        # (B, L, Q) to (Q, B, h, w).
        index_QBhw, distance_QBhw = (each.movedim(-1, 0).reshape(-1, *valid_Bhw.shape) for each in found)
        index_QBhw = index_QBhw.masked_fill(~valid_Bhw, -1)
        patches = [(height / self._patch, width / self._patch) for height, width in sizes]
        images = [self._images.images[place] for place in places]
        return ImageBatch(places, images, feat_BLC, valid_Bhw, patches, index_QBhw, distance_QBhw)

    def images(self) -> Iterator[SeenImage]:
        for batch in self.batches():
            index_QBhw = batch.index.cpu().numpy().astype(np.int32)
            index_QBhw = by_level(index_QBhw, self.num_codes // self.num_levels)
            valid, distance_QBhw = batch.valid.cpu().numpy(), batch.distance.cpu().numpy()
            for number, (place, image) in enumerate(zip(batch.places, batch.images, strict=True)):
                rows, columns = int(valid[number].any(1).sum()), int(valid[number].any(0).sum())
                yield SeenImage(
                    index_QBhw[:, number, :rows, :columns],
                    distance_QBhw[:, number, :rows, :columns],
                    image.ref.name,
                    place,
                    image.captions,
                    self.data_sets.index(image.data_set),
                    self._images.licences_of(image),
                    *batch.patches[number],
                )

    def small_copy(self, place: int) -> tuple[bytes, int, int]:
        ref = self._images.images[place].ref
        try:
            pixels_3HW = decode_image(ref.read(), shorter_edge=LONGER_EDGE)
        except (OSError, ValueError) as error:
            raise ImageError(f"{ref}: {error}") from error
        return small_copy(Image.fromarray(pixels_3HW.permute(1, 2, 0).numpy()))

    @torch.no_grad()
    def masked(self, places: Sequence[int], captions: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """As in training one label of each image is masked, the same in every build."""
        if not isinstance(self._model, SohoForPreTraining) or not self._model.config.use_dictionary_output:
            return
        uniform_N = draw(np.asarray(places), np.zeros(len(places), dtype=np.int64)) / 2.0**64
        # The largest numbers round to 1, which is no share below it.
        uniform_N = np.minimum(uniform_N, np.nextafter(1.0, 0.0))
        for first in range(0, len(places), _CPU_BATCH):
            some = slice(first, first + _CPU_BATCH)
            found = self._guess(places[some], captions[some], torch.from_numpy(uniform_N[some]))
            yield from (found.get(place) for place in places[some])

    def _guess(
        self, places: Sequence[int], captions: Sequence[str], uniform_B: torch.Tensor
    ) -> dict[int, dict[str, Any]]:
        readable, _, batch, _ = self._load(places)
        if len(readable) < len(places):  # One can't be read any more.
            return {}
        longest = min(self._task.data.max_text_length, self._model.config.max_position_embeddings)
        options = {"padding": True, "truncation": True, "max_length": longest, "return_token_type_ids": False}
        texts = self._task.processor.tokenizer(list(captions), return_tensors="pt", **options)
        on_device, uniform_B = self._computing.on_device, uniform_B.to(self._computing.device)
        with self._computing():
            visual = self._model.encode_images(**self._task.on_device(on_device(batch)))
            output = self._model(visual_tokens=visual, mask_uniform=uniform_B, **on_device(texts))
            _, labels_BL = self._model.base().mask_one_label(visual, uniform_B)
        best = output.mvm_logits.float().softmax(-1).topk(min(_GUESSES, self._model.config.num_codes))
        image_M, place_M = (labels_BL != -100).nonzero(as_tuple=True)
        valid_Bhw = visual.valid.unflatten(1, (-1, visual.columns))
        found: dict[int, dict[str, Any]] = {}
        for image, token, codes, shares in zip(
            image_M.tolist(), place_M.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        ):
            columns = int(valid_Bhw[image].any(0).sum())
            entry = found.setdefault(readable[image], {"code": int(labels_BL[image, token]), "patches": []})
            guesses = [[code, float(f"{share:.3g}")] for code, share in zip(codes, shares, strict=True)]
            # From the batch's padded grid to the image's own.
            patch = token // visual.columns * columns + token % visual.columns
            entry["patches"].append({"patch": patch, "guesses": guesses})
        return found
