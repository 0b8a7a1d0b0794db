"""A user's own classes and functions by import path: `my.module:Name`, as jsonargparse and entry points write it.

The current folder is searched first, as by `python -m`. Code is imported where a user names it: on the command line, or
in a recipe that is trusted. All else calls `load_imported`, which finds only what was named so, torch's optimisers, and
modules that are no library's and that Python code has imported: a path that a model's folder or a checkpoint holds
imports nothing.
"""

import ast
import os
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from soho_fast.common.checksums import digest_of_files
from soho_fast.common.errors import UserError
from soho_fast.common.spelling import did_you_mean

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

# Of each module that a user named: what `_digests` gave when it was imported.
_NAMED: dict[str, dict[str, str]] = {}
# The modules and import paths by a user's word; those of the modules that are gone do not count.
_TRUSTED: set[str] = set()
# Libraries wherever they lie, also as their sources: a run's identity has their versions.
_LIBRARIES = {"soho_fast", "torch", "torchvision", "transformers", "tokenizers", "numpy", "timm", "deepspeed"}
_INSTALLED = {"site-packages", "dist-packages"}
_STDLIB = Path(os.__file__).parent
OPTIMISERS = "torch.optim:"
"""How the import paths begin that a file may name without a user's word."""


def is_import_path(value: object) -> bool:
    """Whether a value is of the form `my.module:Name`."""
    return isinstance(value, str) and _PATH.fullmatch(value) is not None


def load(path: str, what: str, base: type | None = None) -> Any:
    """The object that an import path names; its module is imported.

    Args:
        path: `my.module:Name`.
        what: The setting that names it, which begins every error.
        base: The object has to be a subclass of it; None takes anything that can be called.

    Raises:
        UserError: another form, no such module or name, a module that cannot be imported, or an object of another kind.
    """
    if not is_import_path(path):
        raise UserError(f"{what}: expected an import path as my.module:Name, got {path!r}")
    _import(path.partition(":")[0], what)
    _TRUSTED.add(path)
    return load_imported(path, what, base)


def import_named(name: str, what: str) -> None:
    """Import a module that the user names; the current folder is searched first. Raises UserError, as `load`."""
    _import(name, what)
    _TRUSTED.add(name)


def is_trusted(path: str) -> bool:
    """Whether a user has named this import path, or its whole module."""
    name = path.partition(":")[0]
    return name in sys.modules and not _TRUSTED.isdisjoint({path, name})


def search_here() -> str:
    """Have imports search the current folder first, and return it."""
    folder = os.getcwd()
    if not sys.flags.safe_path and not {folder, ""} & set(sys.path):
        sys.path.insert(0, folder)  # A console script has its own folder there instead.
    return folder


def _import(name: str, what: str) -> None:
    folder, before = search_here(), set(sys.modules)
    is_new = name not in sys.modules or name not in _NAMED
    try:
        import_module(name)
    except Exception as error:  # An import runs what it likes.
        # The module itself or a package above it; a module that it imports in turn is an error of another kind.
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{what}: there is no module {error.name}, neither in the current folder {folder} nor installed"
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{what}: {name} cannot be imported ({reason})") from error
    if is_new:
        _NAMED[name] = _digests(name, set(sys.modules) - before)


def own_code(known: Iterable[str] = ()) -> dict[str, str]:
    """File and digest, as imported, of each module that the user named and of what these import, but for libraries;
    and of those of `known` that Python code has imported."""
    found = {each: digest for name in sorted(_NAMED) if name in sys.modules for each, digest in _NAMED[name].items()}
    for name in known:
        if name in sys.modules and name not in found:
            found |= _digests(name)
    return found


def _digests(name: str, brought: Iterable[str] = ()) -> dict[str, str]:
    """Of a module and, however far, of those that it imports, wherever in it, and that its import has brought in, but
    for libraries; of a library, of its whole package."""
    if _is_library(_spec_of(name)):
        root = name.partition(".")[0]
        top = sys.modules[root]
        place = next(iter(getattr(top, "__path__", [getattr(top, "__file__", None)])), None)
        return {root: f"{Path(place).name} {digest_of_files(Path(place), '*.py')}"} if place else {}
    found: dict[str, str] = {}
    left, seen = [name, *sorted(brought)], {""}
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        spec, above = _spec_of(name), name.rpartition(".")[0]
        if spec is None or _is_library(spec):
            continue
        left += [above] if above else []
        if spec.origin is None:  # a folder without __init__.py
            continue
        file, is_package = Path(spec.origin), spec.submodule_search_locations is not None
        parts = name.count(".") + 1 + is_package
        archive = next((above for above in file.parents if above.is_file()), None)
        found[name] = f"{'/'.join(file.parts[-parts:])} {digest_of_files(archive or file)}"
        package = (name if is_package else above).split(".")
        try:
            tree = ast.parse(file.read_bytes() if file.suffix == ".py" and not archive else b"")
        except (SyntaxError, ValueError):  # of a file whose import is never come to
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                left += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = [*package[: len(package) + 1 - node.level] * bool(node.level), *filter(None, [node.module])]
                left += [".".join(base), *(".".join([*base, alias.name]) for alias in node.names)]
    return found


def _spec_of(name: str) -> ModuleSpec | None:
    """Of a module as it is imported, or would be; None where there is none. Imports nothing."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__spec__", None)
    above, _, last = name.rpartition(".")
    parent = _spec_of(above) if above else None
    if above and (parent is None or parent.submodule_search_locations is None):
        return None
    return PathFinder.find_spec(last, list(parent.submodule_search_locations or ()) if parent else None)


def _is_library(spec: ModuleSpec | None) -> bool:
    """Whether a module is Python's own, installed, or of `_LIBRARIES`."""
    if spec is None:
        return False
    found = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location else [])]
    places = [Path(str(each)) for each in found]
    return (
        not places
        or spec.name.partition(".")[0] in _LIBRARIES
        or any(place.is_relative_to(_STDLIB) or _INSTALLED & set(place.parts) for place in places)
    )


def load_imported(path: str, what: str, base: type | None = None) -> Any:
    """As `load`, of a module that is imported already: for a path that a file holds which may be another's.

    Raises:
        UserError: also where the module is not imported, or is a library's that no user has named.
    """
    name, _, attribute = path.partition(":")
    module = sys.modules.get(name)
    allowed = is_trusted(path) or path.startswith(OPTIMISERS)
    if module is None or not (allowed or not _is_library(_spec_of(name))):
        raise UserError(
            f"{what}: {path} is code that a file names, which alone may not have it imported; import {name} before, "
            "as by --import (in Python, a library's by import_named of this module), give --trust-file where a recipe "
            f"names it, or name {path} on a training's command line"
        )
    found = getattr(module, attribute, None)
    if found is None:
        raise UserError(f"{what}: {name} has no {attribute}{did_you_mean(attribute, vars(module))}")
    if base is not None and not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{what}: expected a subclass of {base.__name__}, {path} is {_kind(found)}")
    if not callable(found):
        raise UserError(f"{what}: expected a class or function, {path} is {_kind(found)}")
    return found


def _kind(value: object) -> str:
    bases = ", ".join(each.__name__ for each in value.__bases__) if isinstance(value, type) else ""
    return f"a class of {bases}" if bases else f"a {type(value).__name__}"
