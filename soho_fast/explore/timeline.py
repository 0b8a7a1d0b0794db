"""How a codebook came about, by a run's log and the dictionary itself. K codes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soho_fast.common.files import read_log
from soho_fast.common.versions import read_run_of

if TYPE_CHECKING:
    from soho_fast.model.visual_dictionary import VisualDictionary

_FROM_TRAINING = {
    "perplexity": "perplexity",
    "step_perplexity": "perplexity of a step",
    "top_share": "share of the most frequent code",
    "code_error": "code error",
    "feature_drift": "feature drift",
    "feature_spread": "feature spread",
    "active_codes": "active codes",
}
# Between two snapshots the running usage of a code without assigned features falls by the decay alone, up to rounding
# in float32; one feature in an update adds far more.
_ROUNDING = 3e-4
_TOLD = ("code error", "share of the most frequent code", "active codes", "perplexity", "codebook drift")
"""The curves that a sentence sums up."""


@dataclass(frozen=True)
class _Snapshot:
    """Of each code at a step: the running mean of its share of the tokens, before it is corrected for its age, and
    the updates since its last reset."""

    step: int
    mean_K: np.ndarray
    age_K: np.ndarray


def timeline(run: Path | None, dictionary: VisualDictionary) -> dict[str, Any]:
    """What is known of a codebook's training.

    Args:
        run: Folder of a run, or of its model within it; None where the model is of no run.
        dictionary: The model's.

    Returns:
        The value of a bundle's data/timeline.js, see `bundle`. A log that is damaged gives what it holds.
    """
    logs = [read_log(folder / "log.jsonl")[0] for folder in ((run, run.parent) if run else ())]
    records = sorted(next(filter(None, logs), []), key=lambda record: record["step"])
    last_step = max((record["step"] for record in records), default=int(dictionary.step))
    events = [[record["step"], record["event"]] for record in records if record["kind"] == "event"]
    series: list[dict[str, Any]] = [
        {"name": name, "points": points}
        for field, name in _FROM_TRAINING.items()
        if (points := _points((record["step"], record.get(field)) for record in records if record["kind"] == "train"))
    ]
    num_codes, decay = dictionary.num_codes, dictionary.config.usage_decay
    # A best one, and the last one of a run that has gone on, are older than the log.
    about = read_run_of(run) if run else None
    model_step = about["step"] if about else last_step
    age_K, mean_K = (each[:num_codes].double().cpu().numpy() for each in (dictionary.age, dictionary.usage))
    snapshots = _logged_snapshots(records, num_codes, decay)
    series += _series_of_snapshots(records, snapshots)
    snapshots = [snapshot for snapshot in snapshots if snapshot.step < model_step]
    snapshots.append(_Snapshot(model_step, mean_K, age_K))
    reset: list[int | None] = [None] * num_codes
    unused_since = reset
    if int(dictionary.step):
        # Updates and steps end together; they begin together only where nothing is learnt before the dictionary.
        reset = [max(0, model_step - int(age)) for age in age_K]
        unused_since = _unused_since(snapshots, decay)
    return {
        "series": series,
        "events": events,
        "reset": reset,
        "unused_since": unused_since,
        "num_snapshots": len(snapshots),
        "last_step": last_step,
        "sentences": [_sentence(**line) for name in _TOLD for line in series if line["name"] == name],
    }


def _points(pairs: Iterable[tuple[int, Any]]) -> list[list[float]]:
    return [[step, value] for step, value in pairs if _is_number(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _logged_snapshots(records: Sequence[Mapping[str, Any]], num_codes: int, decay: float) -> list[_Snapshot]:
    snapshots = []
    for record in records:
        values = record["values"] if record["kind"] == "snapshot" else {}
        usage, age = values.get("usage"), values.get("age")
        if all(isinstance(row, list) and len(row) == num_codes and all(map(_is_number, row)) for row in (usage, age)):
            age_K = np.array(age, dtype=float)
            snapshots.append(_Snapshot(record["step"], np.array(usage) * (1 - decay**age_K), age_K))
    return snapshots


def _series_of_snapshots(records: Sequence[Mapping[str, Any]], snapshots: Sequence[_Snapshot]) -> list[dict[str, Any]]:
    drift = _points(
        (record["step"], record["values"].get("drift")) for record in records if record["kind"] == "snapshot"
    )
    reset = []
    for earlier, later in zip([None, *snapshots], snapshots, strict=False):
        updates = later.age_K.max() if earlier is None else later.step - earlier.step
        reset.append([later.step, int((later.age_K < updates).sum())])
    named = {"reset codes": reset, "codebook drift": drift}
    return [{"name": name, "points": points} for name, points in named.items() if points]


def _unused_since(snapshots: Sequence[_Snapshot], decay: float) -> list[int | None]:
    """For each code the step of the first snapshot since which it had no assigned feature; since its last reset,
    where it never had one; None where it had some before the last snapshot."""
    last = snapshots[-1]
    since_K = np.where(last.mean_K == 0, last.step - last.age_K, np.nan)
    open_K = last.mean_K > 0
    for earlier, later in reversed(list(itertools.pairwise(snapshots))):
        updates_K = later.age_K - earlier.age_K
        unused_K = open_K & (updates_K == updates_K.max())
        unused_K &= later.mean_K <= earlier.mean_K * decay**updates_K * (1 + _ROUNDING)
        since_K[unused_K] = earlier.step
        open_K = unused_K
    return [None if math.isnan(since) else max(0, int(since)) for since in since_K]


def _sentence(name: str, points: Sequence[Sequence[float]]) -> str:
    """Where a curve ends, and how far it went on its way, if it moved."""
    ends = points[-1], max(points, key=lambda point: point[1]), min(points, key=lambda point: point[1])
    told = [f"{value:{',.0f' if value >= 1000 else '.4g'}} at step {step:,}" for step, value in ends]
    way = f"; highest {told[1]}, lowest {told[2]}" if ends[1][1] > ends[2][1] else ""
    return f"{name.capitalize()}: {told[0]}{way}."
