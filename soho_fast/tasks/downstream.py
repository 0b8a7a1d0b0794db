"""What the tasks with one answer for each text share: batches, predictions, measures beside their baselines.

A task adds how its records are read, what is asked, and how answers are measured: see `question_answering.py`,
`visual_reasoning.py` and `visual_entailment.py`.

Shapes: E examples of a split, P texts of a call.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from torch import nn

from soho_fast.data.images import BrokenImageError
from soho_fast.data.batches.downstream import (
    DownstreamCollator,
    DownstreamDataset,
    DownstreamSample,
    Examples,
    load_sample,
)
from soho_fast.tasks.fine_tuning import DownstreamModel, FineTuningData, FineTuningTask
from soho_fast.tasks.measure_table import MeasureTable
from soho_fast.data.batches.pretraining import pad_texts
from soho_fast.evaluation.sharing import Alone, Kept, Processes, Progress, compute_parts


@dataclass
class DownstreamData(FineTuningData):
    """Splits, and how examples are made.

    Args:
        texts_per_image: A training sample is an image (in NLVR2 a pair) with at most so many of its texts, for which
            it is encoded once; 1 makes each text a sample, as in the paper.
        blank_images: Show no image, in training and in measuring: the baseline that has only the text.
        text_batch: Texts read at a time when measuring.
    """

    texts_per_image: PositiveInt = 1
    blank_images: bool = False
    text_batch: PositiveInt = 256


class DownstreamTask(FineTuningTask):
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

    def write_extra(self, folder: Path, answers: Sequence[str], records: Sequence[Any]) -> list[str]:
        """Write what a server or a script of others takes; returns the names of the files."""
        return []

    # Data.

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
        blank = ", without looking at them" if data.blank_images else ""
        self._say(
            f"training on {len(self._training_examples):,} {self.texts} about {len(self._training_examples.images):,} "
            f"images{blank}; {len(self.label_names()):,} labels, vocabulary of {len(self.processor.tokenizer):,}"
        )
        return dataset

    def training_data(self) -> DownstreamDataset:
        """The training samples: `len`, `[index]`, `set_epoch`."""
        return self._training_data

    @cached_property
    def _collator(self) -> DownstreamCollator:
        return DownstreamCollator(self._training_examples, self.processor, self.target_keywords)

    def collate(self, samples: list[DownstreamSample]) -> Mapping[str, Any]:
        """The keywords of the model's forward, with "skipped" and "sample_ids"."""
        return self._collator(samples)

    # The model.

    def config_changes(self) -> dict[str, Any]:
        names = self.label_names()
        return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}

    def identity(self) -> dict[str, Any]:
        return {
            **super().identity(),
            "labels": hashlib.sha256("\n".join(self.label_names()).encode()).hexdigest()[:16],
            "blank_images": self.data.blank_images,
            "texts_per_image": self.data.texts_per_image,
        }

    # Measuring.

    def evaluate(
        self, model: nn.Module, *, quick: bool = False, processes: Processes | None = None
    ) -> dict[str, float]:
        """The measures of the split to validate on, beside their baselines; quick: of its first images."""
        if not self.data.validate:
            return {}
        return self.evaluate_split(
            model, self.data.validate, processes=processes or Alone(), max_images=self.data.quick_images if quick else 0
        ).measures

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
    ) -> Evaluation:
        """Answers of a model to a split, and their measures where the split tells the right ones.

        Args:
            model: The model, in evaluation mode, on the device of `processes`.
            split: A name in `data.splits`.
            processes: Who shares the work; all make the call and get the same.
            keep_in: Folder for results as they come, so that a run that was killed can be taken up; deleted at the end.
            identity: What the results depend on, beside what this task knows (the weights).
            progress: Called as batches are done.
            max_images: Only the examples of the first so many images (pairs); 0 takes all.

        Raises:
            BrokenImageError: an image can't be read: a published measure covers every example.
        """
        records = self.records(split)
        if split not in self._examples:
            self._examples[split] = self._pack(records)
        examples = self._examples[split]
        groups = examples.groups[: max_images or None]
        size = self.data.image_batch
        batches = [groups[begin : begin + size] for begin in range(0, len(groups), size)]
        kept = None
        if keep_in is not None:
            settings = {name: getattr(self.data, name) for name in _RESULTS_DEPEND_ON}
            source = {"task": self.name, "split": split, "examples": examples.fingerprint(), **settings}
            kept = Kept(keep_in, {**source, **(identity or {})}, processes)
        labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
        parts = compute_parts(
            len(batches),
            lambda number: self._answer(model, examples, batches[number], processes.device),
            processes,
            kept=kept,
            progress=progress,
        )
        rows = np.concatenate([row for batch in batches for row in batch])
        label_of, score_of = np.full(len(records), -1), np.zeros(len(records))
        label_of[rows] = np.concatenate([part["label"].numpy() for part in parts])
        score_of[rows] = np.concatenate([part["score"].numpy() for part in parts])
        chosen = np.sort(rows)
        assert len(np.unique(chosen)) == len(chosen) and (max_images or len(chosen) == len(records))
        records = [records[row] for row in chosen]
        answers = [labels[label_of[row]] for row in chosen]
        measures = {}
        if self.is_answered(records):
            measures = {**self.measures(answers, records), **self.baselines(records, labels)}
            measures["num_examples"] = float(len(records))
        return Evaluation(self, split, measures, answers, [float(score_of[row]) for row in chosen], records, kept)

    @torch.no_grad()
    def _answer(
        self, model: nn.Module, examples: Examples, groups: Sequence[np.ndarray], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Best label and its probability for all examples of some groups, in the groups' order."""
        data, processor = self.data, self.processor
        samples = [load_sample(examples, rows, processor, data.max_text_length, data.blank_images) for rows in groups]
        for sample in samples:
            if sample.broken is not None:
                raise BrokenImageError(f"{sample.broken}; every example must be answered")
        place_of: dict[int, int] = {}
        pixels = []
        for sample in samples:
            for number, image in zip(sample.image_numbers, sample.pixels, strict=True):
                if place_of.setdefault(number, len(pixels)) == len(pixels):
                    pixels.append(image)
        images = processor.image_processor.collate(pixels)
        visual = model.encode_images(images["pixel_values"].to(device), images["pixel_mask"].to(device))
        texts_ids = [ids for sample in samples for ids in sample.texts_ids]
        index = [[place_of[number] for number in sample.image_numbers] for sample in samples for _ in sample.rows]
        index_PN = torch.tensor(index)
        # Texts of like length together, so that little is spent on padding.
        order = sorted(range(len(texts_ids)), key=lambda row: len(texts_ids[row]))
        label_P, score_P = torch.empty(len(order), dtype=torch.int64), torch.empty(len(order), dtype=torch.float32)
        for begin in range(0, len(order), data.text_batch):
            rows = order[begin : begin + data.text_batch]
            texts = pad_texts([texts_ids[row] for row in rows], processor.tokenizer.pad_token_id)
            output = model(
                visual_tokens=visual,
                image_index=index_PN[rows].squeeze(1).to(device),
                **{name: tensor.to(device) for name, tensor in texts.items()},
            )
            best = self.probabilities(output.logits.float()).max(-1)
            label_P[rows], score_P[rows] = best.indices.cpu(), best.values.cpu()
        return {"label": label_P, "score": score_P}

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """How sure the model is of each label."""
        return logits.softmax(-1)

    def table(self, measures: Mapping[str, float]) -> MeasureTable:
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
        return MeasureTable(title, ["measure", "value", "baseline"], rows)


# Settings of the data that change what a model answers.
_RESULTS_DEPEND_ON = (
    "shorter_edge", "longer_edge", "pad_to_multiple", "max_text_length", "blank_images", "missing_images",
    "image_batch", "text_batch",
)  # fmt: skip


@dataclass
class Evaluation:
    """The answers to a split, in file order, with the model's own probability of each, and their measures."""

    task: DownstreamTask
    split: str
    measures: dict[str, float]
    answers: list[str]
    scores: list[float]
    records: list[Any]
    kept: Kept | None

    def write(self, folder: Path) -> list[str]:
        """Write the answers, and delete what was kept on the way. Returns the names of the files."""
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
            for record, answer, score in zip(self.records, self.answers, self.scores, strict=True):
                row = {"id": self.task.id_of(record), "answer": answer, "score": round(score, 6)}
                file.write(json.dumps(row) + "\n")
        extra = self.task.write_extra(folder, self.answers, self.records)
        if self.kept is not None:
            self.kept.delete()
        return ["predictions.jsonl", *extra]
