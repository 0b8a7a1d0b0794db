"""What a result of the inference study says: tables, and a figure of the stages."""

from pathlib import Path

from benchmarks.inference.baselines import EXACT, SOHO
from benchmarks.inference.targets import BATCHED, BY_CLASS, Row
from benchmarks.ops.report import time_text
from benchmarks.tables import Table

# Section 4.5's three stages of the region pipeline and two of SOHO, in its words, and where ours belong.
COLOURS = {"CNN": "#4477aa", "regions": "#cc6677", "Transformer": "#ddaa33"}
PARTS = {
    "CNN": "CNN",
    "visual tokens": "CNN",
    "proposals": "regions",
    "features of boxes": "regions",
    BY_CLASS: "regions",
    BATCHED: "regions",
    "Transformer": "Transformer",
}


def rows_of(result: dict) -> list[Row]:
    return [Row(**row) for row in result["rows"]]


def setup(result: dict) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return (
        f"{result['machine']}, {result['threads']} threads; {result['input']}; {versions}; {result['datetime'][:10]}."
    )


def stages(result: dict) -> Table:
    """Seconds of each stage at batch 1, memory, operations and errors."""
    lines = []
    for row in (row for row in rows_of(result) if row.batch == 1):
        seconds = {stage: time_text(value) for stage, value in row.seconds.items()}
        if row.family == SOHO:
            cells = [seconds["visual tokens"], "", "", "", seconds["Transformer"], time_text(row.total())]
        else:
            cells = [seconds[name] for name in ("CNN", "proposals", "features of boxes")]
            cells += [f"{seconds[BY_CLASS]} / {seconds[BATCHED]}", seconds["Transformer"]]
            cells += [f"{time_text(row.total(BY_CLASS))} / {time_text(row.total())}"]
        memory = result["peak_bytes"].get(row.method)
        cells.append("" if memory is None else f"{memory / 1e9:.2f} GB")
        operations = result["operations"].get(row.family)
        cells.append("" if operations is None else f"{sum(operations.values()) / 1e9:,.0f} G")
        found = result["agreement"].get(row.method)
        cells.append(
            "" if found is None else f"{max(found['features'], found['logits']):.2g}, {found['same_codes']:.1%}"
        )
        lines.append([row.method, *cells])
    names = ("CNN", "proposals", "features of boxes", "NMS by class / batched", "Transformer", "total")
    return Table(("batch 1", *names, "memory", "operations", "error, same codes"), lines)


def speeds(result: dict) -> Table:
    """Of each method images a second by batch size, how many times eager SOHO's, and the share of equal codes."""
    rows, agreement = rows_of(result), result["agreement"]
    batches = sorted({row.batch for row in rows})
    eager = {row.batch: row.total() for row in rows if row.method == EXACT}
    lines = []
    for name in dict.fromkeys(row.method for row in rows):
        mine = {row.batch: row.total() for row in rows if row.method == name}
        same = f"{agreement[name]['same_codes']:.1%}" if name in agreement else ""
        lines.append([name, *(_rate(batch, mine.get(batch), eager.get(batch)) for batch in batches), same])
    return Table(("images a second", *(f"batch {batch}" for batch in batches), "equal codes"), lines)


def _rate(batch: int, seconds: float | None, eager: float | None) -> str:
    if seconds is None:
        return ""
    return f"{batch / seconds:.2f}" + ("" if eager is None else f" ({eager / seconds:.2f}x)")


def boxes(result: dict) -> Table:
    """What the NMS had to do."""
    names = list(dict.fromkeys(nms for seen in result["boxes"].values() for nms in seen))
    lines = [
        [method, *("{:,} to {:,}".format(*seen[nms]) if nms in seen else "" for nms in names)]
        for method, seen in result["boxes"].items()
    ]
    return Table(("boxes that enter and leave", *names), lines)


def draw(result: dict, path: Path) -> None:
    """Stages of each method at batch 1 as bars from left to right, as section 4.5 argues."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [
        (f"{row.method}, {nms}" if row.family != SOHO else row.method, row.stages(nms))
        for row in rows_of(result)
        if row.batch == 1
        for nms in ((BY_CLASS, BATCHED) if row.family != SOHO else (BATCHED,))
    ]
    figure = Figure(figsize=(10, 0.34 * len(shown) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = max(sum(stages.values()) for _, stages in shown)
    for place, (_, stages) in enumerate(shown):
        left = 0.0
        for stage, seconds in stages.items():
            axes.barh(place, seconds, left=left, color=COLOURS[PARTS[stage]], edgecolor="white", linewidth=0.6)
            left += seconds
        axes.text(left + 0.005 * longest, place, f"{time_text(left)}, {longest / left:.1f}x", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14 * longest)
    axes.set_xlabel("seconds for an image and 16 words")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=[Patch(color=colour, label=name) for name, colour in COLOURS.items()], fontsize=8)
    axes.set_title(setup(result), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
