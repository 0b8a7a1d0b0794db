"""What a run is trained with: one flat dict of names and JSON values, and what differs between two of them.

It holds every field of the recipe by its dotted name, unless it is named in `NOT_COMPARED` here or by the task (a new
field therefore is compared from its first day), digests of what the recipe's paths hold, and versions of the program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from soho_fast.common.errors import UserError, listed

if TYPE_CHECKING:
    from soho_fast.common.processes import Processes

# By pattern of the name: why two runs that differ there train the same.
NOT_COMPARED = {
    "output": "where the run lies",
    "resume": "how it is taken up",
    "checkpoint.*": "when it is saved",
    "log.*": "what is shown and written",
    "evaluation.*": "when it is evaluated, after which the random state is set back",
    "batch.workers": "who loads a sample, which depends on (seed, epoch, index) alone",
    "batch.corrupt_images": "when to give up",
    "engine.timeout_seconds": "when to give up",
    "engine.activation_checkpointing": "the same values, computed twice",
    "engine.feature_cache_*gb": "the same values, computed once",
}

# Of what contents a task gives, those of its data.
OF_THE_DATA = (
    "training data", "held-out data", "data.tokenizer", "training images", "held-out images", "tokenizer's output",
)  # fmt: skip

# By pattern of the name: what may differ between the ranks of a run, since machines have cores of their own.
OF_A_RANK = ("batch.workers",)

# What no run can change, since the state of its checkpoints has this shape or their place in the data depends on it.
FIXED = (
    "task",
    "batch.global_batch_size",
    "engine.precision",
    "optim.backbone_rule",
    "optimiser's state",
)

# What a checkpoint is resharded for: free to change from one start to the next.
SHARDING = ("processes", "engine.zero_stage")


@dataclass(frozen=True)
class TaskIdentity:
    """What of a task is compared when a run is resumed. Patterns are of recipe fields, or of names of contents."""

    not_compared: Collection[str]
    """Those that do not change what is trained, or whose contents are among `contents`."""
    places: Collection[str]
    """Those that say where something lies, which may differ between ranks; what is read there is among `contents`."""
    fixed: Collection[str]
    """Those that cannot change within a run, because a checkpoint's tensors depend on them."""
    contents: Callable[[], dict[str, Any]]
    """What is trained beyond the recipe's fields, JSON values by name, put over the fields of that name: digests of the
    data and of starting weights, which are read when it is called; sizes of the model."""


@dataclass(frozen=True)
class Change:
    """A field with another value than it was trained with; None stands for null and for a field that was not there."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: trained with {_shown(self.before)}, now {_shown(self.now)}"

    def event(self) -> str:
        """The change as the log has it."""
        return f"{self.name} {_shown(self.before)} -> {_shown(self.now)}"


def settings_identity(settings: Any, not_compared: Collection[str] = ()) -> dict[str, Any]:
    """The compared fields of nested dataclasses, lists and dicts by dotted name, as JSON values.

    Args:
        settings: a dataclass.
        not_compared: patterns to leave out, beside `NOT_COMPARED`.
    """
    patterns = (*NOT_COMPARED, *not_compared)
    return {name: value for name, value in all_fields(settings).items() if not matches(name, patterns)}


def all_fields(settings: Any) -> dict[str, Any]:
    """Fields of nested dataclasses, lists and dicts by dotted name, as JSON values."""
    return json.loads(json.dumps(_flat("", settings)))


def changes_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every name whose value differs, in the order of `now`."""
    pairs = ((name, before.get(name), now.get(name)) for name in {**now, **before})
    return [Change(*pair) for pair in pairs if pair[1] != pair[2]]


def refuse_changes(what: str, step: int, changes: list[Change], fixed: Collection[str], *, allowed: bool) -> None:
    """Refuse to go on with other settings.

    Args:
        what: names the checkpoint.
        step: its step.
        changes: what differs.
        fixed: patterns of what cannot change within a run, beside `FIXED`.
        allowed: changes of other fields were asked for.

    Raises:
        UserError: there is a change, and it was not asked for or is not possible.
    """
    # Hardly a field of another task is the same.
    changes = [change for change in changes if change.name == "task"] or changes
    told = f"{what}: this run has other settings: {'; '.join(map(str, changes))}."
    if impossible := [change.name for change in changes if matches(change.name, (*FIXED, *fixed))]:
        raise UserError(
            f"{told} {', '.join(impossible)} cannot change within a run: give the same values or another --output"
        )
    if changes and not allowed:
        raise UserError(
            f"{told} Give the same values, another --output, or --resume changed to go on from step {step} with the "
            "new ones"
        )


def digest_of(identity: Mapping[str, Any]) -> str:
    """By what a run is known, of its compared fields, contents and versions: the same for two that train the same."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def refuse_disagreement(processes: Processes, values: Mapping[str, Any]) -> None:
    """Refuse to train where a rank was started in another way than the first one. All ranks call it together.

    Args:
        processes: the ranks.
        values: what they have to agree on, by name, as JSON values.

    Raises:
        UserError: they do not; on every rank, with the first rank that differs and its fields.
    """
    # Short ones first: all values are exchanged only where they differ, for the message. All ranks see the same
    # digests, and so all come to the second gather or none.
    digests = processes.gather(digest_of(values))
    if len(set(digests)) == 1:
        return
    all_values = processes.gather(dict(values))
    rank = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    changes = changes_between(all_values[0], all_values[rank])
    differ = [f"{each.name} {_shown(each.now)}, not {_shown(each.before)}" for each in changes]
    raise UserError(
        f"the processes do not agree: rank {rank} has {listed(differ, 4, between='; ')}, as rank 0 has; start all by "
        "the same command, recipe, data and version"
    )


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name is like one of these shell patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _flat(name: str, value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Mapping):
        parts = {str(key): item for key, item in value.items()}
    # Other lists are one value: a field with more items than before is one change.
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
    text = "nothing" if value in (None, "") else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
