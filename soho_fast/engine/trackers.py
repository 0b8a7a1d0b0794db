"""Trackers of experiments by name: modules of wandb's shape, which have `init`, `log` and `finish`. Rank 0 only."""

import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from soho_fast.common.errors import UserError
from soho_fast.common.files import write_atomically

_SHAPE = ("init", "log", "finish")
RUNS_FILE = "trackers.json"
"""What the trackers call this run, in its folder: a resumed run goes on in the same."""


def load_trackers(names: Sequence[str]) -> list[ModuleType]:
    """Import trackers.

    Raises:
        UserError: one is not installed, or not of that shape.
    """
    return [_load(name) for name in names]


def _load(name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # an import runs what it likes
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
            raise UserError(
                f"log.trackers: there is no module {name}; install it (pip install {name}) or leave it out"
            ) from error
        raise UserError(f"log.trackers: {name!r} cannot be imported: {_one_line(error)}") from error
    absent = [part for part in _SHAPE if not callable(getattr(module, part, None))]
    if absent:
        # A folder of that name in the working directory, as wandb leaves one, passes for an empty module.
        raise UserError(
            f"log.trackers: module {name} has no {', '.join(absent)}; expected one of wandb's shape, installed (pip "
            f"install {name}); leave it out otherwise"
        )
    return module


class Trackers:
    """Runs of several trackers that get what the log gets.

    One that fails while training goes on is told of once and asked no more.

    Args:
        modules: of `load_trackers`.
        folder: the run's folder; its name is the run's.
        project: the trackers' project.
        config: the whole recipe, JSON values.
        resumed: whether the training goes on from a checkpoint: then the trackers' runs do too, where they can.
        say: called with a line for a tracker that fails.

    Raises:
        UserError: one could not start a run.
    """

    def __init__(
        self,
        modules: Sequence[ModuleType],
        folder: Path,
        *,
        project: str,
        config: Mapping[str, Any],
        resumed: bool,
        say: Callable[[str], None],
    ) -> None:
        self._say, self._working = say, []
        known = _known_runs(folder) if resumed else {}
        runs = {}
        for module in modules:
            name = module.__name__
            options = {"project": project, "name": folder.name, "config": dict(config), "dir": str(folder)}
            if name in known:
                options |= {**known[name], "resume": "allow"}
            try:
                run = module.init(**_accepted(module.init, options))
            except Exception as error:
                self.finish()
                raise UserError(
                    f"log.trackers: {name} could not start a run: {_one_line(error)}; see to that, or leave it out"
                ) from error
            self._working.append(module)
            called = {part: getattr(run, part, None) for part in ("id", "name")}
            runs[name] = {part: value for part, value in called.items() if isinstance(value, str)}
        write_atomically(folder / RUNS_FILE, json.dumps(runs, indent=1))

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Tell all of `values` by name, after `step` steps."""
        self._each(lambda module: module.log(dict(values), step=step))

    def finish(self) -> None:
        """End the runs; a resumed run takes them up again."""
        self._each(lambda module: module.finish())

    def _each(self, call: Callable[[ModuleType], Any]) -> None:
        for module in list(self._working):
            try:
                call(module)
            except Exception as error:  # whatever it is, the training is worth more
                self._working.remove(module)
                self._say(f"log.trackers: {module.__name__} failed and is left out from here on: {_one_line(error)}")


def _known_runs(folder: Path) -> dict[str, dict[str, str]]:
    try:
        runs = json.loads((folder / RUNS_FILE).read_text())
        return {name: {part: run[part] for part in ("id", "name") if part in run} for name, run in runs.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _accepted(function: Callable, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keywords that the function takes: not every tracker has all of wandb's."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options)
    return {name: value for name, value in options.items() if name in parameters}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
