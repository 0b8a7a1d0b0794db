"""What a run leaves when it is done: the table, metrics.json and curves.png."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from soho_fast.engine.checkpoint import write_atomically
from soho_fast.engine.logs import read_log
from soho_fast.engine.task import Table

# Values of a training record that are not losses of the task.
_NOT_CURVES = {
    "kind", "step", "epoch", "lr", "grad_norm", "loss_scale", "skipped_steps", "images_per_second", "milliseconds",
    "broken_images", "seconds",
}  # fmt: skip


def print_table(table: Table) -> None:
    """Print measures beside their baselines."""
    drawn = RichTable(title=table.title)
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    console = Console()
    # Without a terminal rich assumes 80 columns and would fold the table.
    Console(width=max(console.width, 110) if not console.is_terminal else None).print(drawn)


def write_metrics(path: Path, values: Mapping[str, Any]) -> None:
    """Write metrics.json."""
    write_atomically(path, json.dumps(dict(values), indent=1) + "\n")


def draw_curves(log: Path, picture: Path) -> None:
    """Draw every loss of a log.jsonl over the steps, raw and smoothed, with the learning rates last."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [record for record in read_log(log) if record["kind"] == "train"]
    if not records:
        return
    # A loss that is off at first (or later) has its curve all the same.
    names = [name for name in dict.fromkeys(key for record in records for key in record) if name not in _NOT_CURVES]
    columns = min(3, len(names) + 1)
    rows = -(-(len(names) + 1) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.2 * rows), squeeze=False)
    cells = axes.ravel()
    for cell, name in zip(cells, names, strict=False):
        points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        steps, values = np.array(points, dtype=float).T
        cell.plot(steps, values, linewidth=0.6, alpha=0.35)
        cell.plot(steps, _smoothed(values), linewidth=1.6)
        cell.set_title(name)
    rates = cells[len(names)]
    for group in records[0]["lr"]:
        rates.plot([record["step"] for record in records], [record["lr"][group] for record in records], label=group)
    rates.set_title("learning rate")
    rates.set_yscale("symlog", linthresh=1e-6)
    rates.legend()
    for cell in cells:
        cell.set_xlabel("step")
        cell.grid(alpha=0.3)
    for cell in cells[len(names) + 1 :]:
        cell.set_visible(False)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Moving mean over a twentieth of the run, shorter at its ends."""
    width = max(1, len(values) // 20)
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
