"""What a run was trained with, and what has changed since.

Compared is every field of a recipe by its dotted name, unless it is named in `NOT_COMPARED` here or by the task: a new
field therefore is compared from its first day.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from soho_fast.common.errors import UserError, listed

if TYPE_CHECKING:
    from soho_fast.common.processes import Processes

# By pattern of the name: why two runs that differ there train the same.
NOT_COMPARED = {
    "output": "where the run lies",
    "resume": "how it is taken up",
    "overwrite": "how it is taken up",
    "checkpoint.*": "when it is saved",
    "log.*": "what is shown and written",
    "evaluation.*": "when it is evaluated, after which the random state is set back",
    "batch.workers": "who loads a sample, which depends on (seed, epoch, index) alone",
    "batch.corrupt_images": "when to give up",
    "engine.threads": "who computes",
    "engine.timeout_seconds": "when to give up",
    "engine.activation_checkpointing": "the same values, computed twice",
    "engine.feature_cache_*gb": "the same values, computed once",
    "engine.emulate_precision": "a permission; the precision itself is compared",
}

# Of what contents a task gives, those of its data.
OF_THE_DATA = (
    "training data", "held-out data", "data.tokenizer", "training images", "held-out images", "tokenizer's output",
)  # fmt: skip

# Names that checkpoints of 0.1 do not have, and that are not compared with these.
NEW = (*OF_THE_DATA[3:], "program.sources", "program.compiled ops")

# What a run is trained with whose checkpoints have these names, which are settings no more.
GONE = {"model.config.dictionary_follow": "none"}

# By pattern of the name: what may differ between the ranks of a run, since machines have cores of their own.
OF_A_RANK = ("engine.threads", "batch.workers")

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
    """What of a task is compared when a run is resumed."""

    not_compared: Collection[str]
    """Patterns of recipe fields that do not change what is trained, or whose contents are among `contents`."""
    fixed: Collection[str]
    """Patterns of names that cannot change within a run, because a checkpoint's tensors depend on them."""
    places: Collection[str]
    """Patterns of recipe fields that say where something lies; what is read from there is among `contents`."""
    evaluated_by: Collection[str]
    """Patterns of names by which a model is evaluated, but not trained."""
    contents: Callable[[], dict[str, Any]]
    """What is trained beyond the recipe's fields: JSON values by name, put over the fields of that name.
    Contents of the data and of starting weights, which are read when it is called; sizes of the model."""
    starting: Collection[str] = ()
    """Patterns of names that say where a run starts: a run that goes on keeps what it has learnt."""
    absent: Mapping[str, Any] = field(default_factory=dict)
    """By name what a checkpoint of an earlier version, which does not have the name, was trained with."""


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
    """Every field that differs, in the order of `now`, but for `NEW` ones that were not there before."""
    names = [name for name in {**now, **before} if name in before or name not in NEW]
    pairs = ((name, before.get(name), now.get(name, GONE.get(name))) for name in names)
    return [Change(*pair) for pair in pairs if pair[1] != pair[2]]


def refuse_changes(what: str, step: int, changes: list[Change], identity: TaskIdentity, *, allowed: bool) -> None:
    """Refuse to go on with other settings.

    Args:
        what: names the checkpoint.
        step: its step.
        changes: what differs.
        identity: the task's: which of them cannot change within a run, which only change how a model is evaluated.
        allowed: changes of other fields were asked for.

    Raises:
        UserError: there is a change, and it was not asked for or is not possible.
    """
    # Hardly a field of another task is the same.
    changes = [change for change in changes if change.name == "task"] or changes
    listed = "; ".join(map(str, changes))
    impossible = [change.name for change in changes if matches(change.name, (*FIXED, *identity.fixed))]
    if impossible:
        raise UserError(
            f"{what}: this run has other settings: {listed}. {', '.join(impossible)} cannot change within a run: give "
            "the same values or another --output"
        )
    if changes and not allowed:
        only_evaluated = all(matches(change.name, identity.evaluated_by) for change in changes)
        instead = "; to evaluate its model by these, python -m soho_fast.evaluate --run FOLDER" * only_evaluated
        raise UserError(
            f"{what}: this run has other settings: {listed}. Give the same values, another --output, or --resume "
            f"changed to go on from step {step} with the new ones{instead}"
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
