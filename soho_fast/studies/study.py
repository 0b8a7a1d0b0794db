"""What a study is: a YAML file over recipes, read as strictly as these."""

import dataclasses
from argparse import ArgumentError
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from jsonargparse import ArgumentParser

    from soho_fast.common.command_line import in_plain_words
    from soho_fast.common.errors import UserError
    from soho_fast.common.spelling import did_you_mean
    from soho_fast.tasks.recipe_file import check_fields, find_yaml, read_yaml

STUDIES = Path(__file__).resolve().parent


@dataclass
class Condition:
    """What is compared: changes of the recipes.

    Args:
        about: What it is, in a few words.
        overrides: Fields of every run's recipe by their dotted names; the value `default` takes one out.
        stages: The same, of one stage's runs, by the stage's name.
        seeds: Seeds of this condition; empty takes the study's.
        seed_offset: Added to the seeds that its recipes have: the same condition by other chances.
        launcher: Words before its training commands, where several processes train; empty takes the command line's.
    """

    about: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    seed_offset: int = 0
    launcher: str = ""


@dataclass
class Stage:
    """Runs of one recipe.

    Args:
        recipe: Name or path of a recipe.
        after: The stage whose model these start from; empty: the recipe says.
        shared: One model for all conditions and seeds: by seed 0, without the conditions' overrides but those of this
            stage.
        overrides: Fields of the recipe by their dotted names.
        splits: What the trained model is measured on beside the recipe's own measuring at the end: a split of the
            recipe by its name, or of pre-training the held-out images by any name; with fields of the recipe to
            replace. Its metrics have the name and a dot before theirs.
        codes: Also measure what the codes mean (as `soho_fast.explore measure` does), on at most so many images; 0
            does not.
        metrics: Metrics that are compared, by name, and what a reader calls them: a share, unless a unit stands in
            brackets at the end. `ONE - OTHER` is a metric less another one of the same run.
        conditions: The conditions that have it; empty: all.
    """

    recipe: str
    after: str = ""
    shared: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    codes: int = 0
    metrics: dict[str, str] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """One condition against another, seed by seed.

    Args:
        condition: Name of a condition, or of a level of `factor`.
        against: What it is compared with.
        factor: Name of a factor: all conditions of one level against those that differ in it alone, of each seed.
    """

    condition: str
    against: str
    factor: str = ""


@dataclass
class Study:
    """A matrix of runs: conditions x seeds x stages, and what is compared.

    Args:
        title: What a report is headed by.
        question: What it asks, in a sentence or two.
        overrides: Fields of every run's recipe by their dotted names; the value `default` takes one out.
        seeds: Seeds; conditions are compared seed by seed.
        conditions: What is compared, by name.
        factors: Levels of each factor, as overrides by name: every combination of levels is one more condition, named
            by them.
        stages: What is trained, by name, in this order.
        composite: What is declared before the study is run: shares, as STAGE/METRIC, whose mean logit is the one figure
            by which conditions are judged. All metrics of the stages are compared too, as explored ones.
        comparisons: Who is compared with whom.
    """

    title: str
    question: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    conditions: dict[str, Condition] = field(default_factory=dict)
    factors: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    composite: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)


def find_study(name_or_path: str) -> Path:
    """The file of a study: a path, or the name of one of this package.

    Raises:
        UserError: there is no such file; the message lists the names there are.
    """
    return find_yaml("study", name_or_path, STUDIES)


def read_study(path: Path) -> Study:
    """A study from its file.

    Raises:
        UserError: it is not one, or names a condition or a stage that it does not have.
    """
    content = read_yaml(path, "study")
    check_fields(content, Study, path, what="study")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Study)
    try:
        parsed = parser.instantiate(parser.parse_object(content))
    except ArgumentError as error:
        raise UserError(f"study {path}: {in_plain_words(str(error), ())}") from error
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"study {path}: {' '.join(str(error).split())}") from error
    study = Study(**{each.name: getattr(parsed, each.name) for each in dataclasses.fields(Study)})
    for levels in product(*study.factors.values()) if study.factors else ():
        overrides = [study.factors[factor][level] for factor, level in zip(study.factors, levels, strict=True)]
        name = ", ".join(levels)
        if name in study.conditions:
            raise UserError(
                f"study {path}: factors: there is a condition {name!r} already; give the levels other names"
            )
        study.conditions[name] = Condition(
            overrides={field: value for each in overrides for field, value in each.items()}
        )
    try:
        _check(study)
    except UserError as error:
        raise UserError(f"study {path}: {error}") from None
    return study


def _check(study: Study) -> None:
    for what in ("conditions", "stages", "seeds"):
        if not getattr(study, what):
            raise UserError(f"{what}: expected at least one, got none")
    if len(set(study.composite)) < len(study.composite):
        raise UserError(f"composite: expected each metric once, got {', '.join(study.composite)}")
    for name, condition in study.conditions.items():
        for stage_name in condition.stages:
            known(f"conditions.{name}.stages", stage_name, study.stages)
    for name in (*study.conditions, *study.stages):
        if not name or "/" in name or name.startswith("."):
            raise UserError(f"{name!r}: a name of a condition or stage is also a folder's; leave / out")
    before: list[str] = []
    for name, stage in study.stages.items():
        if stage.codes < 0:
            raise UserError(f"stages.{name}.codes: expected a number of images, or 0, got {stage.codes}")
        if stage.shared and stage.metrics:
            raise UserError(f"stages.{name}.metrics: this stage is shared by all conditions: nothing to compare")
        if stage.after:
            known(f"stages.{name}.after", stage.after, before)
            if stage.shared and not study.stages[stage.after].shared:
                raise UserError(f"stages.{name}.after: {stage.after} is not shared, and this one is")
        for condition_name in stage.conditions:
            known(f"stages.{name}.conditions", condition_name, study.conditions)
        before.append(name)
    for number, comparison in enumerate(study.comparisons):
        where = f"comparisons[{number}]"
        if comparison.factor:
            known(f"{where}.factor", comparison.factor, study.factors)
        names: Collection[str] = study.factors[comparison.factor] if comparison.factor else study.conditions
        known(f"{where}.condition", comparison.condition, names)
        known(f"{where}.against", comparison.against, names)
        if comparison.condition == comparison.against:
            raise UserError(f"{where}: {comparison.condition} is compared with itself")
    for cell in study.composite:
        stage_name, metric = split_cell(cell, "composite")
        known("composite", stage_name, study.stages)
        known("composite", metric, study.stages[stage_name].metrics)
        if unit := unit_of(label := study.stages[stage_name].metrics[metric]):
            raise UserError(f"composite: expected shares, and {cell} is {label!r}, in {unit}")


def split_cell(cell: str, where: str) -> tuple[str, str]:
    """(stage, metric) of STAGE/METRIC."""
    stage, slash, metric = cell.partition("/")
    if not slash:
        raise UserError(f"{where}: expected STAGE/METRIC, got {cell!r}")
    return stage, metric


def unit_of(label: str) -> str:
    """The unit in brackets at a label's end, or an empty text."""
    return label.rpartition("(")[2].removesuffix(")") if label.endswith(")") else ""


def known(place: str, name: str, names: Any) -> None:
    """Raises UserError: the name is not one of these."""
    if name not in names:
        similar = did_you_mean(name, names)
        raise UserError(f"{place}: expected one of {', '.join(names) or '(none given)'}, got {name!r}{similar}")


def pairs_of(study: Study, comparison: Comparison) -> list[tuple[str, str, str]]:
    """(condition, the one that it is compared with, what both have in common); one, or of a factor as many as the
    others' levels have combinations."""
    if not comparison.factor:
        return [(comparison.condition, comparison.against, "")]
    pairs = []
    place = list(study.factors).index(comparison.factor)
    for levels in product(*study.factors.values()):
        if levels[place] == comparison.condition:
            other = (*levels[:place], comparison.against, *levels[place + 1 :])
            common = ", ".join((*levels[:place], *levels[place + 1 :]))
            pairs.append((", ".join(levels), ", ".join(other), common))
    return pairs
