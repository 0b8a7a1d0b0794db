"""What was trained: every field of a recipe by its dotted name, but for those that train nothing else.

A field is compared unless it is named here, or in the task's `not_compared`: a new one therefore is from its first day.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from typing import Any

from soho_fast.common.errors import UserError

# By pattern of the name: why two runs that differ there train the same.
NOT_COMPARED = {
    "output": "where the run lies",
    "resume": "how it is taken up",
    "overwrite": "how it is taken up",
    "checkpoint.*": "when it is saved",
    "log.*": "what is shown and written",
    "evaluation.*": "when it is measured, after which the random state is set back",
    "batch.workers": "who loads a sample, which depends on (seed, epoch, index) alone",
    "batch.prefetch": "how early it is loaded",
    "batch.corrupt_images": "when to give up",
    "engine.threads": "who computes",
    "engine.timeout_seconds": "when to give up",
    "engine.activation_checkpointing": "the same values, computed twice",
    "engine.backbone_cache_*gb": "the same values, computed once",
    "engine.emulate_precision": "a permission; the precision itself is compared",
}

# What no run can change, since the state of its checkpoints has this shape or its place in the data is told by it.
FIXED = (
    "task",
    "batch.global_batch_size",
    "engine.precision",
    "optim.backbone_rule",
    "optim.decay_norm_and_bias",
)

# Over whom the same training is spread: free to change from one start to the next.
SPREAD = ("processes", "engine.zero_stage")


@dataclass(frozen=True)
class Change:
    """A field with another value than it was trained with; None stands for null and for a field that was not there."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: trained with {_shown(self.before)}, now {_shown(self.now)}"

    def event(self) -> str:
        """The change as the log tells it."""
        return f"{self.name} {_shown(self.before)} -> {_shown(self.now)}"


def settings_identity(settings: Any, not_compared: Iterable[str] = (), *, compared_all: bool = False) -> dict[str, Any]:
    """Fields of nested dataclasses, lists and dicts by dotted name, as JSON values.

    Args:
        settings: a dataclass.
        not_compared: patterns to leave out, beside `NOT_COMPARED`.
        compared_all: leave nothing out.
    """
    patterns = () if compared_all else (*NOT_COMPARED, *not_compared)
    flat = {
        name: value
        for name, value in _flat("", settings).items()
        if not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    return json.loads(json.dumps(flat))


def changes_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every field that differs, in the order of `now`."""
    names = {**now, **before}
    return [Change(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def refuse_changes(
    what: str, step: int, changes: list[Change], fixed: Iterable[str], measures: Iterable[str] = (), *, allowed: bool
) -> None:
    """Refuse to go on with other settings.

    Args:
        what: names the checkpoint.
        step: its step.
        changes: what differs.
        fixed: patterns of names that cannot change within a run, beside `FIXED`.
        measures: patterns of names that tell how a model is measured, which can be done without training it.
        allowed: changes of other fields were asked for.

    Raises:
        UserError: there is a change, and it was not asked for or is not possible.
    """
    # Hardly a field of another task is the same.
    changes = [change for change in changes if change.name == "task"] or changes
    listed = "; ".join(map(str, changes))
    patterns = (*FIXED, *fixed)
    impossible = [change.name for change in changes if any(fnmatchcase(change.name, each) for each in patterns)]
    if impossible:
        raise UserError(
            f"{what}: this run has other settings: {listed}. {', '.join(impossible)} cannot change within a run: give "
            "the same values or another --output"
        )
    if changes and not allowed:
        only_measured = all(any(fnmatchcase(change.name, each) for each in measures) for change in changes)
        instead = "; to measure its model by these, python -m soho_fast.evaluate --run FOLDER" if only_measured else ""
        raise UserError(
            f"{what}: this run has other settings: {listed}. Give the same values, another --output, or --resume "
            f"changed to go on from step {step} with the new ones{instead}"
        )


def _flat(name: str, value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Mapping):
        parts = {str(key): item for key, item in value.items()}
    elif isinstance(value, list | tuple) and any(is_dataclass(item) or isinstance(item, Mapping) for item in value):
        parts = {str(number): item for number, item in enumerate(value)}
    else:
        return {name: value}
    found: dict[str, Any] = {}
    for part, item in parts.items():
        found |= _flat(f"{name}.{part}" if name else part, item)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
