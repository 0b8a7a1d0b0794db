"""What comes with an extra, and the error where it is missing. The base installation is torch and the ops."""

import os
import shlex
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from soho_fast.common.errors import print_line

_PACKAGE = Path(__file__).resolve().parents[1]
# Of the command that runs, where `soho` has started it: all that it needs, told at once.
_of_command: list[str] = []


class MissingExtraError(ImportError):
    """A package that an extra brings is not installed; `__cause__` is python's own error."""


def command_needs(extras: str) -> None:
    """From here on what is missing is told with these extras, as "train,app": those that the whole command needs."""
    _of_command[:] = [extras]


def install_command(extra: str) -> str:
    """The command that installs an extra, of a clone or of what is installed (whose metadata pip reads)."""
    if _of_command and extra in ("train", "explore", "app", "demo"):
        extra = _of_command[0]
    source = _PACKAGE.parent
    if (source / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{source}[{extra}]')}"
    return f'pip install "soho_fast[{extra}]"'


class from_extra:
    """Stands around imports of packages that the extra NAME brings, as in `pip install "soho_fast[NAME]"`.

    Where one of them is missing, a module says so as `MissingExtraError`; a command says it in one line and ends with
    exit code 2. What an installed package itself lacks stays that package's error. A command that is interrupted here
    (Ctrl-C) says that in one line too.

    Args:
        name: the extra.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        """Nothing is looked for in advance: the imports themselves tell."""

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if trace is None:
            return
        # Python's own name for a command that `python -m` is still looking for.
        is_command = trace.tb_frame.f_globals["__name__"] == "__main__" or sys.argv[:1] == ["-m"]
        if isinstance(error, KeyboardInterrupt) and is_command:
            _leave("\nstopped before anything was done", 128 + signal.SIGINT)
        if not isinstance(error, ImportError):
            return
        told = error if isinstance(error, MissingExtraError) else self._told(error, trace)
        if told is None:
            return
        if is_command:
            _leave(f"error: {told}", 2)
        if told is not error:
            raise told from error

    def _told(self, error: ImportError, trace: TracebackType) -> MissingExtraError | None:
        """The error in other words; None where the import that failed is not one of this package's own."""
        here = trace.tb_frame.f_globals
        # To the frame whose import failed: an installed package's, or a module of this one.
        while trace.tb_next is not None:
            trace = trace.tb_next
        importer = trace.tb_frame.f_globals["__name__"]
        needed = (error.name or "").split(".")[0]
        own = importer == "__main__" or importer.split(".")[0] == "soho_fast"
        if not (isinstance(error, ModuleNotFoundError) and own) or needed in ("", "soho_fast"):
            return None
        by = _module_of(Path(here["__file__"])) if here["__name__"] == "__main__" else here["__name__"]
        by = by.removesuffix(".__main__")
        return MissingExtraError(f"{by} needs {needed}; install it with: {install_command(self.name)}", name=error.name)


def _leave(line: str, code: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        print_line(line, file=sys.stderr)
    raise SystemExit(code) from None


def _module_of(file: Path) -> str:
    """The name of a module of this package that runs as a program."""
    return ".".join(file.resolve().relative_to(_PACKAGE.parent).with_suffix("").parts)
