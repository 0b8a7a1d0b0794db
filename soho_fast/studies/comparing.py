"""What rows allow to say: differences between two conditions, seed by seed, with intervals and Holm's correction.

The interval is that of the paired t-test: it takes the differences of the seeds for draws from a normal distribution,
which few seeds can neither show nor refute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from soho_fast.common.extras import from_extra
from soho_fast.studies.matrix import Cell
from soho_fast.studies.results import Row
from soho_fast.studies.study import Comparison, Study, pairs_of, split_cell

with from_extra("explore"):
    import numpy as np
    from scipy.stats import ttest_1samp

LEVEL = 0.95


@dataclass
class Difference:
    """Of one metric, condition minus the other.

    Attributes:
        condition, against, stage, variant, metric, label: What is compared; `label` is the metric's name for readers.
        declared: It is one of the comparisons declared in advance.
        differences: Of each pair: of each seed; where a factor has but one seed, of each combination of the others'
            levels. Of several seeds a factor's is the seed's mean over all combinations.
        missing: Pairs of which some rows are not there.
        mean, low, high: Their mean and its 95 % interval; NaN where there are too few.
        p: Two-sided, of no difference; NaN where there are too few.
        adjusted: p after Holm's correction over the `family` comparisons that belong together.
    """

    condition: str
    against: str
    stage: str
    variant: str
    metric: str
    label: str
    declared: bool
    differences: dict[str, float]
    missing: list[str]
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    adjusted: float = math.nan
    family: int = field(default=1)

    @property
    def unit(self) -> str:
        """What stands in brackets at the label's end; empty: a share."""
        return unit_of(self.label)

    @property
    def verdict(self) -> str:
        """helps, hurts, none (no difference was found), unclear (of several comparisons, one may look so by chance) or
        unknown (too few seeds)."""
        if math.isnan(self.low):
            return "unknown"
        if self.low <= 0 <= self.high:
            return "none"
        if self.adjusted >= 1 - LEVEL:
            return "unclear"
        return "helps" if self.mean > 0 else "hurts"


def unit_of(label: str) -> str:
    """The unit in brackets at a label's end, or an empty text."""
    return label.rpartition("(")[2].removesuffix(")") if label.endswith(")") else ""


def value_of(row: Row, metric: str) -> float | None:
    """A metric of a row, or what the row says of the run itself (`seconds`, `peak_memory_gb`, ...), or of two of them
    the difference, `ONE - OTHER`; None where it is not there."""
    first, minus, second = metric.partition(" - ")
    if minus:
        one, other = value_of(row, first), value_of(row, second)
        return None if one is None or other is None else one - other
    value = row["metrics"].get(metric, row.get(metric))
    return float(value) if isinstance(value, int | float) else None


def paired(differences: Sequence[float]) -> tuple[float, float, float, float]:
    """(mean, low, high, p) of paired differences; NaN but for the mean of fewer than two.

    Differences that are all 0 have the interval [0, 0]. Others that are all the same, but for rounding, would have one
    without a width, which says nothing of what another seed gives: NaN.
    """
    mean = float(np.mean(differences)) if len(differences) else math.nan
    if len(differences) >= 2 and not np.any(differences):
        return 0.0, 0.0, 0.0, 1.0
    if len(differences) < 2 or np.ptp(differences) <= 1e-9 * np.max(np.abs(differences)):
        return mean, math.nan, math.nan, math.nan
    test = ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(LEVEL)
    return mean, float(interval.low), float(interval.high), float(test.pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction (1979) over all of them; those that are not known yet, NaN, count too."""
    adjusted = [math.nan] * len(values)
    known = sorted((value, place) for place, value in enumerate(values) if not math.isnan(value))
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(values) - rank)))
        adjusted[place] = highest
    return adjusted


def compare(study: Study, rows: Mapping[Cell, Row]) -> list[Difference]:
    """All differences of a study's comparisons, those declared in advance first.

    Declared ones are corrected over those of their comparison, all others over all others of the study.
    """
    found = [each for comparison in study.comparisons for each in _of(study, comparison, rows)]
    for comparison in study.comparisons:
        _correct([each for each in _of_pair(found, comparison) if each.declared])
    _correct([each for each in found if not each.declared])
    return sorted(found, key=lambda each: not each.declared)


def _of_pair(found: Sequence[Difference], comparison: Comparison) -> list[Difference]:
    return [each for each in found if (each.condition, each.against) == _names(comparison)]


def _names(comparison: Comparison) -> tuple[str, str]:
    of = comparison.factor or comparison.variants_of
    return f"{of} {comparison.condition}".strip(), f"{of} {comparison.against}".strip()


def _pairs(study: Study, comparison: Comparison, stage: str, variant: str) -> Iterator[tuple[str, Cell, Cell]]:
    """(name of the pair, the two that are compared), of all seeds, and combinations of a factor's other levels."""
    settings = study.stages[stage]
    if name := comparison.variants_of:
        compared = [settings.variants[each] for each in (comparison.condition, comparison.against)]
        limits = [settings.conditions, *(variant.conditions for variant in compared)]
        if all(name in limit for limit in limits if limit):
            for seed in study.conditions[name].seeds or study.seeds:
                named, against = (Cell(name, seed, stage, each) for each in (comparison.condition, comparison.against))
                yield f"seed {seed}", named, against
        return
    of_variant = settings.variants[variant].conditions if variant else []
    limits = [limit for limit in (settings.conditions, of_variant) if limit]
    pairs = [pair for pair in pairs_of(study, comparison) if not any(set(pair[:2]) - set(limit) for limit in limits)]
    seeds = {
        (name, seed) for pair in pairs for name in pair[:2] for seed in study.conditions[name].seeds or study.seeds
    }
    is_one_seed = len({seed for _, seed in seeds}) == 1
    for one, other, common in pairs:
        for seed in study.conditions[one].seeds or study.seeds:
            if (other, seed) in seeds:
                name = f"{common}, seed {seed}" if common and is_one_seed else f"seed {seed}"
                yield name, Cell(one, seed, stage, variant), Cell(other, seed, stage, variant)


def _of(study: Study, comparison: Comparison, rows: Mapping[Cell, Row]) -> list[Difference]:
    declared = [split_cell(cell, "") for cell in comparison.main]
    found = []
    for stage, settings in study.stages.items():
        variants = list(settings.variants) or [""]
        if comparison.variants_of:
            variants = [""] if {comparison.condition, comparison.against} <= set(variants) else []
        for variant in variants:
            for metric, label in settings.metrics.items():
                is_declared = (stage, variant, metric) in declared
                each = _difference(study, comparison, rows, (stage, variant, metric), label, is_declared)
                if each is not None:
                    found.append(each)
    return found


def _difference(
    study: Study,
    comparison: Comparison,
    rows: Mapping[Cell, Row],
    where: tuple[str, str, str],
    label: str,
    declared: bool,
) -> Difference | None:
    stage, variant, metric = where
    # Of each pair the differences of its combinations; None where a row or its metric is not there.
    found: dict[str, list[float | None]] = {}
    lacking = False
    for name, *cells in _pairs(study, comparison, stage, variant):
        rows_of_pair = [rows.get(cell) for cell in cells]
        one, other = (None if row is None else value_of(row, metric) for row in rows_of_pair)
        is_there = one is not None and other is not None
        found.setdefault(name, []).append(None if one is None or other is None else one - other)
        # A model without a dictionary has no metrics of codes.
        lacking |= not is_there and None not in rows_of_pair
    known = {name: [value for value in each if value is not None] for name, each in found.items()}
    differences = {name: sum(each) / len(each) for name, each in known.items() if len(each) == len(found[name])}
    missing = [name for name, each in found.items() if None in each]
    if not differences and (lacking or not missing):
        return None
    statistics = paired(list(differences.values()))
    return Difference(*_names(comparison), stage, variant, metric, label, declared, differences, missing, *statistics)


def _correct(family: list[Difference]) -> None:
    for each, adjusted in zip(family, holm([each.p for each in family]), strict=True):
        each.adjusted, each.family = adjusted, len(family)
