"""Recipes: YAML over the typed settings of the engine and of the tasks, overridden on the command line.

--recipe NAME_OR_PATH   a recipe of this package (recipes/NAME.yaml), or a YAML file
--optim.lr 1e-3         any field
--help                  every field, explained, with the recipe's value as its default

jsonargparse reads the types and the docstrings. Its own `--config` is not used: a recipe's field `task` decides which
fields there are, so the file is read before the parser is made.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import json
import math
import re
import shlex
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from soho_fast.common.extras import from_extra

with from_extra("train"):
    import yaml
    from jsonargparse import ArgumentParser

    from soho_fast.common.command_line import Parser, as_text, flags_of, in_plain_words
    from soho_fast.common.errors import UserError
    from soho_fast.common.hub import check_name, no_such_path
    from soho_fast.common.import_path import OPTIMISERS, is_import_path, is_trusted, load
    from soho_fast.common.spelling import did_you_mean
    from soho_fast.engine.settings import TrainSettings
    from soho_fast.model.values import TRANSFORMERS
    from soho_fast.tasks import TASKS, find_task
    from soho_fast.tasks.recipe_file import check_fields, find_yaml, read_yaml, texts_in
    from soho_fast.tasks.recipe_help import help_text

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
# Fields that may name code by import path.
_CODE = (
    "task", "model.config.*", "model.text_encoder", "model.losses.*.path", "optim.*rule", "log.trackers*",
    "data.*.format",
)  # fmt: skip
ANNOTATION_FILES = ("annotations", "questions", "exclude_held_out_of")
"""Fields of the data that name files."""


@dataclass
class Recipe(TrainSettings):
    """What the recipes of all tasks have; `recipe_type` adds a task's own `task`, `data` and `model`.

    Args:
        data_roots: Folders that the strings of `corpus`, `data` and `model` name as {key}; one that is named as {key?}
            can be left out, and the field is null then, or the list without it.
        corpus: Folder of the demo corpus, which is built where it is absent (of other sizes: soho corpus); empty uses
            none.
    """

    data_roots: dict[str, str] = field(default_factory=dict)
    corpus: str = ""
    name = ""  # That of its file; no field, since it follows from where the file lies.
    trusted_trackers = ()  # Of `log.trackers` those that the command line gives, or a trusted file; no field either.
    if TYPE_CHECKING:  # `task`, `data` and `model`, which `recipe_type` adds

        def __getattr__(self, name: str) -> Any: ...

    def make_task(self, say: Callable[[str], None], processes: Any = None) -> Any:
        """The recipe's `BaseTask`, imported here; reads nothing yet.

        Args:
            say: Called with each line of what is found.
            processes: Those that make the task together, `Processes`, and read its training data together; None: this
                one alone.
        """
        task = find_task(self.task).load()(self.data, self.seed, self.model, say=say)
        task.workers, task.precision = self.batch.workers, self.engine.precision
        task.processes = processes or task.processes
        return task


@cache
def recipe_type(name: str) -> type[Recipe]:
    """The dataclass of everything one run of a task needs."""
    task = find_task(name)
    fields = [
        # Of a name that is written out jsonargparse refuses any other; a path may stand in the place of a name.
        ("task", Literal[name] if name in TASKS else str, field(default=name)),
        ("data", task.data_type, field(default_factory=task.data_type)),
        ("model", task.model_type, field(default_factory=task.model_type)),
    ]
    doc = f"""{task.purpose}: everything one run needs.

    Args:
        task: What is trained.
        data: Training and held-out data.
        model: Model and its starting weights.
    """
    recipe = dataclasses.make_dataclass(
        f"{name.rpartition(':')[2]}_recipe", fields, bases=(Recipe,), namespace={"__doc__": doc}
    )
    recipe.__module__ = __name__
    return recipe


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe: a path, or the name of one of this package.

    Raises:
        UserError: there is no such file; the message lists the names there are.
    """
    return find_yaml("recipe", name_or_path, RECIPES)


def load_recipe(
    arguments: Sequence[str] | None = None, *, flags: Sequence[str] = (), with_files: bool = False
) -> Recipe:
    """The recipe of a command line, ready to use: read, its data roots filled in, its output named.

    Args:
        arguments: The command line without the program's name; None: the process's own.
        flags: What the command takes beside a recipe's fields: a mistyped argument may have meant one of them.
        with_files: Refuse files and folders of the training data and the starting weights that are not there.

    Raises:
        UserError: a mistake in the recipe or on the command line.
    """
    recipe = with_data_roots(read_recipe(arguments, flags))
    if with_files:
        _refuse_foreign_code(dataclasses.asdict(recipe), recipe.name, recipe.trusted_trackers)
        _check_files(recipe)
    recipe.output = recipe.output or f"runs/{recipe.name}"
    return recipe


def read_recipe(arguments: Sequence[str] | None, flags: Sequence[str] = ()) -> Recipe:
    """As `load_recipe`, but as it is written: `{key}` of data roots is not yet filled in."""
    first = Parser(add_help=False)
    first.add_argument("--recipe", default="mini")
    first.add_argument("--trust-file", "--trust_file", action="store_true")
    first.add_argument("--task")
    first.add_argument("-h", "--help", nargs="?", const="")
    given, fields = first.parse_known_args(as_text(arguments))
    path = find_recipe(given.recipe)
    content = read_yaml(path)
    if given.task is not None:
        fields.append(f"--task={given.task}")
    content["task"] = given.task if is_import_path(given.task) else _task_of(content, path)
    of_task = {"task": content["task"]}
    # The task's module first: only its class says which other fields there are.
    _import_code(of_task, {"task": given.task}, given.trust_file)
    _refuse_foreign_code(of_task, path.stem)
    kind = recipe_type(content["task"])
    check_fields(content, kind, path)
    recipe, values = _parse(kind, path, fields, flags)
    by_user = values.get("log", {}).get("trackers") or ()
    recipe.trusted_trackers = tuple(recipe.log.trackers if given.trust_file else by_user)
    if given.help is not None:
        print(help_text(recipe, given.help))
        raise SystemExit(0)
    if recipe.task != content["task"]:
        raise UserError(f"task: recipe {path} is of task {content['task']}, got {recipe.task!r}")
    _import_code(dataclasses.asdict(recipe), values, given.trust_file)
    for place, value in _values(dataclasses.asdict(recipe)):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{place}: expected a finite number, got {value}")
    # A root that nothing names is mistyped: it would be passed over without a word.
    known, named = content.get("data_roots", {}), str((recipe.corpus, recipe.data, recipe.model))
    for root in [*(recipe.data_roots.keys() - known), *re.findall(r"--data_roots\.([^\s=]+)", " ".join(fields))]:
        if not re.search(rf"\{{{re.escape(root)}\??\}}", named):
            whole = "; a run's recipe has whole paths: where its data have moved, give --recipe NAME"
            hint = whole if root in known else did_you_mean(root, known)
            raise UserError(f"data_roots.{root}: nothing in recipe {path} names {{{root}}}{hint}")
    return recipe


def _parse(kind: type[Recipe], path: Path, fields: list[str], flags: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe in a file, with fields of the command line put over it; and the values of these fields."""
    assert kind.__doc__ is not None  # of all that `recipe_type` makes
    options: dict[str, Any] = {
        "default_config_files": [glob.escape(str(path.absolute()))],
        "allow_abbrev": False,
        "exit_on_error": False,
    }
    options["epilog"] = "Example: soho train --recipe own --data_roots.images my_images"
    parser = ArgumentParser("soho train", description=kind.__doc__.splitlines()[0], **options)
    parser.add_argument("--recipe", default="mini", help="Name of a recipe of this package, or path of a YAML file.")
    parser.add_argument(
        "--trust-file", action="store_true", help="Import what the recipe's file names: own code, log.trackers."
    )
    parser.add_argument("--local_rank", type=int, default=0, help="Given by DeepSpeed's launcher.")
    parser.add_class_arguments(kind)
    where, roots = f"recipe {path}: ", []
    try:
        alone = parser.instantiate(parser.parse_args([]))  # The file's mistakes are reported with its name.
        where, roots = "", [f"--data_roots.{name}" for name in alone.data_roots]
        # Over an empty list: else jsonargparse takes what a source leaves out from that of the file in its place.
        lists = {each.partition("=")[0] for each in fields} & {"--data.sources", "--data.heldout"}
        fields = [*(f"{each}=[]" for each in sorted(lists)), *fields]
        given = parser.parse_args(fields, defaults=False).as_dict()
        parsed = parser.instantiate(parser.parse_args(fields))
    except ArgumentError as error:
        raise UserError(f"{where}{in_plain_words(str(error), [*flags, *flags_of(parser), *roots])}") from error
    except (TypeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{where}{error}") from error
    recipe = kind(**{each.name: getattr(parsed, each.name) for each in dataclasses.fields(kind)})
    recipe.name = path.stem
    return recipe, given


def _values(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all that dicts and lists hold."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _values(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _values(item, f"{place}[{number}]")
    else:
        yield place, value


def _task_of(content: dict[str, Any], path: Path) -> str:
    task = content.get("task", next(iter(TASKS)))
    if task not in list(TASKS) and not is_import_path(task):
        known, similar = ", ".join(TASKS), did_you_mean(task, TASKS)
        own = "; one of your own has an import path, my.module:MyTask"
        raise UserError(f"recipe {path}: task: expected one of {known}, got {task!r}{similar or own}")
    return task


def code_named(content: Any) -> Iterator[tuple[str, str]]:
    """(dotted name, import path) of what a recipe's values name by import path, but for torch's optimisers."""
    for name, value in _values(content):
        if isinstance(value, str) and any(fnmatchcase(name, pattern) for pattern in _CODE):
            # Of a rule by shape both sides.
            for text in dict.fromkeys(value.split("/") if name.startswith("optim.") else texts_in(value)):
                if is_import_path(text) and not (text.startswith(OPTIMISERS) and name.startswith("optim.")):
                    yield name, text


def _import_code(content: Any, given: Any, trust_file: bool) -> None:
    """Import what a recipe's values name by import path, as far as those of the command line name it too, or the file
    is trusted. What else needs it finds only what is imported already (`load_imported`)."""
    by_user = {path for _, path in code_named(given)}
    for place, path in code_named(content):
        if trust_file or path in by_user:
            load(path, place)


def _refuse_foreign_code(content: Any, source: str, trusted_trackers: Sequence[str] = ()) -> None:
    """Raises UserError: the recipe's file, which may be another's, names code that no user has named."""
    named = [(place, path, path) for place, path in code_named(content) if not is_trusted(path)]
    trackers = ", ".join(name for name in content.get("log", {}).get("trackers", []) if name not in trusted_trackers)
    if trackers:
        named.append(("log.trackers", trackers, f"'[{trackers}]'"))
    for place, what, given in named:
        raise UserError(
            f"{place}: recipe {source} wants {what} imported, which a file alone may not; give --{place} {given}, or "
            "--trust-file to take what the file says"
        )


def with_data_roots(recipe: Recipe) -> Recipe:
    """The recipe with `{key}` replaced in the strings of `corpus`, `data` and `model`.

    There and as a root `package:NAME/PATH` is that path in an installed Python package.

    Raises:
        UserError: a string names a root that is not given, or the package is not installed.
    """
    roots = {name: _in_package(root, f"data_roots.{name}") for name, root in recipe.data_roots.items()}
    filled = copy(recipe)
    for part in ("corpus", "data", "model"):
        setattr(filled, part, _fill(getattr(recipe, part), roots))
    return filled


def _in_package(path: str, place: str) -> str:
    """A path in an installed package, of `package:NAME/PATH`; any other as it is."""
    if not path.startswith("package:"):
        return path
    package, _, inside = path.removeprefix("package:").partition("/")
    # Of a dotted name it would import what stands before the dot.
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"{place}: there is no Python package {package}; install it (pip install {package.replace('_', '-')}) or "
            "give a folder"
        )
    return str(Path(found.submodule_search_locations[0]) / inside)


def _fill(value: Any, roots: dict[str, str]) -> Any:
    """Replace `{name}` in every string within dataclasses, lists and dicts by `roots[name]`.

    A string with `{name?}` becomes None where there is no such root, or leaves its list.
    """
    if isinstance(value, str):
        if any(not roots.get(name) for name in re.findall(r"\{([^{}]+)\?\}", value)):
            return None
        for name, root in roots.items():
            value = value.replace(f"{{{name}?}}", root)
            if f"{{{name}}}" in value:
                if not root:
                    raise UserError(f"data_roots.{name}: {value!r} needs it; give --data_roots.{name} FOLDER")
                value = value.replace(f"{{{name}}}", root)
        library = TRANSFORMERS if value.startswith(TRANSFORMERS) else ""
        return library + _in_package(value.removeprefix(library), value)
    if isinstance(value, list | tuple):
        filled = ((item, _fill(item, roots)) for item in value)
        return type(value)(new for item, new in filled if new is not None or item is None)
    if isinstance(value, dict):
        return {key: _fill(item, roots) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: _fill(getattr(value, field.name), roots) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value


def _check_files(recipe: Any) -> None:
    """Raises UserError: a file or a folder is not there. What lies in the demo corpus may be built yet."""

    def is_built(path: str) -> bool:
        return bool(recipe.corpus) and Path(path).is_relative_to(recipe.corpus)

    for place, path in _annotation_files(recipe):
        # A data set is a folder, or a pattern; what reads one file says so of a folder.
        if not Path(path).exists() and not glob.glob(path) and not is_built(path):
            for name, root in recipe.data_roots.items():
                if root and Path(path).is_relative_to(root) and not Path(root).is_dir():
                    what = "is a file" if Path(root).exists() else no_such_path(root)
                    raise UserError(f"data_roots.{name}: {root}: {what}; expected a folder")
            raise UserError(f"{place}: {path}: {no_such_path(path)}")
    backbone = recipe.model.config.backbone or ""
    names = [
        ("data.tokenizer", recipe.data.tokenizer, False),
        ("model.text_encoder", recipe.model.text_encoder, False),
        ("model.pretrained", recipe.model.pretrained, True),
        ("model.backbone", recipe.model.backbone, True),
        ("model.config.backbone", backbone[len(TRANSFORMERS) :] if backbone.startswith(TRANSFORMERS) else None, True),
    ]
    for place, name, needs_owner in names:
        if name not in (None, "imagenet") and not is_built(name) and not is_import_path(name):
            try:
                check_name(name, needs_owner=needs_owner)
            except FileNotFoundError as error:
                hint = f"; make it: {tokenizer_command(recipe)}" if place == "data.tokenizer" else ""
                raise UserError(f"{place}: {error}{hint}") from error


def _annotation_files(recipe: Any) -> Iterator[tuple[str, str]]:
    for place, path in _values(dataclasses.asdict(recipe.data), "data"):
        if path is not None and place.rpartition(".")[2].partition("[")[0] in ANNOTATION_FILES:
            yield place, path


def tokenizer_command(recipe: Any) -> str:
    """What makes `data.tokenizer` of a recipe's annotation files."""
    files = dict.fromkeys(path for _, path in _annotation_files(recipe) if Path(path).is_file())
    return shlex.join(["soho", "tokenizer", *(files or ["FILE"]), recipe.data.tokenizer])


def write_recipe(recipe: Any, path: Path) -> None:
    """Write a recipe with all its values, so that the run can be continued or repeated from the file."""
    from soho_fast.common.files import write_atomically

    values = dataclasses.asdict(recipe) | {"resume": "auto"}
    # Numbers of jsonargparse's restricted types are plain ones after JSON.
    write_atomically(path, yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False))


def build_demo_corpus(folder: str, processes: Any) -> None:
    """Build it, or what is missing of one that is there, of the sizes that this has. The first rank builds; then one
    rank of each further machine, which keeps what it finds on a shared disk."""
    if not folder:
        return
    from soho_fast.data.mini.builder import build_corpus, read_manifest
    from soho_fast.data.mini.options import CorpusOptions

    for turn in (processes.is_main, processes.local_rank == 0 and not processes.is_main):
        if turn:
            there = (read_manifest(Path(folder)) or {}).get("settings", {})
            sizes = {each.name: there[each.name] for each in dataclasses.fields(CorpusOptions) if each.name in there}
            build_corpus(folder, **sizes, progress=processes.is_main)
        processes.wait()
