"""Pre-training as a task: reads the data, makes the batches, builds the model, measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soho_fast.data.coco_captions import read_coco_captions
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.karpathy import karpathy_coco_ids, read_karpathy
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.records import ImageTextRecord, ReadReport
from soho_fast.data.text import load_tokenizer
from soho_fast.data.visual_genome import read_visual_genome
from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.tasks.measure_table import MeasureTable
from soho_fast.data.batches.pretraining import (
    PretrainingCollator,
    PretrainingDataset,
    PretrainingSample,
    TextMasking,
)
from soho_fast.evaluation.pretraining import Progress, evaluate_pretraining, format_table
from soho_fast.tasks.pretraining_settings import CaptionSource, PretrainingData, PretrainingModel
from soho_fast.evaluation.sharing import Alone, Processes

__all__ = [
    "CaptionSource",
    "MeasureTable",
    "PretrainingCollator",
    "PretrainingData",
    "PretrainingDataset",
    "PretrainingModel",
    "PretrainingTask",
    "TextMasking",
    "evaluate_pretraining",
    "format_table",
    "read_sources",
]

# What a checkpoint must share with the run that loads it: every field that changes which tensors there are.
_SIZES = (
    "backbone",
    "use_dictionary",
    "num_codes",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "ema_variant",
    "dictionary_batch_norm",
    "visual_layer_norm",
)


def _read_source(source: CaptionSource, report: ReadReport, where: str) -> list[ImageTextRecord]:
    common = {
        "max_captions": source.max_captions,
        "missing_images": source.missing_images,
        "source": source.name,
        "report": report,
    }
    if source.format == "karpathy":
        if source.exclude_coco_ids_from:
            raise ValueError(f"{where}.exclude_coco_ids_from: a karpathy file has its own splits; choose them instead")
        return read_karpathy(source.annotations, source.images, source.splits, **common)
    if source.splits:
        raise ValueError(f"{where}.splits: only a karpathy file has splits, this is {source.format}")
    excluded = karpathy_coco_ids(source.exclude_coco_ids_from) if source.exclude_coco_ids_from else frozenset()
    if source.format == "coco_captions":
        return read_coco_captions(source.annotations, source.images, exclude_coco_ids=excluded, **common)
    if source.format == "visual_genome":
        if not source.image_data:
            raise ValueError(f"{where}.image_data: expected the path of Visual Genome's image_data.json")
        return read_visual_genome(
            source.annotations, source.image_data, source.images, exclude_coco_ids=excluded, **common
        )
    raise ValueError(f"{where}.format: expected karpathy, coco_captions or visual_genome, got {source.format!r}")


def read_sources(
    sources: Sequence[CaptionSource], purpose: str, say: Callable[[str], None] = print
) -> list[ImageTextRecord]:
    """Read sets one after another, and say what each holds.

    Args:
        sources: The sets.
        purpose: "sources" (to train on) or "heldout", for messages.
        say: Called with each line.

    Raises:
        ValueError, FileNotFoundError: As the readers; ValueError when no set was given.
    """
    if not sources:
        raise ValueError(f"data.{purpose}: no data set was given; expected at least one (see --help)")
    records: list[ImageTextRecord] = []
    for number, source in enumerate(sources):
        report = ReadReport()
        records += _read_source(source, report, f"data.{purpose}[{number}]")
        for line in report.lines():
            say(f"{purpose}: {line}")
        if purpose == "sources" and source.format == "visual_genome" and not source.exclude_coco_ids_from:
            say(
                f"{purpose}: {report.source}: exclude_coco_ids_from is not set, so COCO's val and test images may be "
                "among these; results on COCO would be too good"
            )
    return records


class PretrainingTask:
    """Everything the engine asks of a task, for SOHO's pre-training. Reading starts at the first use, or at `load`."""

    logged = ("mlm_loss", "mvm_loss", "itm_loss", "caption_word_loss", "perplexity", "live_codes")
    """Names of the output's scalars to log beside the loss."""
    selection = None
    """The last model is the one to keep."""

    def __init__(
        self,
        data: PretrainingData,
        seed: int = 0,
        model: PretrainingModel | None = None,
        *,
        say: Callable[[str], None] = print,
    ) -> None:
        """Keep the settings; nothing is read yet.

        Args:
            data: What to train on and measure on.
            seed: Seed of everything drawn from the data.
            model: The model and its starting weights; preset `paper` when None.
            say: Called with each line of what was found.
        """
        self.data = data
        self.seed = seed
        self.model = model or PretrainingModel()
        self._say = say
        self._training: list[ImageTextRecord] = []
        self._heldout: list[ImageTextRecord] | None = None

    @cached_property
    def processor(self) -> SohoProcessor:
        """Image processor and tokenizer."""
        size = {"shortest_edge": self.data.shorter_edge, "longest_edge": self.data.longer_edge}
        if not 0 < self.data.shorter_edge <= self.data.longer_edge:
            raise ValueError(f"data: expected 0 < shorter_edge <= longer_edge, got {size}")
        image_processor = SohoImageProcessor(size=size, size_divisor=self.data.pad_to_multiple)
        return SohoProcessor(image_processor, load_tokenizer(self.data.tokenizer))

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def _read(self) -> None:
        if self._heldout is not None:
            return
        training = read_sources(self.data.sources, "sources", self._say)
        heldout = read_sources(self.data.heldout, "heldout", self._say) if self.data.heldout else []
        shared = {str(record.image) for record in heldout} & {str(record.image) for record in training}
        if shared:
            raise ValueError(
                f"data: {len(shared)} images are both in sources and in heldout, as {min(shared)}; held-out images "
                "must not be trained on"
            )
        self._training, self._heldout = training, heldout

    @property
    def heldout_records(self) -> list[ImageTextRecord]:
        """The held-out images with their captions."""
        self._read()
        return self._heldout

    @cached_property
    def train_dataset(self) -> PretrainingDataset:
        """The training samples."""
        self._read()
        dataset = PretrainingDataset(
            self._training,
            self.processor,
            seed=self.seed,
            num_positive=self.data.num_positive,
            num_negative=self.data.num_negative,
            max_text_length=self.data.max_text_length,
            masking=self.data.masking,
        )
        # The data set has packed them; millions of caption strings need not live on.
        self._training = []
        return dataset

    @cached_property
    def train_collator(self) -> PretrainingCollator:
        """Batches training samples."""
        pad_text_to = self.data.max_text_length if self.data.pad_text else None
        return PretrainingCollator(self.processor, pad_text_to=pad_text_to)

    def load(self) -> PretrainingTask:
        """Read everything, say what it holds, and refuse what can't be trained on. Returns itself."""
        if "train_dataset" in self.__dict__:
            return self
        dataset = self.train_dataset
        self._say(
            f"training on {len(dataset):,} images with {self.data.num_positive} positive and {self.data.num_negative} "
            f"negative texts each, vocabulary of {len(self.tokenizer):,}"
        )
        return self

    def training_data(self) -> PretrainingDataset:
        """The training samples: `len`, `[index]`, `set_epoch`."""
        return self.load().train_dataset

    def collate(self, samples: list[PretrainingSample]) -> Mapping[str, Any]:
        """The keywords of the model's forward, with "skipped" and "sample_ids"."""
        return self.train_collator(samples)

    @cached_property
    def model_config(self) -> SohoConfig:
        """The preset with this task's replacements and the tokenizer's vocabulary."""
        vocabulary = {"vocab_size": len(self.tokenizer), "pad_token_id": self.tokenizer.pad_token_id}
        config = SohoConfig.from_preset(self.model.preset, **{**vocabulary, **self.model.config})
        if self.model.caption_word_epochs and not config.caption_word_weight:
            raise ValueError(
                f"model.caption_word_epochs: {self.model.caption_word_epochs} epochs of the caption-word loss need "
                "model.config.caption_word_weight above 0"
            )
        if config.vocab_size < len(self.tokenizer):
            raise ValueError(
                f"model.config.vocab_size: {config.vocab_size} is smaller than the tokenizer's {len(self.tokenizer)}"
            )
        if config.max_position_embeddings < self.data.max_text_length:
            raise ValueError(
                f"data.max_text_length: {self.data.max_text_length} is more than the model's "
                f"max_position_embeddings {config.max_position_embeddings}"
            )
        return config

    def identity(self) -> dict[str, Any]:
        """Sizes that a checkpoint must share with the run that loads it."""
        config = self.model_config
        sizes = {name: getattr(config, name) for name in _SIZES}
        return {**sizes, "caption_word_head": bool(config.caption_word_weight)}

    def build_model(self) -> SohoForPreTraining:
        """The model on the CPU in float32, with the starting weights asked for; says what was loaded."""
        model = SohoForPreTraining(self.model_config)
        if self.model.text_encoder:
            self._say(str(model.init_text_encoder_from(self.model.text_encoder)))
        if self.model.backbone:
            self._say(str(model.init_backbone_from(self.model.backbone)))
        return model

    def before_step(self, model: SohoForPreTraining, epoch: float) -> None:
        """The first `caption_word_epochs` train the visual encoder alone, on the words of the captions."""
        model.caption_words_only = epoch < self.model.caption_word_epochs

    def evaluate(
        self,
        model: nn.Module,
        *,
        quick: bool = False,
        processes: Processes | None = None,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Measures on held-out images; see `evaluate_pretraining`. Empty when the recipe names no held-out set.

        The first process measures alone, and only there they are returned.

        Args:
            model: The model.
            quick: Fewer images and no retrieval, for mid-training.
            processes: Who makes the call; this process alone when None.
            device: Where the model is; that of its first parameter when None.
            progress: Called with (stage, done, all).
        """
        if (processes or Alone()).rank or not self.heldout_records:
            return {}
        return evaluate_pretraining(
            model,
            self.heldout_records,
            self.processor,
            device=device if device is not None else next(model.parameters()).device,
            seed=self.seed,
            num_images=self.data.quick_images if quick else self.data.heldout_images or None,
            num_candidates=0 if quick else self.data.heldout_candidates,
            max_text_length=self.data.max_text_length,
            image_batch=self.data.image_batch,
            pair_batch=self.data.pair_batch,
            progress=progress,
        )

    def table(self, measures: Mapping[str, float]) -> MeasureTable:
        """Measures beside their baselines."""
        title = f"{measures['num_images']:.0f} held-out images" if measures else "no held-out images"
        rows = [list(row) for row in format_table(measures)] if measures else []
        return MeasureTable(title, ["measure", "value", "baseline"], rows)

    def export(self, model: SohoForPreTraining, state_dict: Mapping[str, Any], folder: Path) -> None:
        """Write a folder that `SohoForPreTraining.from_pretrained` and `SohoProcessor.from_pretrained` load."""
        model.save_pretrained(folder, state_dict=dict(state_dict))
        self.processor.save_pretrained(folder)

    def next_commands(self, folder: Path) -> list[str]:
        """Commands worth trying after the run."""
        return [f"tensorboard --logdir {folder}"]
