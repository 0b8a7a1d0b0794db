"""A study's page: what was asked, what was declared in advance, what the rows allow to say, and all of them."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from soho_fast.common.extras import from_extra
from soho_fast.common.files import write_atomically
from soho_fast.studies.comparing import LEVEL, Difference, compare, value_of
from soho_fast.studies.matrix import Cell, Run, of_other_data
from soho_fast.studies.results import Row, by_digest
from soho_fast.studies.study import Study, split_cell, unit_of

with from_extra("train"):
    import numpy as np

# Of a metric with a unit more is not always better.
_HIGHER = {"helps": "higher", "hurts": "lower"}


def rows_by_cell(name: str, runs: Sequence[Run], rows: Sequence[Row]) -> tuple[dict[Cell, Row], int]:
    """The row of each cell of the matrix, and how many of them were made by other settings than the study has now.

    Rows of a study's file as it was before are taken of a stage without rows of today's: what was measured stays
    measured, but conditions of different settings are not compared.
    """
    found, old = by_digest(rows), 0
    today = {cell.stage for run in runs if run.digest in found for cell in run.cells}
    last = {
        Cell(row["condition"], row["seed"], row["stage"]): row
        for row in rows
        if row["study"] == name and not row.get("variant")
    }
    cells: dict[Cell, Row] = {}
    for run in runs:
        for cell in run.cells:
            row = found.get(run.digest)
            if row is None and cell.stage not in today:
                row = last.get(cell)
            if row is not None:
                cells[cell] = row
                old += row["digest"] != run.digest
    return cells, old


def write_report(folder: Path, name: str, study: Study, runs: Sequence[Run], rows: Sequence[Row]) -> list[Path]:
    """Write `report.md`, `report.png` (the differences) and `differences.jsonl` into a folder; returns their paths."""
    cells, old = rows_by_cell(name, runs, rows)
    differences = compare(study, cells)
    folder.mkdir(parents=True, exist_ok=True)
    figure = folder / "report.png"
    drawn = draw(differences, figure)
    text = page(name, study, runs, cells, old, differences, figure.name if drawn else "")
    write_atomically(folder / "report.md", text)
    records = ({**vars(each), "verdict": each.verdict} for each in differences)
    lines = [json.dumps({name: None if value != value else value for name, value in each.items()}) for each in records]
    write_atomically(folder / "differences.jsonl", "".join(f"{line}\n" for line in lines))
    return [folder / "report.md", *([figure] if drawn else []), folder / "differences.jsonl"]


def page(
    name: str,
    study: Study,
    runs: Sequence[Run],
    cells: Mapping[Cell, Row],
    old: int,
    differences: Sequence[Difference],
    figure: str = "",
    rows: str = "",
) -> str:
    """The Markdown page; where the place of its rows is given, no more of it than fits a screen."""
    planned = sum(len(run.cells) for run in runs)
    seconds = sum({id(row): row["seconds"] for row in cells.values() if "seconds" in row}.values())
    processors = Counter(row.get("versions", {}).get("processor", "unknown") for row in cells.values())
    lines = [f"# {study.title}", "", " ".join(study.question.split()), ""]
    where = "; ".join(f"{count:,} on {kind}" for kind, count in processors.most_common()) or "none"
    lines.append(f"{len(cells):,} of {planned:,} results are there ({where}): {seconds / 3600:.1f} hours of computing.")
    if len(cells) < planned:
        lines.append(f"**{planned - len(cells):,} are missing**; what is said below is of those that are there.")
    if old:
        lines.append(f"{old:,} of them were made by other settings than `{name}.yaml` has now.")
    lines += [f"\n**{line}**" for line in of_other_data(runs, by_digest(cells.values()))]
    lines += ["", "| condition | what it is | seeds |", "|---|---|---|"]
    for condition, settings in study.conditions.items():
        seeds = settings.seeds or study.seeds
        lines.append(f"| {condition} | {settings.about} | {', '.join(map(str, seeds))} |")
    declared = [each for each in differences if each.declared]
    explored = [each for each in differences if not each.declared and each.verdict != "unknown"]
    few = sum(not each.declared and bool(each.differences) and each.verdict == "unknown" for each in differences)
    unknown = sum(not each.declared and not each.differences for each in differences)
    if declared:
        shares = "; ".join(composite_labels(study))
        lines += ["", "## Declared in advance", "", f"The composite is the mean logit of {shares}.", ""]
        lines += [*_table(declared), "", *(f"- {sentence(each)}" for each in declared)]
    if figure:
        lines += ["", f"![Differences with their intervals]({figure})"]
    if rows:
        return "\n".join([*lines, "", f"All metrics of all runs: `{rows}`."]) + "\n"
    if explored:
        certain = [each for each in explored if each.verdict in ("helps", "hurts")]
        lines += ["", "## Explored", "", *_table(explored), ""]
        lines += [f"- {sentence(each)}" for each in certain] or ["None of these holds for all of them together."]
    if few:
        lines += ["", f"Comparisons of too few pairs for an interval, whose values stand below: {few:,}."]
    if unknown:
        lines += ["", f"{unknown:,} more comparisons have no results yet."]
    lines += ["", "## All metrics", "", *_values(study, cells)]
    if differences:
        lines += ["", _how(differences)]
    return "\n".join(lines) + "\n"


def composite_labels(study: Study) -> list[str]:
    """What a study's composite is the mean of, in its readers' words."""
    cells = (split_cell(cell, "composite") for cell in study.composite)
    return [study.stages[stage].metrics[metric] for stage, metric in cells]


def _how(differences: Sequence[Difference]) -> str:
    text = (
        "Differences are of the same seed, in percentage points where no unit stands. p is two-sided and exact: the "
        "share of all ways to turn the signs of the seeds' differences around in which the largest of all comparisons "
        f"of its table is as large; the {100 * LEVEL:.0f} % intervals, by the same, hold for all of them together."
    )
    if any(map(_has_pairs, differences)):
        text += (
            " Pairs of a factor's levels are one of each combination of the others', of one seed; the test takes them "
            "for draws as it does seeds, and nothing is said of another seed."
        )
    return text


def _has_pairs(each: Difference) -> bool:
    return any(", " in name for name in each.differences)


def sentence(each: Difference) -> str:
    """What one difference allows to say."""
    what = f"{each.label}: **{each.condition}** against **{each.against}**"
    seeds = f"{len(each.differences)} {'pairs of one seed' if _has_pairs(each) else 'seeds'}"
    if each.missing:
        seeds += f"; {', '.join(each.missing)} missing" if each.differences else f"; {len(each.missing)} missing"
    interval = f"[{_signed(each.low, each.unit)}, {_signed(each.high, each.unit)}]"
    match each.verdict:
        case "helps" | "hurts":
            as_shares = f", as from {_share(each.base)} to {_share(each.base + each.mean)}" if each.declared else ""
            return f"{what} {_word(each)}: {_signed(each.mean, each.unit)} {interval}{as_shares} ({seeds})."
        case "unclear":
            return (
                f"{what}: {_signed(each.mean, each.unit)} {interval} ({seeds}), which among {each.family} comparisons "
                "can be chance."
            )
        case "none" if each.low == each.high:
            return f"{what}: no difference was found; the two are the same in all of {seeds}."
        case "none":
            return (
                f"{what}: no difference was found; a gain of more than {_plain(each.high, each.unit)} and a loss of "
                f"more than {_plain(-each.low, each.unit)} are excluded ({seeds})."
            )
    return f"{what}: too few results to say anything ({seeds})."


def _word(each: Difference) -> str:
    return f"is {_HIGHER[each.verdict]}" if each.unit and not each.declared else each.verdict


def _share(logit: float) -> str:
    return f"{100 / (1 + math.exp(-logit)):.1f} %"


def _table(differences: Sequence[Difference]) -> list[str]:
    lines = [
        "| metric | condition | against | difference | 95 % interval | p | pairs | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    words = {"none": "no difference found", "unclear": "can be chance", "unknown": "too few"}
    for each in differences:
        interval = "" if math.isnan(each.low) else f"{_signed(each.low, each.unit)} to {_signed(each.high, each.unit)}"
        p = "" if math.isnan(each.adjusted) else f"{each.adjusted:.3f}" if each.adjusted >= 0.001 else "< 0.001"
        mean = "" if math.isnan(each.mean) else _signed(each.mean, each.unit)
        missing = f" ({len(each.missing)} missing)" if each.missing else ""
        cells = [each.label, each.condition, each.against, mean, interval, p, f"{len(each.differences)}{missing}"]
        word = words.get(each.verdict) or _word(each).removeprefix("is ")
        lines.append(f"| {' | '.join(cells)} | {word} |")
    return lines


def _values(study: Study, cells: Mapping[Cell, Row]) -> list[str]:
    """Each metric's mean and standard deviation over seeds, of each condition."""
    conditions = [condition for condition in study.conditions if any(cell.condition == condition for cell in cells)]
    lines = [f"| metric | {' | '.join(conditions)} |", "|---" * (len(conditions) + 1) + "|"]
    for stage, settings in study.stages.items():
        for metric, label in settings.metrics.items():
            shown = []
            for condition in conditions:
                here = [row for cell, row in cells.items() if (cell.condition, cell.stage) == (condition, stage)]
                values = [value for row in here if (value := value_of(row, metric)) is not None]
                shown.append(_mean(values, unit_of(label)))
            if any(shown):
                lines.append(f"| {label} | {' | '.join(shown)} |")
    return [*lines, "", "Mean ± standard deviation over the seeds that are there."]


def _mean(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    spread = f" ± {_number(float(np.std(values, ddof=1)), unit)}" if len(values) > 1 else ""
    return f"{_number(float(np.mean(values)), unit)}{spread}"


def _number(value: float, unit: str) -> str:
    return f"{value:.3g}" if unit else f"{100 * value:.1f}"


def _plain(value: float, unit: str, sign: str = "") -> str:
    return f"{value:{sign}.3g} {unit}" if unit else f"{100 * value:{sign}.1f}"


def _signed(value: float, unit: str) -> str:
    return _plain(value, unit, "+")


def draw(differences: Sequence[Difference], path: Path) -> bool:
    """Draw the declared differences with their intervals, a line each. False if no difference was declared."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [each for each in differences if each.declared and each.differences][::-1]
    if not shown:
        return False
    figure, axis = pyplot.subplots(figsize=(8, 1 + 0.35 * len(shown)), layout="constrained")
    for place, each in enumerate(shown):
        colour = {"helps": "tab:green", "hurts": "tab:red"}.get(each.verdict, "0.45")
        if not math.isnan(each.low):
            axis.plot([each.low, each.high], [place, place], color=colour, linewidth=2)
        values = list(each.differences.values())
        axis.plot(values, [place] * len(values), "|", color=colour, markersize=6, alpha=0.6)
        axis.plot(each.mean, place, "D", color=colour, markersize=5)
    axis.set_yticks(range(len(shown)), [f"{each.condition} - {each.against}" for each in shown], fontsize=8)
    axis.set_ylim(-0.7, len(shown) - 0.3)
    axis.axvline(0, color="0.2", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("composite, logits; 95 % intervals, which hold together; ticks are seeds", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
