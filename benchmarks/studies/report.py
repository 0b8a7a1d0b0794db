"""What a study's rows say, as Markdown."""

import json
from collections import Counter
from collections.abc import Sequence

from benchmarks.studies.comparing import Cells, Difference, compare
from benchmarks.studies.study import Row, Run, Study
from benchmarks.tables import Table, as_markdown

_HEAD = (
    "metric",
    "condition",
    "against",
    "mean",
    "difference",
    "95 % interval",
    "p",
    "adjusted",
    "equivalence",
    "seeds",
    "",
)


def cells_of(name: str, runs: Sequence[Run], rows: Sequence[Row]) -> Cells:
    """The newest row of each run by (condition, seed, stage); of other settings where there is none of today's."""
    of_today = {row["digest"]: row for row in rows}
    of_before = {(row["condition"], row["seed"], row["stage"]): row for row in rows if row["study"] == name}
    places = {(run.condition, run.seed, run.stage): run for run in runs}
    found = {place: of_today.get(run.digest, of_before.get(place)) for place, run in places.items()}
    return {place: row for place, row in found.items() if row}


def report(name: str, study: Study, runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """The report of all rows so far."""
    cells, digests = cells_of(name, runs, rows), {run.digest for run in runs}
    # Rows of before have it among their versions.
    commits = Counter((row.get("commit") or row["versions"].get("commit", "unknown"))[:8] for row in cells.values())
    of_before = sum(row["digest"] not in digests for row in cells.values())
    lines = [f"# {study.title}", "", " ".join(study.question.split()), ""]
    lines.append(f"{len(cells)} of {len(runs)} rows are there, {of_before} of them of other settings than it has now.")
    lines += [f"{count} rows are of commit {commit}." for commit, count in commits.items()]
    of_data = {json.dumps([*place[1:], row.get("data")]) for place, row in cells.items()}
    if len(of_data) > len({place[1:] for place in cells}):
        lines.append("**Rows of the same stage and seed are of different data.**")
    declared, explored = compare(study, cells)
    if declared:
        margin = f"; smallest difference that matters: {study.smallest_difference:g}" * (study.smallest_difference > 0)
        lines += ["", "## Declared", "", f"Composite: mean logit of {', '.join(study.composite)}{margin}.", ""]
        lines.append(as_markdown(Table(_HEAD, [_line_of(each) for each in declared])))
    if explored:
        lines += ["", "## Explored", "", as_markdown(Table(_HEAD, [_line_of(each) for each in explored]))]
    return "\n".join(lines) + "\n"


def _line_of(each: Difference) -> list[str]:
    is_share = not each.label.endswith(")")

    def shown(value: float, sign: str = "+") -> str:
        return f"{100 * value:{sign}.1f} %" if is_share else f"{value:{sign}.3g}"

    numbers = [shown(each.base, ""), shown(each.mean), f"{shown(each.low)} to {shown(each.high)}"]
    numbers += [f"{value:.3f}" for value in (each.p, each.adjusted, each.p_equivalent)]
    numbers = ["" if "nan" in cell else cell for cell in numbers]
    return [each.label, each.condition, each.against, *numbers, str(len(each.by_seed)), each.verdict]
