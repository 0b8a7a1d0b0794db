"""What a run of the op benchmarks says: rows, ratios, the share of the machine's limits, tables and a figure of them.

Ratios are between the fastest rounds: what other processes take from a shared machine only ever adds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.tables import Table

LIMITS = "machine limit"
GROWTH = "lookup growth"
MEMORY = "lookup memory"
HARD = "hard inputs"
OURS = "soho_fast"
AXES = {"N": "features", "K": "codes", "C": "channels"}


@dataclass(frozen=True)
class Row:
    """One timed method: `op` and `case` name its competition, `work` what it does in units of the limits."""

    op: str
    case: str
    method: str
    seconds: float
    wrong: float = 0.0
    level: str = ""
    shape: tuple[int, ...] = ()
    work: dict[str, float] = field(default_factory=dict)
    info: dict = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.method.startswith(OURS)


def rows_of(records: Iterable[dict]) -> list[Row]:
    """The rows of the op benchmarks among pytest-benchmark's records; those of other benchmarks are passed over.

    Their `extra_info` says what was run: see `time_checked` in conftest.py.
    """
    rows = []
    for record in records:
        if "op" in record["extra_info"]:
            info = dict(record["extra_info"])
            known = {name: info.pop(name) for name in ("op", "case", "method", "wrong", "level", "shape", "work")}
            rows.append(Row(**known, seconds=record["stats"]["min"], info=info))
    return rows


def limits_of(rows: list[Row]) -> dict[str, float]:
    """The machine's measured limits: operations or bytes per second, by name."""
    return {row.method: row.work[row.method] / row.seconds for row in rows if row.op == LIMITS}


def cases_of(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """The competitions, in the order they ran: (op, case) -> its rows."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.op not in (LIMITS, GROWTH, MEMORY, HARD):
            cases.setdefault((row.op, row.case), []).append(row)
    return cases


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def time_text(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _limit_text(row: Row, limits: dict[str, float]) -> str:
    """How much of each limit the row reaches, such as "61 % of float32 product"."""
    parts = [
        f"{100 * amount / row.seconds / limits[name]:.0f} % of {name}"
        for name, amount in row.work.items()
        if name in limits
    ]
    return ", ".join(parts)


def tables(rows: list[Row], *, limits: bool) -> dict[str, Table]:
    """By op, of each case our fastest row and how many times as long each baseline takes; `limits` adds our share of
    the machine's."""
    of_machine, found = limits_of(rows), {}
    for (op, case), competing in cases_of(rows).items():
        ours = [row for row in competing if row.ours]
        baselines = {row.method: row for row in competing if not row.ours}
        if ours and baselines:
            found.setdefault(op, {})[case] = min(ours, key=lambda row: row.seconds), baselines
    shown = {}
    for op, cases in found.items():
        names = list(dict.fromkeys(name for _, baselines in cases.values() for name in baselines))
        lines = []
        for case, (best, baselines) in cases.items():
            cells = [case, f"{time_text(best.seconds)} ({best.method.removeprefix(OURS).strip() or OURS})"]
            cells += [_limit_text(best, of_machine)] * limits
            lines.append([*cells, *(_ratio_text(baselines.get(name), best) for name in names)])
        shown[op] = Table(("case", "ours", *["of the machine's limit"] * limits, *names), lines)
    return shown


def _ratio_text(baseline: Row | None, ours: Row) -> str:
    if baseline is None:
        return ""
    return f"{baseline.seconds / ours.seconds:.3g}x" + f" ({baseline.wrong:.2%} wrong)" * bool(baseline.wrong)


def blas_text(found: dict[str, list[dict[str, str]]]) -> str:
    """What `blas.recorded` gave, such as "faiss-cpu SkylakeX (openblas 0.3.15)"."""
    return ", ".join(
        f"{package} {each['kernel'] or 'unnamed'} ({each['library']} {each['version']})"
        for package, libraries in found.items()
        for each in libraries
    )


def training_steps(steps: list[dict]) -> Table:
    """Of each shape and precision images a second, ours and the eager pipeline's, and their ratio."""
    table = []
    for step in steps:
        precision = step["method"].removeprefix(OURS).strip() or "float32"
        rates = [f"{step[key]:.1f} images/s" for key in ("images_per_second", "eager_images_per_second")]
        numbers = [f"{step['ratio']:.2f}x", f"{step['cpu_ratio']:.2f}x", f">= {step['target']:g}x"]
        word = "met" if step["ratio"] >= step["target"] else "**missed**"
        table.append([f"{step['shape']}, {precision}", *rates, *numbers, word])
    return Table(("training step", "ours", "eager float32", "ratio", "by CPU time", "target", "result"), table)


def _fixed(shapes: list[tuple[int, ...]], series: str) -> str:
    """What stays the same in a series of lookups, such as "K = 1,024 codes, C = 128 channels"."""
    parts = []
    for name, sizes in zip(AXES, zip(*shapes, strict=True), strict=True):
        if name != series:
            sizes = sorted(set(sizes))
            parts.append(f"{name} = {' and '.join(f'{size:,}' for size in sizes)} {AXES[name]}")
    return ", ".join(parts)


def draw(rows: list[Row], machine: str, path: Path) -> None:
    """Time against N, K and C on logarithmic axes, one line per method, with what is fixed and what ran it.

    Raises:
        ValueError: there are no such rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.op == GROWTH]
    if not rows:
        raise ValueError("result: it holds no growth curves: no figure (test_lookup_growth.py runs with --full)")
    levels = {row.method: row.level for row in rows if row.level}
    names = list(dict.fromkeys(row.method for row in rows))
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, series in zip(figure.subplots(1, 3, sharey=True), AXES, strict=True):
        points = [row for row in rows if row.info["series"] == series]
        for number, name in enumerate(names):
            line = sorted((row.info["size"], 1e3 * row.seconds) for row in points if row.method == name)
            axes.plot(
                *zip(*line, strict=True),
                marker="o",
                linewidth=2.5 if name == OURS else 1.2,
                color=f"C{number}",
                label=f"{name} ({levels[name]})" if name in levels else name,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(f"{AXES[series]} {series}")
        axes.set_title(_fixed([row.shape for row in points], series), fontsize=10)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("ms, float32")
    figure.suptitle(f"Codebook lookup: nearest of K codes for N features of C channels. {machine}", fontsize=11)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
