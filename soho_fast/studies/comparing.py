"""What rows allow to say: differences between two conditions, seed by seed, tested by turning their signs around.

If a condition changes nothing, a seed's difference is as likely to have the other sign. So the observed mean is
compared with those of all ways to turn signs around: exact for any distribution, with few seeds too, of which six are
the fewest that can show anything (2 of 2^6 ways are below 5 %). Of several comparisons the largest t counts (Westfall
and Young, 1993), with the same signs for all comparisons of a seed; so what hangs together is not corrected as if it
did not.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soho_fast.common.extras import from_extra
from soho_fast.studies.matrix import Cell
from soho_fast.studies.results import Row
from soho_fast.studies.study import Comparison, Study, pairs_of, split_cell, unit_of

with from_extra("train"):
    import numpy as np

LEVEL = 0.95
# All ways to turn the signs of so many seeds around are tried; of more as many ways, drawn once and for all.
_EXACT_UP_TO = 13
# A share nearer to 0 or 1 than that would outweigh all others of a composite.
_LEAST_SHARE = 0.001
COMPOSITE = "composite (logits)"


@dataclass
class Difference:
    """Of one metric, condition minus the other.

    Attributes:
        condition, against, stage, metric, label: What is compared; `label` is the metric's name for readers.
        declared: It was declared in advance: the study's composite.
        differences: Of each pair: of each seed; where a factor has but one seed, of each combination of the others'
            levels. Of several seeds a factor's is the seed's mean over all combinations.
        missing: Pairs of which some rows are not there.
        mean: Their mean.
        low, high: Its 95 % interval, which holds together with those of all `family` comparisons that belong together
            (declared ones, or explored ones); NaN where there are too few.
        p: Two-sided, of no difference in this comparison alone; NaN where there are too few.
        adjusted: The same, that the largest of the family is so large.
        base: Mean of what it is compared with.
    """

    condition: str
    against: str
    stage: str
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
    base: float = math.nan

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


def value_of(row: Row, metric: str) -> float | None:
    """A metric of a row, or what the row says of the run itself (`seconds`, `peak_memory_gb`, ...), or of two of them
    the difference, `ONE - OTHER`; None where it is not there, or no number."""
    first, minus, second = metric.partition(" - ")
    if minus:
        one, other = value_of(row, first), value_of(row, second)
        return None if one is None or other is None else one - other
    value = row["metrics"].get(metric, row.get(metric))
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def logit(share: float) -> float:
    """log(share / (1 - share)), of a share that is not nearer to 0 or 1 than 0.001."""
    share = min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE)
    return math.log(share / (1 - share))


def composite_of(study: Study, rows: Mapping[Cell, Row], condition: str, seed: int) -> float | None:
    """The mean logit of the shares that a study declares; None while one of them is not there."""
    parts = [split_cell(name, "composite") for name in study.composite]
    found = [rows.get(Cell(condition, seed, stage)) for stage, _ in parts]
    values = [value_of(row, metric) for row, (_, metric) in zip(found, parts, strict=True) if row is not None]
    logits = [logit(value) for value in values if value is not None]
    return sum(logits) / len(logits) if len(logits) == len(parts) else None


_Tested = tuple[float, float, float, float]


def turn_signs(family: Sequence[Sequence[float]], pairs: Sequence[Sequence[str]]) -> list[_Tested]:
    """(low, high, p, adjusted) of each comparison's mean, see the module's text; NaN of those with too few pairs.

    Args:
        family: The differences of each comparison.
        pairs: The names of their pairs; a name has one sign in all comparisons.

    Differences that are all 0 have the interval [0, 0]. Others that are all the same, but for rounding, would have one
    without a width, which says nothing of what another seed gives: NaN.
    """
    nothing = (math.nan, math.nan, math.nan, math.nan)
    found: list[_Tested] = [(0.0, 0.0, 1.0, 1.0) if len(each) > 1 and not np.any(each) else nothing for each in family]
    tested = [number for number, each in enumerate(family) if _can_be_tested(each)]
    if not tested:
        return found
    names = list(dict.fromkeys(name for number in tested for name in pairs[number]))
    signs_AN = _signs(len(names))
    observed, turned, centred, errors = [], [], [], []
    for number in tested:
        values_P, columns = np.asarray(family[number]), [names.index(name) for name in pairs[number]]
        signs_AP = signs_AN[:, columns]
        observed.append(float(_t(values_P)))
        turned.append(_t(signs_AP * values_P))
        centred.append(_t(signs_AP * (values_P - values_P.mean())))
        errors.append(float(values_P.std(ddof=1) / math.sqrt(len(values_P))))
    # What rounding makes of equal values counts as equal.
    largest_A = np.max(turned, axis=0) * (1 + 1e-9)
    quantile = float(np.quantile(np.max(centred, axis=0), LEVEL, method="higher"))
    for number, t, turned_A, error in zip(tested, observed, turned, errors, strict=True):
        mean, half = float(np.mean(family[number])), quantile * error
        p = float(np.mean(turned_A * (1 + 1e-9) >= t))
        found[number] = (mean - half, mean + half, p, float(np.mean(largest_A >= t)))
    return found


def _can_be_tested(differences: Sequence[float]) -> bool:
    if 2 / 2 ** len(differences) >= 1 - LEVEL:
        return False
    return bool(np.ptp(differences) > 1e-9 * np.max(np.abs(differences)))


def _signs(count: int) -> np.ndarray:
    """Ways to turn signs around, (A, count), of -1 and 1, the first one being none. Half of them: the others give the
    same t with the other sign."""
    if count <= _EXACT_UP_TO:
        bits_AN = np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1
    else:
        bits_AN = np.random.default_rng(0).integers(0, 2, (2 ** (_EXACT_UP_TO - 1), count))
        bits_AN[0] = 0
    return 1 - 2 * bits_AN


def _t(values_AP: np.ndarray) -> np.ndarray:
    """Absolute mean over its standard error, along the last dimension; 0 of all zeros."""
    mean = values_AP.mean(-1)
    error = values_AP.std(-1, ddof=1) / math.sqrt(values_AP.shape[-1])
    return np.abs(mean) / np.maximum(error, np.finfo(float).tiny)


def compare(study: Study, rows: Mapping[Cell, Row]) -> list[Difference]:
    """All differences of a study's comparisons, the declared ones first.

    Those of the composite belong together, and all others of the study do.
    """
    found = [each for comparison in study.comparisons for each in _of(study, comparison, rows)]
    for declared in (True, False):
        family = [each for each in found if each.declared == declared]
        tested = turn_signs(
            [list(each.differences.values()) for each in family], [list(each.differences) for each in family]
        )
        for each, of_each in zip(family, tested, strict=True):
            each.low, each.high, each.p, each.adjusted = of_each
            each.family = len(family)
    return sorted(found, key=lambda each: not each.declared)


def _pairs(study: Study, comparison: Comparison, stage: str) -> Iterator[tuple[str, Cell, Cell]]:
    """(name of the pair, the two that are compared), of all seeds, and combinations of a factor's other levels."""
    limit = study.stages[stage].conditions
    pairs = [pair for pair in pairs_of(study, comparison) if not limit or set(pair[:2]) <= set(limit)]
    seeds = {
        (name, seed) for pair in pairs for name in pair[:2] for seed in study.conditions[name].seeds or study.seeds
    }
    is_one_seed = len({seed for _, seed in seeds}) == 1
    for one, other, common in pairs:
        for seed in study.conditions[one].seeds or study.seeds:
            if (other, seed) in seeds:
                name = f"{common}, seed {seed}" if common and is_one_seed else f"seed {seed}"
                yield name, Cell(one, seed, stage), Cell(other, seed, stage)


def _of(study: Study, comparison: Comparison, rows: Mapping[Cell, Row]) -> Iterator[Difference]:
    one, other = (f"{comparison.factor} {name}".strip() for name in (comparison.condition, comparison.against))
    if study.composite:
        pairs = _pairs(study, comparison, split_cell(study.composite[0], "composite")[0])
        found = _difference(pairs, lambda cell: composite_of(study, rows, cell.condition, cell.seed))
        yield Difference(one, other, "", "composite", COMPOSITE, True, **found)
    for stage, settings in study.stages.items():
        for metric, label in settings.metrics.items():
            found = _of_metric(_pairs(study, comparison, stage), rows, metric)
            if found:
                yield Difference(one, other, stage, metric, label, False, **found)


def _of_metric(pairs: Iterable[tuple[str, Cell, Cell]], rows: Mapping[Cell, Row], metric: str) -> dict[str, Any]:
    """Of a metric; empty where a condition can't have it, as a model without a dictionary has no metrics of codes."""
    pairs = list(pairs)
    found = _difference(pairs, lambda cell: value_of(rows[cell], metric) if cell in rows else None)
    known = [(rows[one], rows[other]) for _, one, other in pairs if one in rows and other in rows]
    cannot = any(value_of(row, metric) is None for each in known for row in each)
    return found if found["differences"] or (found["missing"] and not cannot) else {}


def _difference(pairs: Iterable[tuple[str, Cell, Cell]], value: Callable[[Cell], float | None]) -> dict[str, Any]:
    """What pairs give of `Difference`: differences, missing, mean and base."""
    # Of each pair the values of its combinations; None where one is not there.
    found: dict[str, list[tuple[float, float] | None]] = {}
    for name, *cells in pairs:
        one, other = map(value, cells)
        found.setdefault(name, []).append(None if one is None or other is None else (one, other))
    known = {name: [values for values in each if values] for name, each in found.items() if None not in each}
    differences = {name: sum(one - other for one, other in each) / len(each) for name, each in known.items()}
    bases = [sum(other for _, other in each) / len(each) for each in known.values()]
    mean, base = (float(np.mean(values)) if values else math.nan for values in ([*differences.values()], bases))
    missing = [name for name in found if name not in known]
    return {"differences": differences, "missing": missing, "mean": mean, "base": base}
