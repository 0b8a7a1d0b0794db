"""Rows of a measurement, what is asked of SOHO, and what keeps it from what is missed."""

from dataclasses import dataclass

from benchmarks.inference.baselines import HALVED, REGION, SOHO
from benchmarks.inference.region_pipeline import NMS_NAMES
from benchmarks.ops.targets import Verdict

BY_CLASS, BATCHED = NMS_NAMES


@dataclass(frozen=True)
class Row:
    """The fastest pass of a method at a batch size; `seconds` of its stages."""

    method: str
    family: str
    precision: str
    batch: int
    seconds: dict[str, float]

    def stages(self, nms: str = BATCHED) -> dict[str, float]:
        """Seconds of the stages with one kind of NMS, of which the region pipeline runs both."""
        return {stage: seconds for stage, seconds in self.seconds.items() if stage not in NMS_NAMES or stage == nms}

    def total(self, nms: str = BATCHED) -> float:
        """Seconds of the whole batch."""
        return sum(self.stages(nms).values())


@dataclass(frozen=True)
class Target:
    """At batch 1 SOHO in `precision`, by the fastest of its means, has to be `required` times as fast as a baseline."""

    precision: str
    family: str
    baseline_precision: str
    nms: str
    required: float

    @property
    def claim(self) -> str:
        nms = f", {self.nms}" if self.family != SOHO else ""
        eager = " eager" if self.family == SOHO else ""
        return f"SOHO in {self.precision} against {self.family}{eager} in {self.baseline_precision}{nms}"

    def sides(self, rows: list[Row]) -> tuple[Row, Row] | None:
        """Ours and the baseline's; `None`: one did not run."""
        rows = [row for row in rows if row.batch == 1]
        ours = [row for row in rows if row.family == SOHO and row.precision == self.precision and not _eager(row)]
        baselines = [
            row
            for row in rows
            if (row.family, row.precision) == (self.family, self.baseline_precision)
            and (row.family != SOHO or _eager(row))
        ]
        return (min(ours, key=Row.total), baselines[0]) if ours and baselines else None


def _eager(row: Row) -> bool:
    return row.method.startswith(f"{SOHO} eager")


TARGETS = (
    *(
        Target(*sides, required)
        for family in (REGION, HALVED)
        for *sides, required in (
            ("bf16", family, "float32", BY_CLASS, 12.0),
            ("int8", family, "float32", BY_CLASS, 18.0),
            ("float32", family, "float32", BATCHED, 5.0),
            ("bf16", family, "bf16", BATCHED, 5.0),
        )
    ),
    Target("bf16", SOHO, "float32", BATCHED, 4.0),
    Target("int8", SOHO, "float32", BATCHED, 6.0),
)


def verdicts(rows: list[Row], operations: dict[str, dict[str, int]], products: dict[str, float]) -> list[Verdict]:
    """Every target with what was measured, and for one that is missed the stage that takes longest, and its limits.

    Args:
        rows: of all methods.
        operations: of each stage at batch 1, by family.
        products: operations a second of a matrix product, by precision.
    """
    found = []
    for target in TARGETS:
        wanted, sides = f">= {target.required:g}x", target.sides(rows)
        if sides is None:
            found.append(Verdict(target.claim, wanted, "did not run", None))
            continue
        ours, baseline = sides
        ratio = baseline.total(target.nms) / ours.total()
        measured = f"{ratio:.2f}x ({ours.method}: {ours.total():.3f} s, {baseline.total(target.nms):.3f} s)"
        met = ratio >= target.required
        if not met:
            measured += f"; {limits(ours, baseline, operations, products)}"
        found.append(Verdict(target.claim, wanted, measured, met))
    return found


def limits(ours: Row, baseline: Row, operations: dict[str, dict[str, int]], products: dict[str, float]) -> str:
    """Which stage of ours takes longest, how near it is to the machine's matrix product, and whose operations are more.

    There is no product in int8 to measure against: the one in bf16 stands for it.
    """
    stage = max(ours.seconds, key=ours.seconds.get)
    name = ours.precision if ours.precision in products else "bf16"
    share = operations[SOHO][stage] / ours.seconds[stage] / products[name]
    text = f"{stage} {ours.seconds[stage] / ours.total():.0%} of ours, at {share:.0%} of the {name} product"
    if baseline.family != SOHO:
        more = sum(operations[baseline.family].values()) / sum(operations[SOHO].values())
        text += f"; the baseline does {more:.1f}x the operations"
    return text
