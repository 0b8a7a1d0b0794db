"""The runs of a study: recipes with all overrides, and how they are identified."""

import copy
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from soho_fast.common.errors import UserError
from soho_fast.studies.results import Row
from soho_fast.studies.study import STUDIES, Study, known
from soho_fast.tasks import TASKS
from soho_fast.tasks.identity import OF_A_STUDY
from soho_fast.tasks.recipe import code_named, find_recipe, recipe_type
from soho_fast.tasks.recipe_file import check_fields, read_yaml

# What is measured, which a row depends on, though no training does.
_IDENTIFYING = ("evaluation.at_end",)


@dataclass(frozen=True)
class Cell:
    """Where a run stands in the matrix."""

    condition: str
    seed: int
    stage: str

    def __str__(self) -> str:
        return f"{self.condition} seed {self.seed} {self.stage}"


@dataclass
class Run:
    """One training and what it is measured on.

    Attributes:
        cell: Where it stands in the matrix.
        cells: That, and where runs would stand that have the same settings.
        recipe: Name of the recipe it began as.
        content: Its recipe's fields with all overrides.
        splits, codes: As those of `Stage`.
        start: The run whose model it starts from.
        launcher: As that of `Condition`.
    """

    cell: Cell
    recipe: str
    content: dict[str, Any]
    splits: Mapping[str, Mapping[str, Any]]
    codes: int
    start: "Run | None" = None
    launcher: str = ""
    dependents: list["Run"] = field(default_factory=list, repr=False)
    cells: list[Cell] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = [self.cell]

    @cached_property
    def digest(self) -> str:
        """Of all that its metrics depend on, as far as recipes say it."""
        parts = [identity(self.content), self.splits, self.codes, self.start.digest if self.start else None]
        parts += [{"launcher": self.launcher}] if self.launcher else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self, root: Path) -> Path:
        """Its own, within the study's."""
        name = f"{self.cell.stage.replace(' ', '_')}-{self.digest[:8]}"
        return root / "runs" / self.cell.condition.replace(" ", "_") / f"seed{self.cell.seed}" / name

    def model(self, root: Path) -> Path:
        """Where its model lies once it is trained."""
        return self.folder(root) / "training" / "model"


def runs_of(study: Study, overrides: Mapping[str, Any] | None = None) -> list[Run]:
    """All runs, those of a seed together, so that an interrupted study has whole pairs. Equal ones are one run.

    Args:
        study: The study.
        overrides: Fields of every run by dotted names, put over all else; of data roots each recipe takes its own.

    Raises:
        UserError: a recipe has no such field or split.
    """
    runs: dict[str, Run] = {}
    for seed in sorted({seed for condition in study.conditions.values() for seed in condition.seeds or study.seeds}):
        for condition_name, condition in study.conditions.items():
            if seed not in (condition.seeds or study.seeds):
                continue
            made: dict[str, Run] = {}
            for stage_name, stage in study.stages.items():
                if stage.conditions and condition_name not in stage.conditions:
                    continue
                if stage.after and stage.after not in made:
                    raise UserError(
                        f"stages.{stage_name}: condition {condition_name} has no {stage.after} to start from"
                    )
                cell = Cell(condition_name, seed, stage_name)
                parts: list[Mapping[str, Any]] = [study.overrides, stage.overrides]
                parts += [] if stage.shared else [condition.overrides]
                parts += [condition.stages.get(stage_name, {}), overrides or {}]
                content = recipe_content(stage.recipe, parts, str(cell))
                for name, fields in stage.splits.items():
                    _check_split(name, fields, stage.recipe, content, f"stages.{stage_name}.splits")
                _leave_out_roots(content, overrides or {})
                content["seed"] = 0 if stage.shared else seed + condition.seed_offset
                start = made.get(stage.after)
                launcher = "" if stage.shared else condition.launcher
                run = Run(cell, stage.recipe, content, stage.splits, stage.codes, start, launcher)
                made[stage_name] = runs.setdefault(run.digest, run)
                if made[stage_name] is not run:
                    made[stage_name].cells += [] if stage.shared else [cell]
                elif start is not None:
                    start.dependents.append(run)
    return list(runs.values())


def refuse_foreign_code(runs: Sequence[Run], path: Path, overrides: Mapping[str, Any]) -> None:
    """Raises UserError: a study's file, which may be another's, or a recipe that it names, names programs that its runs
    would start or import. Those of this package may, and what the command line says.

    Args:
        runs: The study's.
        path: Its file.
        overrides: Fields that were given on the command line.
    """
    for run in [] if path.resolve().parent == STUDIES else runs:
        trackers = None if "log.trackers" in overrides else run.content.get("log", {}).get("trackers")
        code = [f"{place}: {named}" for place, named in code_named(run.content) if named not in str(overrides)]
        if run.launcher or trackers or code:
            named = (
                f"launcher: {run.launcher}" if run.launcher else f"log.trackers: {trackers}" if trackers else code[0]
            )
            raise UserError(
                f"study {path}: {run.cell}: {named!r:.200}, which a file alone may not; --trust-file takes what the "
                "file says, or delete it there and give it on the command line (--launcher, --log.trackers)"
            )


def _check_split(name: str, fields: Mapping[str, Any], recipe: str, content: Mapping[str, Any], where: str) -> None:
    """Raises UserError: the recipe has no such split, or no such field of `fields`, which are put over it."""
    if content.get("task", next(iter(TASKS))) != "pretraining":
        known(where, name, content.get("data", {}).get("splits", {}))
    recipe_content(recipe, [fields], f"{where}.{name}")


def chosen(runs: list[Run], what: str, names: Collection[Any]) -> list[Run]:
    """Those of some conditions, seeds or stages, and those that they start from.

    Raises:
        UserError: there is no run of a name.
    """
    there = list(dict.fromkeys(getattr(cell, what) for run in runs for cell in run.cells))
    for name in names:
        if name not in there:
            raise UserError(f"{what}s: expected some of {', '.join(map(str, there))}, got {name!r}")
    wanted = {id(run) for run in runs if any(getattr(cell, what) in names for cell in run.cells)}
    # What a run starts from stands before it, and may itself start from another.
    for run in reversed(runs):
        if id(run) in wanted and run.start is not None:
            wanted.add(id(run.start))
    return [run for run in runs if id(run) in wanted]


def recipe_content(recipe: str, overrides: list[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Fields of a recipe with others put over them, one mapping after the other.

    Raises:
        UserError: there is no such recipe or field.
    """
    path = find_recipe(recipe)
    content = copy.deepcopy(_read(path))
    for part in overrides:
        for name, value in part.items():
            if name == "seed":
                raise UserError(
                    f"{where}: seed: a study gives each run its seed; expected it among the seeds (--seeds)"
                )
            put(content, name, value)
    try:
        check_fields(content, recipe_type(content.get("task", next(iter(TASKS)))), path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return content


def of_other_data(runs: Sequence[Run], rows: Mapping[str, Row]) -> list[str]:
    """A line for each run whose data were not those of the runs before it, though both name the same: rows of other
    data roots, or of a corpus that has changed.

    Args:
        runs: The runs.
        rows: Theirs, by digest.
    """
    first: dict[str, tuple[Run, str]] = {}
    lines = []
    for run in runs:
        settings = {
            name: value for name, value in identity(run.content).items() if name.startswith(("data.", "corpus."))
        }
        for what, content in rows[run.digest].get("data", {}).items() if run.digest in rows else ():
            # Which share of it is trained on is drawn by the seed.
            seed = run.content["seed"] if what.startswith("training ") else None
            other, known = first.setdefault(json.dumps([what, seed, run.recipe, settings]), (run, content))
            if content != known:
                lines.append(f"{run.cell}: another {what} than of {other.cell}: {content}, not {known}")
    return lines


def _leave_out_roots(content: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Take out the data roots that were given for all recipes and that this one does not name."""
    named = json.dumps(content)
    for name in overrides:
        root = name.removeprefix("data_roots.")
        if root != name and f"{{{root}}}" not in named and f"{{{root}?}}" not in named:
            content["data_roots"].pop(root, None)


def put(content: dict[str, Any], name: str, value: Any) -> None:
    """Set a field by its dotted name; what has fields on both sides is put together. The value `default` takes the
    field out, as in a recipe that does not give it."""
    *parents, last = name.split(".")
    for parent in parents:
        if not isinstance(content.get(parent), dict):
            content[parent] = {}
        content = content[parent]
    if isinstance(value, Mapping) and isinstance(content.get(last), dict):
        for inner, item in value.items():
            put(content[last], inner, item)
    elif value == "default":
        content.pop(last, None)
    else:
        content[last] = copy.deepcopy(value)


def identity(content: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted name, the fields that a recipe gives and its metrics depend on. (Not the defaults: a field that is new
    and does nothing by default leaves a study's rows valid.)"""
    return {
        name: value
        for name, value in _flat(content)
        if name in _IDENTIFYING or not any(fnmatchcase(name, pattern) for pattern in OF_A_STUDY)
    }


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


_read = cache(read_yaml)
