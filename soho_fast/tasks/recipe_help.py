"""What `soho train --help` prints: every setting of a recipe, the model's values first, in the order of the paper."""

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from soho_fast.common.errors import UserError
from soho_fast.common.extras import from_extra
from soho_fast.common.spelling import did_you_mean
from soho_fast.model.values import GROUPS, PRESETS, ModelChanges, ModelValues

with from_extra("train"):
    from docstring_parser import parse

_OTHERS = "The run"
# The parts of a recipe behind the model's values, in this order, by what its settings begin with.
_PARTS = {
    "Optimiser (section 4.1)": ("optim.",),
    "Schedule (section 4.1)": ("schedule.", "epochs", "max_steps", "max_minutes"),
    "Batches": ("batch.",),
    "Starting weights, and losses of your own": ("model.",),
    "Data": ("data.", "data_roots", "corpus."),
    "Evaluation": ("evaluation.",),
    _OTHERS: (),
    "Checkpoints and logs": ("checkpoint.", "log."),
    "Engine": ("engine.",),
}


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe.

    Args:
        name: Its dotted name; `[]` stands for a place in a list, `NAME` for a name in a section.
        owner: The dataclass that has it.
        kind: Its type.
        default: Its value where none is given.
        text: Its explanation.
    """

    name: str
    owner: type
    kind: Any
    default: Any
    text: str

    @property
    def summary(self) -> str:
        """The explanation's first sentence."""
        return re.split(r"\. (?=[A-Z`])", self.text, maxsplit=1)[0].rstrip(".")


@cache
def _explained(owner: type) -> dict[str, str]:
    """What the docstrings of a dataclass say of its fields, the nearest one counting."""
    found: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        if dataclasses.is_dataclass(each) and each.__doc__:
            described = {param.arg_name: param.description or "" for param in parse(each.__doc__).params}
            found |= {name: " ".join(text.split()) for name, text in described.items()}
    return found


def settings_of(owner: type, values: Any = None, place: str = "") -> Iterator[Setting]:
    """Every setting of a dataclass and of those within it, with the defaults that `values` has; a dataclass that two
    lists hold is gone through once.

    Args:
        owner: The dataclass.
        values: One of them; None: its defaults.
        place: Its dotted name.
    """
    yield from _settings(owner, values, place, set())


def _settings(owner: type, values: Any, place: str, held: set[type]) -> Iterator[Setting]:
    kinds: dict[str, Any] = get_type_hints(owner)
    for each in dataclasses.fields(owner):
        kind: Any = kinds[each.name]
        name = f"{place}.{each.name}" if place else each.name
        value = getattr(values, each.name, None)
        inner: list[Any] = [inside for inside in get_args(kind) if dataclasses.is_dataclass(inside)]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _settings(kind, kind() if value is None else value, name, held)
        elif not inner or inner[0] in held:
            text = _explained(owner).get(each.name, "")
            yield Setting(name, owner, kind, value, text + (f" Fields as of {inner[0].__name__}." if inner else ""))
        else:
            held.add(inner[0])
            yield from _settings(inner[0], inner[0], name + ("[]" if kind.__origin__ is list else ".NAME"), held)


def _default(setting: Setting, recipe: Any) -> str:
    value = setting.default
    if setting.owner is ModelChanges and value is None:
        name = setting.name.rpartition(".")[2]
        value = PRESETS[recipe.model.preset].get(name, getattr(ModelValues(), name))
    if value is None or value == "" or value == [] or value == {}:
        return "none"
    if dataclasses.is_dataclass(value) or isinstance(value, dataclasses._MISSING_TYPE | type | property):
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def help_text(recipe: Any, field: str = "") -> str:
    """The page of a recipe's settings with its values, or all that is said of one setting.

    Args:
        recipe: A `Recipe`.
        field: A setting's name or the end of one; empty: the page.

    Raises:
        UserError: there is no such setting.
    """
    settings = list(settings_of(type(recipe), recipe))
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)
    if field:
        return "\n\n".join(_at_length(each, recipe, width) for each in _named(settings, field.lstrip("-")))
    lines = [f"usage: soho train --recipe NAME [--FIELD VALUE ...]; the values are those of recipe {recipe.name}.", ""]
    for title, members in _grouped(settings).items():
        lines += [title, *(line for each in members for line in _in_short(each, recipe, width)), ""]
    lines += [
        "--help FIELD says all of a setting; --recipe takes a name of this package or the path of a YAML file;",
        "--trust-file imports what the recipe's file names: own code, log.trackers.",
        "Example: soho train --recipe own --data_roots.images my_images",
    ]
    return "\n".join(lines)


def _named(settings: list[Setting], field: str) -> list[Setting]:
    found = [each for each in settings if each.name == field or each.name.endswith(f".{field}")]
    found = found or [each for each in settings if each.name.startswith(f"{field}.")]
    if not found:
        names = [each.name for each in settings]
        similar = did_you_mean(field, names) or did_you_mean(field, [name.rpartition(".")[2] for name in names])
        raise UserError(f"--help: there is no setting {field}{similar or '; --help alone lists them'}")
    return found


def _grouped(settings: list[Setting]) -> dict[str, list[Setting]]:
    found: dict[str, list[Setting]] = {title: [] for title in (*GROUPS, *_PARTS)}
    title_of = {f"model.config.{name}": title for title, names in GROUPS.items() for name in names}
    for each in settings:
        of_parts = (title for title, parts in _PARTS.items() if each.name.startswith(parts))
        found[title_of.get(each.name) or next(of_parts, _OTHERS)].append(each)
    return found


def _in_short(setting: Setting, recipe: Any, width: int) -> list[str]:
    head = f"  --{setting.name} {_default(setting, recipe)}"
    column = 46
    lines = textwrap.wrap(setting.summary, width - column)
    if len(head) < column - 1 and lines:
        head = f"{head:{column}}{lines.pop(0)}"
    return [head, *(" " * column + line for line in lines)]


def _at_length(setting: Setting, recipe: Any, width: int) -> str:
    kind = getattr(setting.kind, "__name__", None) if isinstance(setting.kind, type) else None
    kind = kind or str(setting.kind).replace("typing.", "").replace("NoneType", "None")
    head = f"--{setting.name} ({kind}; recipe {recipe.name}: {_default(setting, recipe)})"
    return "\n".join([head, *textwrap.wrap(setting.text, width, initial_indent="  ", subsequent_indent="  ")])
