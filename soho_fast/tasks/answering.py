"""What tasks share whose texts have one answer each, from a list.

See `question_answering.py`, `visual_reasoning.py` and `visual_entailment.py`.

Shapes: E examples of a split.
"""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from soho_fast.common.tables import Table
from soho_fast.data.batches.downstream import DownstreamDataset, Examples
from soho_fast.data.batches.sample import Collator, Sample
from soho_fast.model.downstream import SohoDownstreamModel
from soho_fast.tasks.evaluation.answering import Answers, answer
from soho_fast.tasks.evaluation.computing import Computing
from soho_fast.tasks.evaluation.sharing import Sharing
from soho_fast.tasks.fine_tuning import FineTuningTask

BASELINES = ("majority", "majority_of_the_question", "chance")
"""What needs no model: always the most frequent answer, that of the same question in training, any answer."""


class AnsweringTask(FineTuningTask):
    """A task whose every text has one answer, from a list."""

    texts: ClassVar[str]
    """What the texts are called."""
    text_field: ClassVar[str]
    """The record's field with its text."""
    id_field: ClassVar[str]
    """The record's field with its published identifier."""

    @cached_property
    def _examples(self) -> dict[str, Examples]:
        """Of the splits that were evaluated."""
        return {}

    def text_of(self, record: Any) -> str:
        """The record's text."""
        return getattr(record, self.text_field)

    @abstractmethod
    def targets(self, records: Sequence[Any]) -> np.ndarray:
        """int64 (E, ...): what is asked of each record."""

    def is_answered(self, records: Sequence[Any]) -> bool:
        """Whether the right answers are published."""
        return True

    def target_keywords(self, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's keywords for rows of `targets`."""
        return {"labels": targets}

    @abstractmethod
    def label_names(self) -> list[str]:
        """What each of the model's outputs stands for, from the training splits."""

    @abstractmethod
    def metrics(self, answers: Sequence[str], records: Sequence[Any]) -> dict[str, float]:
        """The published metrics, `selection` among them, of one answer for each record."""

    @abstractmethod
    def baselines(self, records: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
        """The same of what needs no model: names of metrics with one of `BASELINES` behind them."""

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
        )
        self.say_fit([self.text_of(record) for record in self.training_records])
        self._say(
            f"training on {len(self._training_examples):,} {self.texts} about {len(self._training_examples.images):,} "
            f"images; {len(self.label_names()):,} labels, vocabulary of {len(self.processor.tokenizer):,}"
        )
        return dataset

    def collate(self, samples: list[Sample]) -> Mapping[str, Any]:
        """The keywords of the model's forward, with "skipped" and "sample_ids"."""
        batch = Collator(self.processor)(samples)
        targets = batch.pop("targets")
        return {**batch, **self.target_keywords(targets)}

    def config_changes(self) -> dict[str, Any]:
        names = self.label_names()
        return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}

    def contents(self) -> dict[str, Any]:
        return {
            **super().contents(),
            "labels": hashlib.sha256("\n".join(self.label_names()).encode()).hexdigest()[:12],
        }

    def metrics_while_training(self, model: SohoDownstreamModel, sharing: Sharing, *, quick: bool) -> dict[str, float]:
        """Of the split to validate on, beside their baselines; quick: of its first images."""
        if not self.data.validate:
            return {}
        max_images = self.quick_images if quick else 0
        return self.evaluate_split(model, self.data.validate, sharing, max_images).metrics

    def evaluate_split(self, model: SohoDownstreamModel, split: str, sharing: Sharing, max_images: int = 0) -> Answers:
        """Answers of a model to a split, or to its first images, and their metrics where it tells the right ones."""
        records = self.records(split)
        if split not in self._examples:
            self._examples[split] = self._pack(records)
        examples = self._examples[split]
        computing = Computing(model, self.precision)
        settings = {name: getattr(self.data, name) for name in _RESULTS_DEPEND_ON}
        about = {"task": self.name, "split": split, "examples": examples.fingerprint(), **settings}
        sharing = sharing.keeping({**about, "precision": computing.precision}, examples.images)
        row_E, label_E, score_E = answer(self, model, computing, examples, max_images, sharing)
        assert max_images or len(row_E) == len(records)
        records = [records[row] for row in row_E]
        config: Any = model.config  # by transformers' types there might be no labels
        # The model's own, in the order of its outputs: it may have been trained by another recipe.
        labels = [config.id2label[number] for number in range(config.num_labels)]
        answers = [labels[label] for label in label_E]
        metrics = {}
        if self.is_answered(records):
            metrics = {**self.metrics(answers, records), **self.baselines(records, labels)}
            metrics["num_examples"] = float(len(records))
        ids = [getattr(record, self.id_field) for record in records]
        return Answers(ids, answers, score_E.tolist(), metrics, sharing, partial(self.write_extra, answers, records))

    def at_chance(self, metrics: Mapping[str, float]) -> str:
        name = self.selection
        if name is None or name not in metrics:
            return ""
        found, count = metrics[name], metrics["num_examples"]
        best = max((metrics[key] for key in self._baselines_of(name) if key in metrics), default=0.0)
        # Two standard errors of the baseline's share.
        if found - best > 2 * math.sqrt(best * (1 - best) / count):
            return ""
        return f"{name.replace('_', ' ')} {found:.1%} is no better than {best:.1%} without a model"

    def _baselines_of(self, name: str) -> dict[str, str]:
        """Of a metric, the names of those that need no model, and what they are called."""
        return {f"{name}_{kind}": kind.replace("_", " ") for kind in BASELINES}

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """How sure the model is of each label."""
        return logits.softmax(-1)

    def table(self, metrics: Mapping[str, float]) -> Table:
        """Metrics beside their baselines."""
        rows = []
        for name, value in metrics.items():
            if name == "num_examples" or name.endswith(tuple(f"_{kind}" for kind in BASELINES)):
                continue
            baselines = [
                f"{100 * metrics[key]:.1f} % {kind}" for key, kind in self._baselines_of(name).items() if key in metrics
            ]
            rows.append([name.replace("_", " "), f"{100 * value:.1f} %", ", ".join(baselines)])
        title = f"{self.name}: {metrics['num_examples']:,.0f} {self.texts}"
        return Table(title, ["metric", "value", "baseline"], rows)


# Settings of the data that change what a model answers.
_RESULTS_DEPEND_ON = (
    "shorter_edge", "longer_edge", "antialias", "max_text_length", "missing_images",
)  # fmt: skip
