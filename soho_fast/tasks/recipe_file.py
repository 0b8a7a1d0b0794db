"""The YAML file of a recipe or a study, read strictly: a mistake in it is reported with its line or its field."""

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
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
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_PLAIN = (_TEXT, _MERGE, *(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null", "seq", "map")))


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


def read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """The fields of a file; errors call it `what`.

    Raises:
        UserError: it can't be read, or is not YAML with fields, each once.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Composed first: nodes have tags and lines, by which what is no plain value is refused before it is made.
        _check_nodes(yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path}: not a text file ({error}); expected YAML") from error
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{what} {path}, line {error.problem_mark.line + 1}: {problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{what} {path}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{what} {path}: nested too deep") from error
    if not isinstance(content, dict):
        came = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{what} {path}: expected fields with values, got {came}")
    return content


def _check_nodes(root: yaml.Node | None) -> None:
    """Refuse what is no plain value, a name that comes twice, and more values by aliases than a recipe can have."""
    pending, count = [root] if root else [], 0
    while pending:
        node = pending.pop()
        count += 1
        if count > _MOST_VALUES:
            raise _problem(f"stands for more than {_MOST_VALUES:,} values by its aliases", node)
        if node.tag not in _PLAIN:
            came = node.tag.removeprefix("tag:yaml.org,2002:")
            raise _problem(f"expected a text, number, list or section, got a {came}", node)
        # The name by which jsonargparse knows a class, which it imports where a field takes any value.
        if node.tag == _TEXT and "class_path" in texts_in(node.value):
            raise _problem("class_path: no field takes one; own code has an import path, my.module:Name", node)
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if key.tag not in (_TEXT, _MERGE):
                    raise _problem("expected a name before the colon", key)
                if key.value in seen:
                    raise _problem(f"{key.value} comes twice; keep one of them", key)
                seen.add(key.value)
                pending += (key, value)


def texts_in(text: str) -> Iterator[str]:
    """A text, and those that it holds as YAML, as which jsonargparse reads it where a field takes any value."""
    yield text
    with suppress(yaml.YAMLError):
        for token in yaml.scan(text):
            if isinstance(token, yaml.ScalarToken):
                yield token.value


def _problem(words: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=words, problem_mark=node.start_mark)


def check_fields(content: Any, kind: Any, path: Path, place: str = "", what: str = "recipe") -> None:
    """Refuse what a dataclass, or a list or dict of them, does not have; jsonargparse checks the values.

    Raises:
        UserError: an unknown field, or something else where fields are expected.
    """
    if dataclasses.is_dataclass(kind):
        types = get_type_hints(kind)
        if not isinstance(content, dict):
            came = "nothing" if content is None else repr(content)
            raise UserError(f"{what} {path}: {place}: expected fields ({', '.join(types)}), got {came}"[:400])
        for name, value in content.items():
            inside = f"{place}.{name}" if place else name
            if name not in types:
                hint = f"; expected a section `{name.partition('.')[0]}:`" if "." in name else did_you_mean(name, types)
                raise UserError(f"{what} {path}: there is no field {inside}{hint} (--help lists every field)")
            check_fields(value, types[name], path, inside, what)
    elif isinstance(content, str) and any(map(dataclasses.is_dataclass, get_args(kind))):
        # jsonargparse would read it as YAML, and import what it takes for the name of a class.
        raise UserError(f"{what} {path}: {place}: expected a section or a list, got the text {content!r}"[:400])
    elif get_origin(kind) is list and isinstance(content, list):
        for number, item in enumerate(content):
            check_fields(item, get_args(kind)[0], path, f"{place}[{number}]", what)
    elif get_origin(kind) is dict and content is None:  # jsonargparse lets it pass where values may be anything
        raise UserError(f"{what} {path}: {place}: expected fields with values, got nothing")
    elif get_origin(kind) is dict and isinstance(content, dict):
        for name, value in content.items():
            check_fields(value, get_args(kind)[1], path, f"{place}.{name}", what)
