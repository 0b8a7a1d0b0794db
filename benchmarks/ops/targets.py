"""The targets the ops have to reach, and whether a run reached them.

A target on a level that the machine lacks, or on a case that did not run, is neither met nor missed.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.ops.report import GROWTH, HARD, MEMORY, OURS, Row, cases_of, geometric_mean
from benchmarks.tables import Table

MIB = 2**20
GROWTH_TARGET = 2.1
# What is asked since the last pass has one way of comparing instead of three. A float64 difference, square and sum of
# half a vector each stand against one operation of a whole one: six times the work where all share the units.
HARD_TARGET = 4.0


BEST_LEVEL = "soho_fast at its best level"
FASTEST = "the fastest baseline"


@dataclass(frozen=True)
class Target:
    """`ours` has to be `required` times as fast as `baseline`: in the geometric mean of the cases, or in every one.

    Both are methods by name, or the fastest of some: BEST_LEVEL of ours, FASTEST of the baselines.
    """

    op: str
    cases: str  # part of the case's name
    ours: str
    baseline: str
    required: float
    every_case: bool = False
    channels: tuple[int, float] = (0, math.inf)  # from, and below; of the last number of the shape

    @property
    def claim(self) -> str:
        low, high = self.channels
        limits = f" C >= {low}" * (low > 0) + f" C < {high}" * (high < math.inf)
        return f"{self.op} {self.cases}".strip() + f"{limits}: {self.ours} against {self.baseline}"

    def ratio(self, case: str, methods: list[Row]) -> float | None:
        """How many times as long `baseline` takes in a competition; None if the target leaves it out, or one did
        not run."""
        # The shape that exists only for the slowest level does not count: no baseline is timed there.
        ours, baseline = ([row.seconds for row in methods if _is(row, name)] for name in (self.ours, self.baseline))
        low, high = self.channels
        inside = self.channels == Target.channels or low <= methods[0].shape[-1] < high
        if self.cases not in case or not inside or not ours or not baseline:
            return None
        return min(baseline) / min(ours)


def _is(row: Row, name: str) -> bool:
    if name == BEST_LEVEL:
        return row.method == f"{OURS} {row.level}"
    return not row.ours if name == FASTEST else row.method == name


@dataclass(frozen=True)
class Verdict:
    """What was asked, what was measured, and whether it was met (None: not measured, `measured` says why)."""

    claim: str
    target: str
    measured: str
    met: bool | None


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """What was measured first."""
    measured = [each for each in verdicts if each.met is not None]
    rows = [(each.claim, each.target, each.measured, "met" if each.met else "**missed**") for each in measured]
    rows += [(each.claim, each.target, "", "not measured here") for each in verdicts if each.met is None]
    return Table(("comparison", "target", "measured", "result"), rows)


PREPARED, WITHOUT_PRUNING = f"{OURS} prepared", f"{OURS} prepared, without pruning"
# Noise gains nothing from pruning; this is what its trial may cost.
AT_MOST_1_03 = 1 / 1.03
TARGETS = (
    Target("codebook_lookup", "float32", BEST_LEVEL, FASTEST, 6.0),
    Target("codebook_lookup", "float32", BEST_LEVEL, FASTEST, 5.0, every_case=True),
    Target("codebook_lookup", "real", PREPARED, FASTEST, 20.0),
    Target("codebook_lookup", "real", PREPARED, FASTEST, 10.0, every_case=True),
    Target("codebook_lookup", "real", PREPARED, WITHOUT_PRUNING, 4.0, every_case=True, channels=(768, math.inf)),
    Target("codebook_lookup", "real", PREPARED, WITHOUT_PRUNING, 2.0, every_case=True, channels=(192, 768)),
    Target("codebook_lookup", "float32", PREPARED, WITHOUT_PRUNING, AT_MOST_1_03, every_case=True),
    Target("codebook_lookup", "small", OURS, "torch addmm+argmin", 1.0, every_case=True),
    Target("codebook_lookup", "small", OURS, BEST_LEVEL, 0.9, every_case=True),
    Target("codebook_lookup", "few", PREPARED, FASTEST, 1.0, every_case=True),
    Target("codebook_lookup", "one row", PREPARED, FASTEST, 1.0, every_case=True),
    Target("codebook_lookup", "tiny", PREPARED, "faiss-cpu", 1.0, every_case=True),
    Target("codebook_lookup", "tiny", OURS, "faiss-cpu", 0.8, every_case=True),
    Target("codebook_lookup", "float32", f"{OURS} amx", "faiss-cpu", 7.0),
    Target("codebook_lookup", "float32", f"{OURS} amx", "faiss-cpu", 5.5, every_case=True),
    Target("codebook_lookup", "float32", f"{OURS} amx prepared", "faiss-cpu", 8.0),
    Target("codebook_lookup", "float32", f"{OURS} amx", "torch cdist+argmin", 20.0),
    Target("codebook_lookup", "float32", f"{OURS} avx512", "faiss-cpu", 1.2),
    Target("codebook_lookup", "bfloat16", f"{OURS} amx", "torch addmm+argmin", 4.0),
    Target("codebook_update", "", OURS, "torch index_add_", 2.0, every_case=True),
    Target("codebook_update", "", OURS, "one read of the features", 0.5, every_case=True),
    Target("group_mask", "", f"{OURS} in place", "torch where", 4.0, every_case=True),
    Target("group_mask", "", f"{OURS} out of place", "torch where", 1.3, every_case=True),
    Target("residual_lookup", "", f"{OURS} prepared", "vector-quantize-pytorch", 5.0, every_case=True),
    Target("VisualDictionary", "normal noise", OURS, "vector-quantize-pytorch", 20.0, every_case=True),
    Target("VisualDictionary", "real", OURS, "vector-quantize-pytorch", 25.0, every_case=True),
    Target("KMeans", "", OURS, "scikit-learn", 5.0, every_case=True),
    Target("KMeans", "", OURS, "faiss-cpu", 5.0, every_case=True),
    Target("KMeans", "", OURS, "superkmeans", 1.0, every_case=True),
)


def verdicts(rows: list[Row]) -> list[Verdict]:
    """Every target with what this run says about it."""
    return [*(_speed(target, rows) for target in TARGETS), *_growth(rows), *_hard(rows), _memory(rows)]


def _speed(target: Target, rows: list[Row]) -> Verdict:
    found = {case: target.ratio(case, methods) for (op, case), methods in cases_of(rows).items() if op == target.op}
    ratios = {case: ratio for case, ratio in found.items() if ratio is not None}
    how = "every case" if target.every_case else "geometric mean"
    wanted = f">= {target.required:g}x, {how}"
    if not ratios:
        return Verdict(target.claim, wanted, f"{target.ours} or {target.baseline} did not run", None)
    value = min(ratios.values()) if target.every_case else geometric_mean(list(ratios.values()))
    measured = f"{value:.2f}x"
    if len(ratios) > 1:
        measured += f" ({min(ratios.values()):.2f} to {max(ratios.values()):.2f} in {len(ratios)} cases)"
    return Verdict(target.claim, wanted, measured, value >= target.required)


def _growth(rows: list[Row]) -> list[Verdict]:
    """Time when N or K is doubled; C is drawn in the figure but has no target."""
    found = []
    for letter in "NK":
        points = sorted(
            (row.info["size"], row.seconds)
            for row in rows
            if row.op == GROWTH and row.method == OURS and row.info["series"] == letter
        )
        factors = [
            later / earlier for (size, earlier), (doubled, later) in itertools.pairwise(points) if doubled == 2 * size
        ]
        claim, wanted = f"codebook_lookup: time when {letter} is doubled", f"<= {GROWTH_TARGET}x"
        if factors:
            measured = " ".join(f"{factor:.2f}x" for factor in factors)
            found.append(Verdict(claim, wanted, measured, max(factors) <= GROWTH_TARGET))
        else:
            found.append(Verdict(claim, wanted, "did not run", None))
    return found


@dataclass(frozen=True)
class HardInput:
    """An input on which screening decides little: its worst level, beside a float32 pass over an easy input of the same
    shape, `against` which it was timed: plain torch's, or that of the level itself (of avx512 for the levels above)."""

    case: str
    kind: str
    against: str
    ratio: float
    level: str
    float64_share: float | None

    def __str__(self) -> str:
        share = "" if self.float64_share is None else f", {self.float64_share:.0%} of rows in float64"
        return f"{self.case} {self.kind}: {self.ratio:.2f}x ({self.level}{share})"


FLOAT32_PASSES = {
    "torch's float32 pass": lambda level: "",
    "a level's own float32 pass": lambda level: "avx2" if level == "avx2" else "avx512",
}


def hard_inputs(rows: list[Row]) -> list[HardInput]:
    """Every hard input of a run at its worst level, against each float32 pass that ran."""
    hard = [row for row in rows if row.op == HARD]
    easy = {(row.case, row.level): row.seconds for row in hard if row.info["kind"] == "easy"}
    worst: dict[tuple[str, str, str], HardInput] = {}
    for against, level_of in FLOAT32_PASSES.items():
        for row in hard:
            key, seconds = (row.case, row.info["kind"], against), easy.get((row.case, level_of(row.level)))
            if row.info["kind"] != "easy" and seconds is not None:
                found = HardInput(*key, row.seconds / seconds, row.level, row.info.get("float64_share"))
                worst[key] = max(found, worst.get(key, found), key=lambda item: item.ratio)
    return list(worst.values())


def hard_table(rows: list[Row]) -> Table:
    """All of them."""
    return Table(("hard input", "against"), [(str(item), item.against) for item in hard_inputs(rows)])


def _hard(rows: list[Row]) -> list[Verdict]:
    found = []
    for against in FLOAT32_PASSES:
        claim, wanted = f"codebook_lookup: hard inputs against {against}", f"<= {HARD_TARGET:g}x"
        items = [item for item in hard_inputs(rows) if item.against == against]
        if items:
            most = max(items, key=lambda item: item.ratio)
            measured = f"{min(item.ratio for item in items):.2f}x to {most.ratio:.2f}x in {len(items)} cases; {most}"
            found.append(Verdict(claim, wanted, measured, most.ratio <= HARD_TARGET))
        else:
            found.append(Verdict(claim, wanted, "did not run", None))
    return found


def _memory(rows: list[Row]) -> Verdict:
    """Extra memory may grow with the packed codebook and the N indices, not with N x K."""
    claim = "codebook_lookup: extra memory"
    wanted = "index + 4 codebooks + 4 MiB per thread"
    ours = [row for row in rows if row.op == MEMORY and row.method == OURS]
    if not ours:
        return Verdict(claim, wanted, "did not run", None)
    met, parts = True, []
    for row in ours:
        num_rows, num_codes, num_channels = row.shape
        allowed = 8 * num_rows + 4 * 4 * num_codes * num_channels + 4 * MIB * row.info["threads"]
        met &= row.info["extra_bytes"] <= allowed
        parts.append(f"{row.case}: {row.info['extra_bytes'] / MIB:.1f} of {allowed / MIB:.1f} MiB")
    matrix = max(4 * row.shape[0] * row.shape[1] for row in ours)
    return Verdict(claim, wanted, f"{'; '.join(parts)}; N x K would be {matrix / MIB:.0f} MiB", met)
