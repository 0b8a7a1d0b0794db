"""What tasks share: the processor, starting weights, splits, answers and their measures.

`BaseTask` is what the engine's `Task` asks and every task answers alike. `FineTuningTask` adds splits and a model that
starts from a pre-trained one; `AnsweringTask` adds answers from a list, one for each text: see `question_answering.py`,
`visual_reasoning.py` and `visual_entailment.py`.

Shapes: E examples of a split, P texts of a call.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from soho_fast.common.checksums import write_checksums
from soho_fast.common.hub import loading_options
from soho_fast.common.processes import Processes
from soho_fast.common.spelling import did_you_mean
from soho_fast.common.tables import Table
from soho_fast.data.batches.downstream import DownstreamDataset, Examples
from soho_fast.data.batches.sample import Collator, Sample, usable_samples
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import ImageRef, ReadReport, share_of_records
from soho_fast.data.text import describe_fit, load_tokenizer
from soho_fast.model import SohoConfig, SohoPreTrainedModel
from soho_fast.model.downstream import SohoDownstreamModel
from soho_fast.model.fast.cpu import speed_up_on_cpu
from soho_fast.model.fast.gpu import speed_up_on_gpu
from soho_fast.model.pretrained import check_finite
from soho_fast.model.visual_encoder import cut_features, pad_features
from soho_fast.tasks import TASKS
from soho_fast.tasks.evaluation.answering import Answering, Answers
from soho_fast.tasks.evaluation.computing import Computing
from soho_fast.tasks.evaluation.sharing import Kept, Progress
from soho_fast.tasks.identity import (
    FIXED,
    MEASURES_BY,
    NOT_COMPARED,
    records_identity,
    weights_identity,
    words_identity,
)
from soho_fast.tasks.settings import DownstreamModel


class BaseTask(ABC):
    """What every task has; nothing is read before it is needed.

    Args:
        data: What to train on and to measure on, and how examples are made.
        seed: Seed of everything drawn from the data.
        model: The model and its starting weights.
        say: Called with each line of what was found.
    """

    name: ClassVar[str]
    """The task's name in recipes."""
    model_class: ClassVar[type[SohoPreTrainedModel]]
    """What it trains."""
    selection: ClassVar[str | None]
    """The measure that tells which model is best, larger is better; None keeps only the last."""
    logged: ClassVar[tuple[str, ...]] = ()
    """Names of the output's scalars to log beside the loss."""
    workers: int = 0
    """Processes that read what is measured, for each that measures; 0 reads in these."""
    processes: Processes = Processes()
    """Those that read training data together."""
    not_compared: ClassVar[Collection[str]] = NOT_COMPARED
    """Patterns of recipe fields that do not change what is trained, or whose contents `identity` tells."""
    fixed: ClassVar[Collection[str]] = FIXED
    """Patterns of names that cannot change within a run."""
    measures_by: ClassVar[Collection[str]] = MEASURES_BY
    """Patterns of names by which a model is measured, but not trained."""

    def __init__(self, data: Any, seed: int = 0, model: Any = None, *, say: Callable[[str], None] = print) -> None:
        self.data, self.seed, self._say = data, seed, say
        self.model = model or TASKS[self.name].model_type()
        SohoConfig.check_names(self.model.config)

    def identity(self) -> dict[str, Any]:
        """What the recipe does not tell of what is trained: contents of what its paths name."""
        return {
            "data.tokenizer": words_identity(self.processor.tokenizer),
            "model.text_encoder": weights_identity(self.model.text_encoder),
            "model.backbone": weights_identity(self.model.backbone),
        }

    def load_processor(self, tokenizer: Any) -> SohoProcessor:
        """The image processor of the settings, with a tokenizer."""
        size = {"shortest_edge": self.data.shorter_edge, "longest_edge": self.data.longer_edge}
        options = {"size_divisor": self.data.pad_to_multiple, "antialias": self.data.antialias}
        return SohoProcessor(SohoImageProcessor(size=size, **options), tokenizer)

    def check_text_length(self, config: SohoConfig) -> None:
        """Raises ValueError: texts may be longer than the model has positions for."""
        length, limit = self.data.max_text_length, config.max_position_embeddings
        if limit < length:
            raise ValueError(f"data.max_text_length: {length} is more than the model's max_position_embeddings {limit}")

    def say_fit(self, texts: Sequence[str]) -> None:
        """Say what the tokenizer does not know of the texts to train on, and whether they are cut."""
        for line in describe_fit(self.processor.tokenizer, texts).warnings(self.data.max_text_length):
            self._say(line)

    def load_model(self, folder: str) -> SohoPreTrainedModel:
        """A model that this task has trained, with its processor, from a run's folder or the hub.

        Raises:
            FileNotFoundError: nothing could be loaded from there.
            ValueError: it is a model of another task, lacks tensors, or has diverged.
        """
        try:
            options, _ = loading_options(folder)  # The hub is asked once.
            config = SohoConfig.from_pretrained(folder, **options)
            processor = SohoProcessor.from_pretrained(folder, **options)
            model, lost = self.load_weights(folder, config)
        except OSError as error:
            raise FileNotFoundError(
                f"checkpoint: no model could be loaded from {folder}; expected a folder with config.json, "
                f"model.safetensors and the processor's files, or a hub name this machine can reach ({error})"
            ) from error
        if lost:
            kind, first = self.model_class.__name__, ", ".join(lost[:3])
            raise ValueError(f"checkpoint: {folder} lacks {len(lost)} tensors of {kind} ({first})")
        check_finite(model, f"checkpoint: {folder}")
        self.processor = processor
        return model.eval()

    def load_weights(self, folder: str, config: SohoConfig) -> tuple[SohoPreTrainedModel, list[str]]:
        """The model there, whose configuration is given, and the names of tensors that it lacks."""
        if self.model_class.__name__ not in (config.architectures or ()):
            raise ValueError(
                f"checkpoint: {folder} holds a {', '.join(config.architectures or ['model of unknown kind'])}; "
                f"expected a {self.model_class.__name__}, trained by the task {self.name}"
            )
        model, info = self.model_class.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
        return model, sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})

    @property
    @abstractmethod
    def default_split(self) -> str:
        """The split that is measured where none is named."""

    @abstractmethod
    def evaluate_split(self, model: nn.Module, split: str, *, processes: Processes, **options: Any) -> Any:
        """Measures of a split: an object with `measures`, and `write(folder)`, which returns the names of files."""

    def speed_up(self, model: nn.Module, device: torch.device) -> None:
        """Chooses and says how the model computes on a device; see `speed_up_on_cpu`, `speed_up_on_gpu`."""
        if device.type == "cpu":
            speed_up_on_cpu(model)
        elif device.type == "cuda":
            speed_up_on_gpu(model)
        self._say(f"computing on {device.type}: {model.base().computed_by}")

    @property
    def samples_together(self) -> tuple[str, int] | None:
        """Any number of samples will do in a forward."""
        return None

    def keeps_outputs(self, model: SohoPreTrainedModel) -> bool:
        """Not where padding is part of the image, as in the released code."""
        return model.config.visual_encoder == "paper"

    def collate_images(self, samples: list[Sample]) -> Mapping[str, Any]:
        """Samples of one image each, of which some may be broken, to what `backbone_outputs` takes."""
        return self.processor.image_processor.collate_bytes([sample.pixels[0] for sample in usable_samples(samples)])

    def on_device(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Images come as bytes, and are normalised on the device."""
        return self.processor.image_processor.normalised(batch)

    def backbone_outputs(self, model: SohoPreTrainedModel, images: Mapping[str, Any]) -> list[torch.Tensor]:
        """What the CNN gives for each image, (C, h, w), without padding."""
        encoder = model.base().visual_encoder
        return cut_features(*encoder.backbone_output(images["pixel_values"], images["pixel_mask"]))

    def collate_outputs(self, outputs: list[torch.Tensor]) -> Mapping[str, Any]:
        """What `backbone_outputs` gave for the images of a batch, as keywords of the model's forward."""
        features_BChw, mask_Bhw = pad_features(outputs)
        return {"backbone_features": features_BChw, "backbone_mask": mask_Bhw}

    def before_step(self, model: SohoPreTrainedModel, epoch: float) -> None:
        """Called before each optimiser step with the epochs behind it."""
        model.begin_step()

    def after_step(self, model: SohoPreTrainedModel, *, applied: bool) -> Mapping[str, torch.Tensor]:
        """Moves the dictionary by the whole step, if the optimiser has `applied` it."""
        model.end_step(applied=applied)
        return {}

    def non_finite(self, model: SohoPreTrainedModel) -> list[str]:
        """Visual tokens with Inf or NaN: the lookup gives them code 0, and the loss stays finite."""
        return [f"visual tokens ({num})"] if (num := model.take_num_non_finite()) else []

    def warnings(self, model: SohoPreTrainedModel) -> list[str]:
        """Nothing is watched."""
        return []

    def snapshot(self, model: SohoPreTrainedModel) -> Mapping[str, Any]:
        """Nothing is kept."""
        return {}

    def phase(self, epoch: float) -> str:
        """What is trained otherwise than in most of the run, after so many epochs; empty where nothing is."""
        return ""

    def export(self, model: nn.Module, state_dict: Mapping[str, Any], folder: Path) -> None:
        """Write a folder that the model's `from_pretrained` and `SohoProcessor.from_pretrained` load."""
        model.save_pretrained(folder, state_dict=dict(state_dict))
        self.processor.save_pretrained(folder)
        write_checksums(folder)

    def next_commands(self, folder: Path) -> list[str]:
        """Commands worth trying after the run."""
        return [f"tensorboard --logdir {folder}"]


class FineTuningTask(BaseTask):
    """Splits, and a model that starts from a pre-trained one or from scratch."""

    def __init__(
        self, data: Any, seed: int = 0, model: DownstreamModel | None = None, *, say: Callable[[str], None] = print
    ) -> None:
        super().__init__(data, seed, model, say=say)
        self._records: dict[str, list[Any]] = {}

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
        self,
        model: nn.Module,
        *,
        quick: bool = False,
        processes: Processes | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Measures of the split to validate on; quick: of its first images."""

    @abstractmethod
    def table(self, measures: Mapping[str, float]) -> Table:
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
        given, pretrained = self.data.tokenizer, self.model.pretrained
        if given is None and pretrained is None:
            raise ValueError("data.tokenizer: expected a tokenizer: there is no pre-trained model to take it from")
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
        return self.load_processor(tokenizer)

    @abstractmethod
    def images_of(self, record: Any) -> tuple[ImageRef, ...]:
        """The record's image, or its two."""

    @property
    def default_split(self) -> str:
        """The split that is measured where none is named. Raises ValueError: the recipe validates on none."""
        if not self.data.validate:
            raise ValueError(f"split: data.validate is empty; name one of {', '.join(self.data.splits)}")
        return self.data.validate

    def records(self, split: str) -> list[Any]:
        """The records of a split, read and reported at the first use.

        Raises:
            ValueError, FileNotFoundError: there is no such split, or as its reader.
        """
        if split not in self.data.splits:
            splits = ", ".join(self.data.splits) or "(none given)"
            similar = did_you_mean(split, self.data.splits)
            raise ValueError(f"split: expected one of {splits}, got {split!r}{similar}")
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
        training = share_of_records(training, self.data.train_share, self.seed)
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
        self.check_text_length(model.config)
        return model

    def identity(self) -> dict[str, Any]:
        """Contents of the data and of the starting weights."""
        held_out = self.records(self.data.validate) if self.data.validate else []
        return {
            **super().identity(),
            "training data": records_identity(self.training_records),
            "held-out data": records_identity(held_out),
            "model.pretrained": weights_identity(self.model.pretrained),
        }

    def next_commands(self, folder: Path) -> list[str]:
        """Commands worth trying after the run."""
        others = [split for split in self.data.splits if split not in (*self.data.train, self.data.validate)]
        return [
            *(f"python -m soho_fast.evaluate --run {folder} --split {split}" for split in others),
            *super().next_commands(folder),
        ]


class AnsweringTask(FineTuningTask):
    """A task whose every text has one answer, from a list."""

    texts: ClassVar[str]
    """What the texts are called."""

    def __init__(
        self, data: Any, seed: int = 0, model: DownstreamModel | None = None, *, say: Callable[[str], None] = print
    ) -> None:
        super().__init__(data, seed, model, say=say)
        self._examples: dict[str, Examples] = {}

    @abstractmethod
    def text_of(self, record: Any) -> str:
        """The record's text."""

    @abstractmethod
    def targets(self, records: Sequence[Any]) -> np.ndarray:
        """int64 (E, ...): what is asked of each record."""

    def is_answered(self, records: Sequence[Any]) -> bool:
        """Whether the right answers are published."""
        return True

    @abstractmethod
    def target_keywords(self, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's keywords for rows of `targets`."""

    @abstractmethod
    def label_names(self) -> list[str]:
        """What each of the model's outputs stands for, from the training splits."""

    @abstractmethod
    def measures(self, answers: Sequence[str], records: Sequence[Any]) -> dict[str, float]:
        """The published measures, `selection` among them, of one answer for each record."""

    @abstractmethod
    def baselines(self, records: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
        """The same of what needs no model: names of measures with `_majority` or `_chance` behind them."""

    @abstractmethod
    def id_of(self, record: Any) -> str | int:
        """The record's published identifier."""

    def write_extra(self, answers: Sequence[str], records: Sequence[Any], folder: Path) -> list[str]:
        """Write what a server or a script of others takes; returns the names of the files."""
        return []

    def _pack(self, records: Sequence[Any], targets: np.ndarray | None = None) -> Examples:
        images = [self.images_of(record) for record in records]
        return Examples(images, [self.text_of(record) for record in records], targets)

    @cached_property
    def _training_examples(self) -> Examples:
        records = self.training_records
        if not self.is_answered(records):
            raise ValueError(f"data.train: a split of {', '.join(self.data.train)} has no answers to learn from")
        return self._pack(records, self.targets(records))

    @cached_property
    def _training_data(self) -> DownstreamDataset:
        data = self.data
        dataset = DownstreamDataset(
            self._training_examples,
            self.processor,
            seed=self.seed,
            texts_per_sample=data.texts_per_image,
            max_text_length=data.max_text_length,
            blank_images=data.blank_images,
        )
        self.say_fit([self.text_of(record) for record in self.training_records])
        blank = ", without looking at them" if data.blank_images else ""
        self._say(
            f"training on {len(self._training_examples):,} {self.texts} about {len(self._training_examples.images):,} "
            f"images{blank}; {len(self.label_names()):,} labels, vocabulary of {len(self.processor.tokenizer):,}"
        )
        return dataset

    def training_data(self) -> DownstreamDataset:
        """The training samples: `len`, `[index]`, `set_epoch`."""
        return self._training_data

    def collate(self, samples: list[Sample]) -> Mapping[str, Any]:
        """The keywords of the model's forward, with "skipped" and "sample_ids"."""
        batch = Collator(self.processor)(samples)
        targets = batch.pop("targets")
        return {**batch, **self.target_keywords(targets)}

    def config_changes(self) -> dict[str, Any]:
        names = self.label_names()
        return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}

    def identity(self) -> dict[str, Any]:
        return {
            **super().identity(),
            "labels": hashlib.sha256("\n".join(self.label_names()).encode()).hexdigest()[:12],
        }

    def evaluate(
        self,
        model: nn.Module,
        *,
        quick: bool = False,
        processes: Processes | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """The measures of the split to validate on, beside their baselines; quick: of its first images."""
        if not self.data.validate:
            return {}
        num_images = self.data.quick_images if quick else 0
        evaluation = self.evaluate_split(
            model,
            self.data.validate,
            processes=processes or Processes(),
            max_images=num_images,
            progress=progress,
        )
        return evaluation.measures

    def evaluate_split(
        self,
        model: nn.Module,
        split: str,
        *,
        processes: Processes,
        keep_in: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        max_images: int = 0,
    ) -> Answers:
        """Answers of a model to a split, and their measures where the split tells the right ones.

        Args:
            model: The model, in evaluation mode, on the device of `processes`.
            split: A name in `data.splits`.
            processes: Who shares the work; all make the call and get the same.
            keep_in: Folder for results as they come, so that a run that was killed can be taken up; deleted at the end.
            identity: What the results depend on, beside what this task knows (the weights).
            progress: Called as batches are done.
            max_images: Only the examples of the first so many images (pairs); 0 takes what `data` says.

        Raises:
            BrokenImageError: an image can't be read: a published measure covers every example.
        """
        records, max_images = self.records(split), max_images or self.data.measured_images
        if split not in self._examples:
            self._examples[split] = self._pack(records)
        examples = self._examples[split]
        computing = Computing(model, self.data.precision)
        kept = None
        if keep_in is not None:
            settings = {name: getattr(self.data, name) for name in _RESULTS_DEPEND_ON}
            settings["precision"] = computing.precision
            source = {"task": self.name, "split": split, "examples": examples.fingerprint(), **settings}
            kept = Kept(keep_in, {**source, **(identity or {})}, processes)
        answering = Answering(
            self.processor,
            max_text_length=self.data.max_text_length,
            blank_images=self.data.blank_images,
            image_batch=self.data.image_batch,
            text_batch=self.data.text_batch,
            probabilities=self.probabilities,
            workers=self.workers,
        )
        row_E, label_E, score_E = answering.answer(
            model, computing, examples, num_groups=max_images or None, processes=processes, kept=kept, progress=progress
        )
        assert max_images or len(row_E) == len(records)
        records = [records[row] for row in row_E]
        labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
        answers = [labels[label] for label in label_E]
        measures = {}
        if self.is_answered(records):
            measures = {**self.measures(answers, records), **self.baselines(records, labels)}
            measures["num_examples"] = float(len(records))
        ids = [self.id_of(record) for record in records]
        return Answers(ids, answers, score_E.tolist(), measures, kept, partial(self.write_extra, answers, records))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """How sure the model is of each label."""
        return logits.softmax(-1)

    def table(self, measures: Mapping[str, float]) -> Table:
        """Measures beside their baselines."""
        rows = []
        for name, value in measures.items():
            if name == "num_examples" or name.endswith(("_majority", "_chance")):
                continue
            baselines = [
                f"{100 * measures[f'{name}_{kind}']:.1f} % {kind}"
                for kind in ("majority", "chance")
                if f"{name}_{kind}" in measures
            ]
            rows.append([name.replace("_", " "), f"{100 * value:.1f} %", ", ".join(baselines)])
        blank = ", images not shown" if self.data.blank_images else ""
        title = f"{self.name}: {measures['num_examples']:,.0f} {self.texts}{blank}"
        return Table(title, ["measure", "value", "baseline"], rows)


# Settings of the data that change what a model answers.
_RESULTS_DEPEND_ON = (
    "shorter_edge", "longer_edge", "pad_to_multiple", "antialias", "max_text_length", "blank_images", "missing_images",
    "image_batch", "text_batch", "measured_images",
)  # fmt: skip
