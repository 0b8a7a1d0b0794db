"""Recipes: YAML with typed fields, overridden on the command line.

--recipe NAME_OR_PATH   a recipe of this package, or a YAML file
--optim.lr 1e-3         any field
--help                  every field, explained, with the recipe's value as its default
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser

from soho_fast.engine.errors import UserError

RecipeType = TypeVar("RecipeType")
BARE_FLAGS = ("--overwrite",)


def find_recipe(name_or_path: str, folder: Path) -> Path:
    """The file of a recipe: a path, or the name of one in `folder`.

    Raises:
        UserError: there is no such file; the message lists the names there are.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UserError(f"recipe: there is no file {path}")
    named = folder / f"{name_or_path}.yaml"
    if named.is_file():
        return named
    names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise UserError(f"recipe: there is no recipe {name_or_path!r}; expected one of {names}, or the path of a YAML file")


def parse_recipe(
    kinds: Mapping[str, type[RecipeType]], arguments: Sequence[str], folder: Path, default: str
) -> tuple[RecipeType, str]:
    """Read a recipe and the command line over it.

    Args:
        kinds: dataclass of a recipe by the name of its task, which the file's field `task` gives (the first where it
            gives none). Docstrings explain the fields.
        arguments: the command line without the program's name.
        folder: where named recipes are.
        default: name of the recipe when none is given.

    Returns:
        (the recipe, its name).

    Raises:
        UserError: unknown recipe, task or field, or a value of another type.
    """
    arguments, name = _take_recipe(list(arguments), default)
    path = find_recipe(name, folder)
    kind = _kind_of(path, kinds)
    parser = _Parser(prog="train.py", description=kind.__doc__.splitlines()[0], default_config_files=[str(path)])
    parser.add_argument("--recipe", default=name, help="Name of a recipe of this package, or path of a YAML file.")
    parser.add_argument("--local_rank", type=int, default=0, help="Given by DeepSpeed's launcher.")
    parser.add_class_arguments(kind)
    try:
        parsed = parser.instantiate(parser.parse_args(arguments))
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"recipe {path}: {' '.join(str(error).split())}") from error
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in vars(parsed).items() if key in names}), path.stem


def _kind_of(path: Path, kinds: Mapping[str, type[RecipeType]]) -> type[RecipeType]:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path}: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path}: not a text file ({error}); expected YAML") from error
    if not isinstance(content, dict):
        came = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"recipe {path}: expected fields with values, got {came}")
    task = content.get("task", next(iter(kinds)))
    if task not in list(kinds):
        raise UserError(f"recipe {path}: task: expected one of {', '.join(kinds)}, got {task!r}")
    return kinds[task]


def fill_places(value: Any, places: dict[str, str]) -> Any:
    """Replace `{name}` in every string within dataclasses, lists and dicts by `places[name]`.

    Raises:
        UserError: a string names a place that is not given.
    """
    if isinstance(value, str):
        for name, place in places.items():
            if f"{{{name}}}" in value:
                if not place:
                    raise UserError(f"places.{name}: {value!r} needs it; give --places.{name} FOLDER")
                value = value.replace(f"{{{name}}}", place)
        return value
    if isinstance(value, list):
        return [fill_places(item, places) for item in value]
    if isinstance(value, dict):
        return {key: fill_places(item, places) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        changes = {field.name: fill_places(getattr(value, field.name), places) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value


def write_recipe(recipe: Any, path: Path) -> None:
    """Write a recipe with all its values, so that the run can be continued or repeated from the file."""
    values = dataclasses.asdict(recipe) | {"resume": "auto", "overwrite": False}
    # Numbers of jsonargparse's restricted types are plain ones after JSON.
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False))


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(f"{' '.join(str(message).split())} (--help lists every field)") from ex


def _take_recipe(arguments: list[str], default: str) -> tuple[list[str], str]:
    """Take --recipe out, since its file gives the defaults of all else, and spell bare flags out."""
    rest, name, at = [], default, 0
    while at < len(arguments):
        argument = arguments[at]
        following = arguments[at + 1] if at + 1 < len(arguments) else None
        if argument == "--recipe":
            if following is None:
                raise UserError("recipe: expected a name or a path after --recipe")
            name = following
            at += 1
        elif argument.startswith("--recipe="):
            name = argument.removeprefix("--recipe=")
        elif argument in BARE_FLAGS and (following is None or following.startswith("-")):
            rest.append(f"{argument}=true")
        else:
            rest.append(argument)
        at += 1
    return rest, name


def fail(message: str, rank: int) -> int:
    """Print one line and give exit code 2.

    Most mistakes meet all ranks; the first one prints, and DeepSpeed's launcher ends the others within a second or two
    of its exit. Only a mistake that the first rank did not make is left for another to print.
    """
    if rank:
        time.sleep(4)
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n" if rank == 0 else f"error on rank {rank}: {message}\n")
    sys.stderr.flush()
    return 2
