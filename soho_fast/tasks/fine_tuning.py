"""What all fine-tuning tasks share: splits, the processor, starting weights, loading and writing a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import nn

from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.records import ImageRef, ReadReport
from soho_fast.data.text import load_tokenizer
from soho_fast.model import SohoConfig
from soho_fast.model.downstream import SohoDownstreamModel
from soho_fast.tasks.measure_table import MeasureTable
from soho_fast.tasks.pretraining_settings import TextLength
from soho_fast.evaluation.sharing import Processes, Progress


@dataclass
class FineTuningData:
    """Splits, and how images and texts are read.

    Args:
        train: Names of the splits to train on.
        validate: Name of the split to measure on while training, and by which the best model is chosen.
        tokenizer: Directory of a BERT tokenizer, or its name on the hub; null takes that of the pre-trained model.
        shorter_edge: Images are resized so that the shorter edge has so many pixels (paper: 600).
        longer_edge: The longer edge has at most so many pixels (paper: 1000).
        pad_to_multiple: Height and width of a batch are padded to a multiple of this.
        max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
        missing_images: error refuses a split with missing image files; skip leaves their examples out and counts them.
        quick_images: Images (in NLVR2 pairs) measured in a quick evaluation.
        image_batch: Images (pairs) encoded at a time when measuring.
    """

    train: list[str] = field(default_factory=lambda: ["train"])
    validate: str = "val"
    tokenizer: str | None = None
    shorter_edge: PositiveInt = 600
    longer_edge: PositiveInt = 1000
    pad_to_multiple: PositiveInt = 32
    max_text_length: TextLength = 32
    missing_images: Literal["error", "skip"] = "error"
    quick_images: PositiveInt = 128
    image_batch: PositiveInt = 32


@dataclass
class DownstreamModel:
    """The model and its starting weights.

    Args:
        pretrained: Folder of a pre-trained model (a run's `model`), or its name on the hub; null starts from scratch,
            that is from `preset`, `text_encoder` and `backbone`.
        use_dictionary_output: Feed the dictionary's output to the Transformer; false feeds its input features, which
            the paper found better in fine-tuning.
        config: Fields of SohoConfig to replace, by name, in the preset or in the pre-trained model's own.
        preset: Values to start from without a pre-trained model; see SohoConfig.
        text_encoder: Without a pre-trained model: a directory with a BERT, or its name on the hub, for the word
            embeddings and the Transformer; null starts from random values.
        backbone: Without a pre-trained model: imagenet, or a file of the backbone's weights; null starts from random
            values.
    """

    pretrained: str | None = None
    use_dictionary_output: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    preset: str = "paper"
    text_encoder: str | None = None
    backbone: str | None = None


class FineTuningTask(ABC):
    """What the engine and the evaluation ask of a fine-tuning task; nothing is read before it is needed.

    Args:
        data: Splits, and how examples are made.
        seed: Seed of everything drawn from the data.
        model: The model and its starting weights.
        say: Called with each line of what was found.
    """

    name: ClassVar[str]
    """The task's name in recipes."""
    model_class: ClassVar[type[SohoDownstreamModel]]
    selection: ClassVar[str]
    """The measure that tells which model is best."""
    logged: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, data: Any, seed: int = 0, model: DownstreamModel | None = None, *, say: Callable[[str], None] = print
    ) -> None:
        self.data, self.seed, self.model, self._say = data, seed, model or DownstreamModel(), say
        self._records: dict[str, list[Any]] = {}
        self._processor: SohoProcessor | None = None

    @abstractmethod
    def read(self, source: Any, report: ReadReport) -> list[Any]:
        """The records of a split, of which `data.splits` holds the `source`."""

    @abstractmethod
    def training_data(self) -> Any:
        """The training samples: `len`, `[index]`, `set_epoch`."""

    @abstractmethod
    def collate(self, samples: list[Any]) -> Mapping[str, Any]:
        """The keywords of the model's forward, with "skipped" and "sample_ids"."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, *, quick: bool = False, processes: Processes | None = None
    ) -> dict[str, float]:
        """Measures of the split to validate on; quick: of its first images."""

    @abstractmethod
    def evaluate_split(
        self,
        model: nn.Module,
        split: str,
        *,
        processes: Processes,
        keep_in: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Measures of a split: an object with `measures`, and `write(folder)`, which returns the names of files."""

    @abstractmethod
    def table(self, measures: Mapping[str, float]) -> MeasureTable:
        """Measures beside their baselines."""

    def config_changes(self) -> dict[str, Any]:
        """Fields of the configuration that follow from the data."""
        return {}

    def label_keywords(self) -> dict[str, Any]:
        """How these are given to the model's `from_pretraining`."""
        return self.config_changes()

    @cached_property
    def processor(self) -> SohoProcessor:
        """Image processor and tokenizer; a pre-trained model brings its own words."""
        if self._processor is not None:
            return self._processor
        size = {"shortest_edge": self.data.shorter_edge, "longest_edge": self.data.longer_edge}
        if not 0 < self.data.shorter_edge <= self.data.longer_edge:
            raise ValueError(f"data: expected 0 < shorter_edge <= longer_edge, got {size}")
        image_processor = SohoImageProcessor(size=size, size_divisor=self.data.pad_to_multiple)
        given, pretrained = self.data.tokenizer, self.model.pretrained
        if given is None and pretrained is None:
            raise ValueError(
                "data.tokenizer: expected a tokenizer, since there is no pre-trained model to take it from"
            )
        try:
            tokenizer = load_tokenizer(pretrained or given)
        except FileNotFoundError as error:
            if pretrained is None:
                raise
            raise FileNotFoundError(
                f"model.pretrained: nothing could be loaded from {pretrained}; expected the folder of a pre-trained "
                f"model, which a run of pre-training leaves as model/, or a hub name this machine can reach ({error})"
            ) from error
        if given is not None and pretrained is not None:
            there, here = tokenizer.get_vocab(), load_tokenizer(given).get_vocab()
            if there != here:
                raise ValueError(
                    f"data.tokenizer: {given} has other words ({len(here)}) than the pre-trained model {pretrained} "
                    f"({len(there)}) has learnt; leave it out (null)"
                )
        return SohoProcessor(image_processor, tokenizer)

    @abstractmethod
    def images_of(self, record: Any) -> tuple[ImageRef, ...]:
        """The record's image, or its two."""

    @property
    def default_split(self) -> str:
        """The split that is measured where none is named."""
        return self.data.validate

    def records(self, split: str) -> list[Any]:
        """The records of a split, read and reported at the first use.

        Raises:
            ValueError, FileNotFoundError: there is no such split, or as its reader.
        """
        if split not in self.data.splits:
            raise ValueError(f"split: expected one of {', '.join(self.data.splits) or '(none given)'}, got {split!r}")
        if split not in self._records:
            report = ReadReport()
            self._records[split] = self.read(self.data.splits[split], report)
            for line in report.lines():
                self._say(f"{split}: {line}")
        return self._records[split]

    @cached_property
    def training_records(self) -> list[Any]:
        """The records of all splits to train on.

        The split to validate on is read too: a mistake there is known before the training, not after it.
        """
        if not self.data.train:
            raise ValueError("data.train: no split was given; expected at least one")
        training = [record for split in self.data.train for record in self.records(split)]
        if self.data.validate:
            shared = self._image_names(self.records(self.data.validate)) & self._image_names(training)
            if shared:
                self._say(
                    f"{len(shared):,} images of {self.data.validate} are trained on too; its measures say little of "
                    "unseen images"
                )
        return training

    def _image_names(self, records: Sequence[Any]) -> set[str]:
        # Readers give one object to all records of an image.
        return {str(image) for image in {id(ref): ref for row in records for ref in self.images_of(row)}.values()}

    def build_model(self) -> SohoDownstreamModel:
        """The model on the CPU in float32, with the starting weights asked for; says what was loaded."""
        settings = self.model
        if settings.pretrained:
            model, report = self.model_class.from_pretraining(
                settings.pretrained,
                use_dictionary_output=settings.use_dictionary_output,
                **self.label_keywords(),
                **settings.config,
            )
            self._say(str(report))
            if len(self.processor.tokenizer) > model.config.vocab_size:
                raise ValueError(
                    f"model.pretrained: {settings.pretrained} knows {model.config.vocab_size} words, its tokenizer has "
                    f"{len(self.processor.tokenizer)}"
                )
        else:
            tokenizer = self.processor.tokenizer
            vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
            changes = {"use_dictionary_output": settings.use_dictionary_output, **self.config_changes()}
            config = SohoConfig.from_preset(settings.preset, **{**vocabulary, **settings.config})
            model = self.model_class(SohoConfig.from_dict({**config.to_dict(), **changes}))
            if settings.text_encoder:
                self._say(str(model.init_text_encoder_from(settings.text_encoder)))
            if settings.backbone:
                self._say(str(model.init_backbone_from(settings.backbone)))
        if model.config.max_position_embeddings < self.data.max_text_length:
            raise ValueError(
                f"data.max_text_length: {self.data.max_text_length} is more than the model's max_position_embeddings "
                f"{model.config.max_position_embeddings}"
            )
        return model

    def load_model(self, folder: str) -> SohoDownstreamModel:
        """A model that this task has trained, with its processor, from a run's folder or the hub.

        Raises:
            FileNotFoundError: nothing could be loaded from there.
            ValueError: it is a model of another task, or lacks tensors.
        """
        try:
            config = SohoConfig.from_pretrained(folder)
            if self.model_class.__name__ not in (config.architectures or ()):
                raise ValueError(
                    f"checkpoint: {folder} holds a {', '.join(config.architectures or ['model of unknown kind'])}; "
                    f"expected a {self.model_class.__name__}, fine-tuned on {self.name}"
                )
            model, info = self.model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
            self._processor = SohoProcessor.from_pretrained(folder)
        except OSError as error:
            raise FileNotFoundError(
                f"checkpoint: no model could be loaded from {folder}; expected a folder with config.json, "
                f"model.safetensors and the processor's files, or a hub name this machine can reach ({error})"
            ) from error
        lost = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
        if lost:
            raise ValueError(
                f"checkpoint: {folder} lacks {len(lost)} tensors of {self.model_class.__name__} ({', '.join(lost[:3])})"
            )
        self.__dict__.pop("processor", None)
        return model.eval()

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that loads it."""
        return {
            "task": self.name,
            "preset": self.model.preset,
            "pretrained": self.model.pretrained,
            "use_dictionary_output": self.model.use_dictionary_output,
            "config": dict(self.model.config),
        }

    def before_step(self, model: nn.Module, epoch: float) -> None:  # noqa: B027 (the engine calls it)
        """Nothing changes as training goes on."""

    def export(self, model: SohoDownstreamModel, state_dict: Mapping[str, Any], folder: Path) -> None:
        """Write a folder that the model's `from_pretrained` and `SohoProcessor.from_pretrained` load."""
        model.save_pretrained(folder, state_dict=dict(state_dict))
        self.processor.save_pretrained(folder)

    def next_commands(self, folder: Path) -> list[str]:
        """Commands worth trying after the run."""
        others = [split for split in self.data.splits if split not in (*self.data.train, self.data.validate)]
        return [
            *(f"python -m soho_fast.evaluate --run {folder} --split {split}" for split in others),
            f"tensorboard --logdir {folder}",
        ]
