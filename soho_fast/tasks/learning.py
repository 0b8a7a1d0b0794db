"""What a task learns from: words, images, training samples, and what of them is compared when a run is resumed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from soho_fast.common.errors import print_line
from soho_fast.common.processes import Processes
from soho_fast.data.batches.sample import Sample, usable_samples
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.overlap import in_words
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.text import describe_fit, load_tokenizer
from soho_fast.engine.changes import TaskIdentity
from soho_fast.model.visual_encoder import pad_features
from soho_fast.tasks import describe
from soho_fast.tasks.contents import output_identity, weights_identity, words_identity
from soho_fast.tasks.identity import FIXED, NOT_COMPARED, PLACES


class LearningTask(ABC):
    """The data of a task; nothing is read before it is needed.

    Args:
        data: What to train and to evaluate on, and how examples are made.
        seed: Seed of everything drawn from the data.
        model: The model and its starting weights.
        say: Called with each line of what was found.
    """

    name: ClassVar[str]
    """The task's name in recipes."""
    logged: tuple[str, ...] = ()
    """Names of the output's scalars to log beside the loss; those of added losses come behind."""
    workers: int = 0
    """Loader processes for each process that evaluates; 0 reads in these."""
    processes: Processes = Processes()
    """Those that read training data together."""

    def __init__(self, data: Any, seed: int = 0, model: Any = None, *, say: Callable[[str], None] = print_line) -> None:
        self.data, self.seed, self._say = data, seed, say
        self.model = model or describe(type(self)).model_type()
        # On the instance: the class keeps its own, against which `added_losses` checks names.
        self.logged = (*self.logged, *self.model.losses)

    @cached_property
    def processor(self) -> SohoProcessor:
        """Image processor and tokenizer."""
        raise NotImplementedError

    def load_processor(self, tokenizer: Any) -> SohoProcessor:
        """The image processor of the settings, with a tokenizer."""
        size = {"shortest_edge": self.data.shorter_edge, "longest_edge": self.data.longer_edge}
        return SohoProcessor(SohoImageProcessor(size=size, antialias=self.data.antialias), tokenizer)

    def check_words(self, pretrained: str) -> None:
        """Raises ValueError: `data.tokenizer` has other words than a pre-trained model has learnt."""
        there, here = (load_tokenizer(name).get_vocab() for name in (pretrained, self.data.tokenizer))
        if there != here:
            raise ValueError(
                f"data.tokenizer: {self.data.tokenizer} has other words ({len(here)}) than the pre-trained model "
                f"{pretrained} ({len(there)}) has learnt; give {pretrained} here too, or to fine-tune null"
            )

    def say_fit(self, texts: Sequence[str]) -> None:
        """Say what the tokenizer does not know of the texts to train on, and whether they are cut."""
        for line in describe_fit(self.processor.tokenizer, texts).warnings(self.data.max_text_length):
            self._say(line)

    def refuse_shared(self, trained: str, held_out: str, shared: Sequence[tuple[ImageRef, ImageRef]]) -> None:
        """Raises ValueError: there are images that both hold, as `shared_images` gives them."""
        if shared:
            raise ValueError(
                f"data: {len(shared)} images are both in {trained} and in {held_out}, as {in_words(shared)[0]}; "
                "held-out images must not be trained on: leave them out of one of the two"
            )

    @abstractmethod
    def num_trained_on(self, split: str, data: Any, seed: int) -> int:
        """How many images of a split are trained on, under whatever name.

        Args:
            split: The split.
            data: Those settings of the recipe that the model was trained by.
            seed: Its seed.

        Raises:
            ValueError, OSError: what is trained on can't be read.
        """

    @abstractmethod
    def num_missing(self) -> dict[str, int]:
        """How many images of what was read have no file, by name; those that lack none are left out."""

    @property
    @abstractmethod
    def _training_data(self) -> Any:
        """The training samples, made at the first use: says what they hold, refuses what can't be trained on."""

    def training_data(self) -> Any:
        """The training samples: `len`, `[index]`, `set_epoch`."""
        return self._training_data

    def collate_images(self, samples: list[Sample]) -> Mapping[str, Any]:
        """Samples of one image each, of which some may be corrupt, to what `image_features` takes."""
        return self.processor.image_processor.collate_bytes([sample.pixels[0] for sample in usable_samples(samples)])

    def on_device(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Images come as bytes, and are normalised on the device."""
        return self.processor.image_processor.normalised(batch)

    def collate_features(self, features: list[torch.Tensor]) -> Mapping[str, Any]:
        """The features of a batch's images, as keywords of the model's forward."""
        features_BChw, mask_Bhw = pad_features(features)
        return {"backbone_features": features_BChw, "backbone_mask": mask_Bhw}

    @property
    def identity(self) -> TaskIdentity:
        """What is compared when a run is resumed."""
        return TaskIdentity(NOT_COMPARED, PLACES, FIXED, self.contents)

    def contents(self) -> dict[str, Any]:
        """What is trained beyond the recipe's fields: contents of what its paths name."""
        return {
            "data.tokenizer": words_identity(self.processor.tokenizer),
            "tokenizer's output": output_identity(self.processor.tokenizer),
            "model.text_encoder": weights_identity(self.model.text_encoder),
            "model.pretrained": weights_identity(self.model.pretrained),
            "model.backbone": weights_identity(self.model.backbone),
        }
