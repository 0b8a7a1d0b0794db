"""Tasks: what is learnt, from which data, and by which metric; one file a task, all their settings in `settings.py`.

A task itself is imported where it is asked for: it brings torch and transformers. One of a user's own is named by its
import path, `my.module:MyTask`; docs/extending.md shows one.
"""

from dataclasses import dataclass, is_dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.errors import UserError
    from soho_fast.common.import_path import load_imported
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


def find_task(name: str) -> KnownTask:
    """The task of a name in `TASKS`, or of an import path whose module is imported already.

    Raises:
        UserError: it is no subclass of `BaseTask`, or as `describe`.
    """
    if name in TASKS:
        return TASKS[name]
    from soho_fast.tasks.base import BaseTask

    return describe(load_imported(name, "task", BaseTask), name)


def describe(task: type, home: str = "") -> KnownTask:
    """What a task's class says of itself: `data_type` and `model_type`, by default those of the task it extends.

    Raises:
        UserError: it has none, or they extend no settings of this package.
    """
    extended = next((TASKS[name] for each in task.__mro__ if (name := getattr(each, "name", "")) in TASKS), None)

    def settings_of(name: str, base: type) -> type:
        found = getattr(task, name, getattr(extended, name, None))
        if not (isinstance(found, type) and issubclass(found, base) and is_dataclass(found)):
            raise UserError(
                f"task: {home or task.__name__} has {name}={found!r}; expected the dataclass of its settings, which "
                f"extends soho_fast.tasks.settings.{base.__name__}"
            )
        return found

    data_type = settings_of("data_type", settings.InputData)
    model_type = settings_of("model_type", settings.ModelSettings)
    return KnownTask((task.__doc__ or task.__name__).splitlines()[0], data_type, model_type, home)
