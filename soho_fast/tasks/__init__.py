"""Tasks: what is learnt, from which data, and by which metric; one file a task, all their settings in `settings.py`.

A task itself is imported where it is asked for: it brings torch and transformers.
"""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.tasks import settings

if TYPE_CHECKING:
    from soho_fast.tasks.base import BaseTask


@dataclass(frozen=True)
class KnownTask:
    """What a recipe's fields follow from, before the task itself is imported."""

    purpose: str
    """What it trains, in a line."""
    data_type: type
    """The dataclass of its settings `data`."""
    model_type: type
    """The dataclass of its settings `model`."""
    home: str
    """Where its class is, as "module:class"."""

    def load(self) -> "type[BaseTask]":
        """The task's class."""
        return resolve_name(self.home)


TASKS = {
    "pretraining": KnownTask(
        "Pre-train SOHO",
        settings.PretrainingData,
        settings.PretrainingModel,
        "soho_fast.tasks.pretraining:PretrainingTask",
    ),
    "vqa": KnownTask(
        "Fine-tune SOHO to answer questions about images (VQA v2)",
        settings.QuestionAnsweringData,
        settings.QuestionAnsweringModel,
        "soho_fast.tasks.question_answering:QuestionAnsweringTask",
    ),
    "nlvr2": KnownTask(
        "Fine-tune SOHO to judge statements about two images (NLVR2)",
        settings.StatementData,
        settings.DownstreamModel,
        "soho_fast.tasks.visual_reasoning:VisualReasoningTask",
    ),
    "snli_ve": KnownTask(
        "Fine-tune SOHO to tell whether an image entails a text (SNLI-VE)",
        settings.StatementData,
        settings.DownstreamModel,
        "soho_fast.tasks.visual_entailment:VisualEntailmentTask",
    ),
    "retrieval": KnownTask(
        "Fine-tune SOHO to find texts for images and images for texts (COCO, Flickr30K)",
        settings.RetrievalData,
        settings.DownstreamModel,
        "soho_fast.tasks.retrieval:RetrievalTask",
    ),
}
"""The tasks by their names in recipes."""
