"""A recipe's YAML file, read strictly: what is not a field, comes twice or holds nothing is refused, by its place."""

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from soho_fast.common.extras import from_extra
from soho_fast.common.spelling import did_you_mean

with from_extra("train"):
    import yaml

    from soho_fast.common.errors import UserError
    from soho_fast.common.hub import no_such_path

# A recipe of the package has some hundred values; aliases of aliases can stand for more than any memory holds.
_MOST_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"
_PLAIN = tuple(_TAG + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge"))


def find_yaml(kind: str, name_or_path: str, folder: Path) -> Path:
    """The file of a recipe or a study: a path, or the name of one in the package's folder of these.

    Raises:
        UserError: there is no such file; the message begins with the kind, and lists the names there are.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_file():
            return path
        if path.is_dir():
            own = path / f"{kind}.yaml"
            inside = f"; did you mean {own}?" if own.is_file() else ""
            raise UserError(f"{kind}: {path} is a folder; expected a YAML file{inside}")
        if path.name == name_or_path and (folder / path.with_suffix(".yaml")).is_file():
            raise UserError(f"{kind}: there is no file {path}; did you mean {path.stem}, the {kind} of that name?")
        raise UserError(f"{kind}: {path}: {no_such_path(path)}")
    named = folder / f"{name_or_path}.yaml"
    if named.is_file():
        return named
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    raise UserError(
        f"{kind}: there is no {kind} {name_or_path!r}; expected one of {', '.join(names)}, or the path of a YAML file"
        f"{did_you_mean(name_or_path, names)}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields of a file.

    Raises:
        UserError: it can't be read, or is not YAML with fields, each once.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _count(node, path, {})
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path}: not a text file ({error}); expected YAML") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"recipe {path}: {_in_plain_words(error, text)}") from error
    if not isinstance(content, dict):
        came = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"recipe {path}: expected fields with values, got {came}")
    return content


def _count(node: yaml.Node, path: Path, counts: dict[int, int]) -> int:
    """The values that a node stands for, with those of its aliases; 0 of one that is being counted holds itself."""
    line = node.start_mark.line + 1
    if counts.get(id(node)) == 0:
        raise UserError(f"recipe {path}, line {line}: what & names holds itself by *; write it out")
    if node.tag not in _PLAIN:
        came = f"a {node.tag.removeprefix(_TAG)} ({_shown(node):.60})"
        raise UserError(f"recipe {path}, line {line}: expected a text, number, list or section, got {came}")
    if id(node) not in counts:
        counts[id(node)] = 0
        total, seen = 1, set()
        for part in node.value if isinstance(node, yaml.CollectionNode) else ():
            if not isinstance(part, tuple):
                total += _count(part, path, counts)
                continue
            key, value = part
            here = key.start_mark.line + 1
            if key.tag != f"{_TAG}str" and key.tag != f"{_TAG}merge":
                raise UserError(f"recipe {path}, line {here}: expected a name before the colon, got {_shown(key)}")
            if key.value in seen:
                raise UserError(f"recipe {path}, line {here}: {key.value} comes twice; keep one of them")
            seen.add(key.value)
            total += _count(value, path, counts)
        if total > _MOST_VALUES:
            raise UserError(f"recipe {path}, line {line}: stands for more than {_MOST_VALUES:,} values by its aliases")
        counts[id(node)] = total
    return counts[id(node)]


def _shown(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else f"a {node.id}"


def _in_plain_words(error: Exception, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, RecursionError):
        return "nested too deep"
    if mark is None:
        return " ".join(str(error).split())
    where = f"line {mark.line + 1}"
    line = (text.splitlines() or [""])[min(mark.line, len(text.splitlines()) - 1)]
    if line[: mark.column + 1].isspace() and "\t" in line[: mark.column + 1]:
        return f"{where}: a tab before the field; YAML is indented by spaces"
    return f"{where}: {' '.join(str(error.problem).split())}; expected YAML, `field: value`"


def check_fields(content: Any, kind: Any, path: Path, place: str = "") -> None:
    """Refuse what a dataclass, or a list or dict of them, does not have; values of other types are left alone.

    Raises:
        UserError: an unknown field, a section that holds nothing, or a value where fields are expected.
    """
    where = f"recipe {path}: {place}"
    if dataclasses.is_dataclass(kind):
        types = get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        if content is None:
            raise UserError(f"{where}: the section is empty; give it fields, or leave it out")
        if not isinstance(content, dict):
            some = f"{', '.join(fields[:3])}, ..." if len(fields) > 3 else ", ".join(fields)
            raise UserError(f"{where}: expected fields ({some}), got {content!r}"[:400])
        for name, value in content.items():
            inside = f"{place}.{name}" if place else name
            if name not in fields:
                nested = f"; expected a section `{name.partition('.')[0]}:`" if "." in name else ""
                raise UserError(
                    f"recipe {path}: there is no field {inside}{nested or did_you_mean(name, fields)} (--help lists "
                    "every field)"
                )
            check_fields(value, types[name], path, inside)
    elif get_origin(kind) is list and dataclasses.is_dataclass(get_args(kind)[0]):
        if not isinstance(content, list):
            raise UserError(f"{where}: expected a list, each item with its fields, got {content!r}"[:400])
        for number, item in enumerate(content):
            check_fields(item, get_args(kind)[0], path, f"{place}[{number}]")
    elif get_origin(kind) is dict:
        if content is None:
            raise UserError(f"{where}: the section is empty; give it fields, or leave it out")
        if not isinstance(content, dict):
            raise UserError(f"{where}: expected names with their values, got {content!r}"[:400])
        for name, value in content.items():
            check_fields(value, get_args(kind)[1], path, f"{place}.{name}")
