"""What a study is, a YAML file; the trainings that it asks for; and their rows, a line of JSON each."""

import hashlib
import json
import math
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from soho_fast.common.errors import UserError
from soho_fast.tasks.recipe import find_recipe
from soho_fast.tasks.recipe_file import check_fields, find_yaml, read_yaml

HERE = Path(__file__).resolve().parent
_ROOTS = "data_roots."
# What does not change what is trained: where things lie, and how a run is carried out.
_PLACES = (_ROOTS, "engine.")


@dataclass
class Condition:
    """What is compared.

    Args:
        about: What it is, in a few words.
        overrides: Fields of each of its recipes, by dotted name.
    """

    about: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stage:
    """A training of each condition and seed.

    Args:
        recipe: Name or path of a recipe.
        after: Earlier stage whose model it starts from; empty: the recipe says.
        overrides: Fields of the recipe, by dotted name.
        splits: What `soho evaluate` measures afterwards: without fields, a split of the recipe; with fields of the
            recipe, what is held out by these, under any name. The metrics have this name and a dot before theirs.
        metrics: Metrics to compare, and what a reader calls them: shares, unless a unit ends the text, in brackets.
    """

    recipe: str
    after: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)


@dataclass
class Study:
    """Conditions x seeds x stages, and what is compared.

    Args:
        title: Heading of the report.
        question: What it asks, in a sentence or two.
        seeds: Seeds.
        overrides: Fields of all recipes, by dotted name; those of stages and then of conditions go over them.
        conditions: What is compared, by name.
        stages: What is trained, by name and in this order.
        composite: What is declared before the first run: shares, as STAGE/METRIC, whose mean logit judges conditions.
        smallest_difference: Differences of the composite below this one, in logits, do not matter: two conditions whose
            difference is shown to be smaller are equivalent. 0: not tested.
        comparisons: Pairs of conditions, compared seed by seed: the first less the second.
    """

    title: str
    question: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    overrides: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    composite: list[str] = field(default_factory=list)
    smallest_difference: float = 0.0
    comparisons: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One training and its evaluations.

    Attributes:
        condition, seed, stage: Where it stands in the study.
        fields: Arguments of `soho train`, but for where it writes and what it starts from.
        splits: Fields of each split for `soho evaluate`; none where it is one of the recipe's.
        digest: Of all settings that its figures follow from.
        start: The run whose model it starts from.
    """

    condition: str
    seed: int
    stage: str
    fields: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    digest: str
    start: "Run | None" = None

    def __str__(self) -> str:
        return f"{self.condition}, seed {self.seed}, {self.stage}"


def read_study(name_or_path: str) -> tuple[str, Study]:
    """(name, study) of a file, or of a name in this folder.

    Raises:
        UserError: there is no such file, or it holds something else than a study.
    """
    path = find_yaml("study", name_or_path, HERE)
    content = read_yaml(path, "study")
    check_fields(content, Study, path, what="study")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Study)
    try:
        parsed = parser.instantiate(parser.parse_object(content))
        study = Study(**{name: getattr(parsed, name) for name in Study.__dataclass_fields__})
        before: list[str] = []
        shares: list[str] = []
        for name, stage in study.stages.items():
            known(f"stages.{name}.after", [stage.after] if stage.after else [], before)
            before.append(name)
            shares += [f"{name}/{metric}" for metric, label in stage.metrics.items() if not label.endswith(")")]
        for each in study.comparisons:
            known("comparisons", each, study.conditions)
        known("composite, of shares", study.composite, shares)
    except (ArgumentError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"study {path}: {error}") from error
    return path.stem, study


def known(place: str, names: Iterable[object], of: Iterable[object]) -> None:
    """Raises UserError: one of the names is not among those."""
    of = list(of)
    for name in names:
        if name not in of:
            raise UserError(f"{place}: expected one of {', '.join(map(str, of)) or '(none)'}, got {name!r}")


def runs_of(study: Study, given: Mapping[str, Any]) -> list[Run]:
    """All runs, those of a seed together, so that an interrupted study has whole pairs.

    Args:
        study: The study.
        given: Fields of all recipes by dotted name, over all else. Each recipe takes the data roots that it names.
    """
    runs: list[Run] = []
    for seed, (name, condition) in product(study.seeds, study.conditions.items()):
        made: dict[str, Run] = {}
        for stage_name, stage in study.stages.items():
            recipe, start = read_yaml(find_recipe(stage.recipe)), made.get(stage.after)
            fields = {**study.overrides, **stage.overrides, **condition.overrides}
            named = json.dumps([recipe, fields, stage.splits])
            fields |= {key: value for key, value in given.items() if _is_of(key, named)}
            own = {key: value for key, value in fields.items() if not key.startswith(_PLACES)}
            parts = [recipe, own, stage.splits, seed, start.digest if start else None]
            digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
            arguments = ("--recipe", stage.recipe, *_arguments(fields), "--seed", str(seed))
            splits = {split: _arguments(changes) for split, changes in stage.splits.items()}
            made[stage_name] = Run(name, seed, stage_name, arguments, splits, digest, start)
        runs += made.values()
    return runs


def _is_of(name: str, recipe: str) -> bool:
    """Whether a recipe takes a field: a data root only where it names it."""
    root = re.escape(name.removeprefix(_ROOTS))
    return not name.startswith(_ROOTS) or re.search(rf"{{{root}\??}}", recipe) is not None


def _arguments(fields: Mapping[str, Any]) -> tuple[str, ...]:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return tuple(part for name, text in texts.items() for part in (f"--{name}", text))


Row = dict[str, Any]
"""study, condition, seed, stage: where it stands. digest: of its settings. commit: of the program that made it.
metrics: {name: number}. And of its run: step, training_seconds, images_per_second, precision, launcher, processor;
program: versions; identity and data: hashes of its settings and of what its data held."""

_OF_A_ROW = {"study", "condition", "seed", "stage", "digest", "metrics"}


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """All rows of these files.

    Raises:
        UserError: a file can't be read, or a line of it is no row.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if missing := {name for row in found for name in _OF_A_ROW.difference(row)}:
                raise ValueError(f"without {', '.join(sorted(missing))}")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"results {path}: expected a study's row on each line, as JSON ({error})") from error
        rows += found
    return rows


def value_of(row: Row | None, metric: str) -> float:
    """A metric of a row, or what it says of the run itself, as `training_seconds`; NaN where there is none."""
    value = None if row is None else row["metrics"].get(metric, row.get(metric))
    return float(value) if isinstance(value, int | float) else math.nan
