"""What rows allow to say: differences between two conditions, seed by seed.

p is of an exact sign-flip test: if a condition changes nothing, a seed's difference is as likely to have the other
sign. Of several comparisons each p is adjusted (Holm). With fewer than six seeds no p can be below 5 %. Two conditions
are equivalent where the same test excludes a difference of the declared size in both directions. Intervals are
Student's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import scipy

from benchmarks.studies.study import Row, Study, value_of

LEVEL = 0.05
# A share nearer to 0 or 1 than that would outweigh all others of a composite.
_LEAST_SHARE = 0.001
# All ways to flip the signs of sixteen seeds; of more seeds as many ways are drawn.
_MOST_WAYS = 2**16

Cells = Mapping[tuple[str, int, str], Row]
"""Rows by (condition, seed, stage)."""


@dataclass
class Difference:
    """Of one metric, condition minus the other.

    Attributes:
        label: The metric's name for readers.
        condition, against: What is compared.
        by_seed: The difference of each seed that has both rows.
        base: Mean of what it is compared with.
        mean: Mean difference.
        low, high: 95 % interval of the mean, of this comparison by itself.
        p: Two-sided, of no difference, of this comparison by itself.
        adjusted: The same, adjusted for all comparisons of its table.
        p_equivalent: Of a difference of `margin` or more; NaN without a margin. The others are NaN with too few seeds.
    """

    label: str
    condition: str
    against: str
    by_seed: dict[int, float]
    base: float = math.nan
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    adjusted: float = math.nan
    p_equivalent: float = math.nan

    @property
    def verdict(self) -> str:
        """What the tests allow to say."""
        if 2 * 0.5 ** len(self.by_seed) > LEVEL:
            return "too few seeds"
        found = ["higher" if self.mean > 0 else "lower"] if self.adjusted < LEVEL else []
        found += ["equivalent"] if self.p_equivalent < LEVEL else []
        return ", ".join(found) or "undecided"


def logit(share: float) -> float:
    """log(share / (1 - share)), of a share that is not nearer to 0 or 1 than 0.001."""
    return float(scipy.special.logit(np.clip(share, _LEAST_SHARE, 1 - _LEAST_SHARE)))


def values_of(study: Study, cells: Cells, condition: str, stage: str, metric: str) -> dict[int, float]:
    """A metric of a condition by seed; NaN where it is missing."""
    return {seed: value_of(cells.get((condition, seed, stage)), metric) for seed in study.seeds}


def composites_of(study: Study, cells: Cells, condition: str) -> dict[int, float]:
    """The mean logit of the shares that a study declares, by seed; NaN where one of them is missing."""
    parts = [values_of(study, cells, condition, *each.split("/")) for each in study.composite]
    return {seed: fmean(logit(part[seed]) for part in parts) for seed in study.seeds}


def sign_flip_p(differences: Sequence[float], of: float = 0.0, alternative: str = "two-sided") -> float:
    """p of a mean difference `of`, by all ways to flip the signs around it."""
    around, ways = np.asarray(differences) - of, {"permutation_type": "samples", "n_resamples": _MOST_WAYS}
    return float(scipy.stats.permutation_test((around,), np.mean, alternative=alternative, **ways).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p, adjusted for all of them (Holm, 1979)."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    return np.minimum(np.maximum.accumulate(steps), 1.0)[np.argsort(order)].tolist()


def compare(study: Study, cells: Cells) -> tuple[list[Difference], list[Difference]]:
    """The declared differences, of the composite; and those of all metrics, which are explored."""
    declared, explored = [], []
    for pair in study.comparisons:
        if study.composite:
            one, other = (composites_of(study, cells, condition) for condition in pair)
            declared.append(difference_of("composite (logits)", pair, one, other, study.smallest_difference))
        for stage, settings in study.stages.items():
            for metric, label in settings.metrics.items():
                one, other = (values_of(study, cells, condition, stage, metric) for condition in pair)
                explored.append(difference_of(label, pair, one, other))
    explored = [each for each in explored if each.by_seed]  # A model without a dictionary lacks metrics of codes.
    for family in (declared, explored):
        tested = [each for each in family if not math.isnan(each.p)]
        for each, adjusted in zip(tested, holm([each.p for each in tested]), strict=True):
            each.adjusted = adjusted
    return declared, explored


def difference_of(
    label: str, pair: tuple[str, str], one: Mapping[int, float], other: Mapping[int, float], margin: float = 0.0
) -> Difference:
    """Of one metric, given by seed; all but `adjusted`."""
    by_seed = {seed: one[seed] - other[seed] for seed in one if not math.isnan(one[seed] - other[seed])}
    found = Difference(label, *pair, by_seed)
    values = list(by_seed.values())
    if values:
        found.base, found.mean = fmean(other[seed] for seed in by_seed), fmean(values)
    if len(values) > 1:
        found.low, found.high = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(1 - LEVEL)
        found.p = sign_flip_p(values)
        if margin:
            found.p_equivalent = max(sign_flip_p(values, -margin, "greater"), sign_flip_p(values, margin, "less"))
    return found
