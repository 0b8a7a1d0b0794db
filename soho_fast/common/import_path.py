"""A user's own classes and functions by import path: `my.module:Name`, as jsonargparse and entry points write it.

The current folder is searched first, as by `python -m`. Code is imported where a user names it: on the command line, or
in a recipe that is trusted. All else calls `load_imported`, which finds only what is imported already: a path that a
model's folder or a checkpoint holds imports nothing.
"""

import os
import re
import sys
from importlib import import_module
from typing import Any

from soho_fast.common.errors import UserError
from soho_fast.common.spelling import did_you_mean

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


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
    import_named(path.partition(":")[0], what)
    return load_imported(path, what, base)


def import_named(name: str, what: str) -> None:
    """Import a module that the user names; the current folder is searched first. Raises UserError, as `load`."""
    folder = os.getcwd()
    if not sys.flags.safe_path and not {folder, ""} & set(sys.path):
        sys.path.insert(0, folder)  # A console script has its own folder there instead.
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


def load_imported(path: str, what: str, base: type | None = None) -> Any:
    """As `load`, of a module that is imported already: for a path that a file holds which may be another's.

    Raises:
        UserError: also where the module is not imported.
    """
    name, _, attribute = path.partition(":")
    module = sys.modules.get(name)
    if module is None:
        raise UserError(
            f"{what}: {path} is code that a file names, which alone may not have it imported; import {name} before, "
            f"as by --import, give --trust-file where a recipe names it, or name {path} on a training's command line"
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
