"""From the records of pytest-benchmark to what a reader wants: ratios, the share of the machine's limit, bars.

A record is what `--benchmark-json` holds for one case; `extra_info` says what was run (see `time_checked` in
conftest.py). Ratios are between the fastest rounds: what other processes take from a shared machine only ever adds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

LIMITS = "machine limit"
GROWTH = "lookup growth"
MEMORY = "lookup memory"
HARD = "hard inputs"
OURS = "soho_fast"


@dataclass(frozen=True)
class Row:
    """One timed contender: `op` and `case` name what it competes in, `work` what it does in units of the limits."""

    op: str
    case: str
    contender: str
    seconds: float
    wrong: float = 0.0
    level: str = ""
    shape: tuple[int, ...] = ()
    work: dict[str, float] = field(default_factory=dict)
    info: dict = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.contender.startswith(OURS)


def rows_of(records: Iterable[dict]) -> list[Row]:
    """The rows of the op benchmarks among the records; those of other benchmarks are passed over."""
    rows = []
    for record in records:
        info = record["extra_info"]
        if "op" not in info:
            continue
        rows.append(
            Row(
                op=info["op"],
                case=info["case"],
                contender=info["contender"],
                seconds=record["stats"]["min"],
                wrong=info["wrong"],
                level=info["level"],
                shape=tuple(info["shape"]),
                work=info["work"],
                info=info,
            )
        )
    return rows


def limits_of(rows: list[Row]) -> dict[str, float]:
    """The machine's measured limits: operations or bytes per second, by name."""
    return {row.contender: row.work[row.contender] / row.seconds for row in rows if row.op == LIMITS}


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
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def limit_text(row: Row, limits: dict[str, float]) -> str:
    """How much of each limit the row reaches, such as "61 % of float32 product"."""
    parts = [
        f"{100 * amount / row.seconds / limits[name]:.0f} % of {name}"
        for name, amount in row.work.items()
        if name in limits
    ]
    return ", ".join(parts)


def _wrong_text(row: Row) -> str:
    return f" ({row.wrong:.2%} wrong)" if row.wrong else ""


def ratio_table(rows: list[Row]) -> list[tuple[str, str, str, str, str]]:
    """One line per competition and contender of ours: op, case, ours with its time, share of the limits, and how many
    times as long each peer takes."""
    limits = limits_of(rows)
    table = []
    for (op, case), contenders in cases_of(rows).items():
        peers = [row for row in contenders if not row.ours]
        for row in contenders:
            if not row.ours:
                continue
            ratios = [f"{peer.contender} {peer.seconds / row.seconds:.2f}x{_wrong_text(peer)}" for peer in peers]
            ours = f"{row.contender}: {time_text(row.seconds)}"
            if row.info.get("float64_share"):
                ours += f", {row.info['float64_share']:.2%} of rows in float64"
            table.append((op, case, ours, limit_text(row, limits), ", ".join(ratios)))
    return table


def best_lines(rows: list[Row]) -> list[Row]:
    """Of each competition our fastest row; the README shows only these."""
    best = []
    for contenders in cases_of(rows).values():
        ours = [row for row in contenders if row.ours]
        if ours:
            best.append(min(ours, key=lambda row: row.seconds))
    return best
