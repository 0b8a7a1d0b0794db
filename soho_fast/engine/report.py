"""What a run says and leaves when it is done: the table, metrics.json and curves.png."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soho_fast.common.errors import print_line
from soho_fast.common.files import read_log, write_atomically
from soho_fast.common.hub import RUN_MODELS
from soho_fast.common.tables import print_table
from soho_fast.common.versions import program, read_run_of
from soho_fast.engine.changes import OF_THE_DATA, digest_of

if TYPE_CHECKING:
    from soho_fast.engine.trainer import Run

# Values of a training record that are not losses of the task.
_NOT_LOSSES = {
    "kind", "step", "epoch", "lr", "grad_norm", "loss_scale", "skipped_steps", "images_per_second", "milliseconds",
    "corrupt_images", "seconds",
}  # fmt: skip
# What a metric's name has before or behind it where it is one that needs no learning, or a count.
_BASELINES = ("majority", "chance", "shuffled", "most_frequent", "no_caption")
_COUNTS, _CHANCE = "num_", "chance_"
_MOST_METRICS = 8


def write_metrics(path: Path, values: Mapping[str, Any]) -> None:
    """Write metrics.json."""
    write_atomically(path, json.dumps(dict(values), indent=1) + "\n")


def draw_curves(log: Path, image: Path) -> None:
    """Draw what a log.jsonl holds over the steps: losses and gradient norm raw and smoothed, held-out metrics with
    their baselines dotted, learning rates. Upright lines are the log's events, named below: where curves jump, and why.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    everything, _ = read_log(log)
    records = [record for record in everything if record["kind"] == "train"]
    if not records:
        return
    evaluations = [record for record in everything if record["kind"] == "evaluation"]
    happened: dict[int, list[str]] = {}
    for record in everything:
        if record["kind"] == "event":
            happened.setdefault(record["step"], []).append(record["event"])
    events = [(step, "; ".join(texts)) for step, texts in happened.items()]
    # A loss that is off at first (or later) has its curve all the same.
    logged = dict.fromkeys(name for record in records for name, value in record.items() if _is_number(value))
    names = [name for name in logged if name not in _NOT_LOSSES]
    norms = [name for name in ("grad_norm",) if name in logged]
    metrics = _metrics_over_steps(evaluations)
    num_cells = len(names) + len(norms) + bool(metrics) + 1
    columns = min(3, num_cells)
    rows = -(-num_cells // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(5 * columns, 3.2 * rows + 0.3 * len(events)), squeeze=False, layout="constrained"
    )
    cells = list(axes.ravel())
    for cell in cells[num_cells:]:
        cell.set_visible(False)
    cells = cells[:num_cells]
    rest = iter(cells)
    for name in (*names, *norms):
        cell = next(rest)
        points = [(record["step"], record[name]) for record in records if _is_number(record.get(name))]
        steps, values = np.array(points, dtype=float).T
        cell.plot(steps, values, linewidth=0.6, alpha=0.35)
        cell.plot(steps, _smoothed(values), linewidth=1.6)
        cell.set_title(name.replace("grad_norm", "gradient norm"))
        if name in norms and (values > 0).all():
            cell.set_yscale("log")
    if metrics:
        cell = next(rest)
        for number, (name, (points, baseline)) in enumerate(metrics.items()):
            cell.plot(*zip(*points, strict=True), marker="o", markersize=3, color=f"C{number}", label=name)
            if baseline is not None:
                cell.axhline(baseline, linestyle=":", linewidth=1, color=f"C{number}")
        cell.set_title("held-out data (dotted: baseline)")
        cell.set_ylim(-0.02, 1.02)
        cell.legend(fontsize=7)
    rates = next(rest)
    for group in records[0]["lr"]:
        points = [(record["step"], record["lr"][group]) for record in records if _is_number(record["lr"].get(group))]
        rates.plot(*np.array(points, dtype=float).reshape(-1, 2).T, label=group)
    rates.set_title("learning rate")
    rates.set_yscale("symlog", linthresh=1e-6)
    rates.legend(fontsize=8)
    last = max(record["step"] for record in everything)
    for cell in cells:
        cell.set_xlabel("step")
        cell.set_xlim(-0.03 * last, 1.03 * last)
        cell.grid(alpha=0.3)
        for number, (step, _) in enumerate(events):
            cell.axvline(step, color="0.35", linestyle="--", linewidth=0.9)
            height = cell.get_xaxis_transform()
            cell.text(step, 0.98, f" {_letter(number)}", transform=height, va="top", fontsize=8, color="0.25")
    if events:
        lines = [f"{_letter(number)}  step {step:,}: {event}" for number, (step, event) in enumerate(events)]
        figure.supxlabel("\n".join(lines), fontsize=9, ha="left", x=0.02)
    figure.savefig(image, dpi=110)
    pyplot.close(figure)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else str(number)


def _metrics_over_steps(
    evaluations: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[list[tuple[int, float]], float | None]]:
    """By name, (step, value) of each share among the metrics, those found most often first, and its baseline."""
    found: dict[str, list[tuple[int, float]]] = {}
    baselines: dict[str, float] = {}
    for record in evaluations:
        for name, value in record["metrics"].items():
            if not isinstance(value, float) or not 0 <= value <= 1 or name.startswith(_COUNTS):
                continue
            if name.startswith(_CHANCE):
                baselines.setdefault(name.removeprefix(_CHANCE), value)
                continue
            ending = next((ending for ending in _BASELINES if name.endswith(f"_{ending}")), None)
            if ending is not None:
                baselines.setdefault(name.removesuffix(f"_{ending}"), value)
            else:
                found.setdefault(name, []).append((record["step"], value))
    names = sorted(found, key=lambda name: -len(found[name]))[:_MOST_METRICS]
    # Chance at the first k is the same both ways, where it has no way in its name.
    return {name: (found[name], baselines.get(name, baselines.get(name.rpartition("_")[2]))) for name in names}


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Moving mean over a twentieth of the run, shorter at its ends."""
    width = max(1, len(values) // 20)
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def say_start(run: Run, name: str) -> None:
    """Print what a run of this recipe trains, how and where."""
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in run.step.engine.module.parameters())
    print_line(
        f"recipe {name}: {parameters / 1e6:.1f} M parameters, {run.total_steps} steps of "
        f"{run.plan.global_batch_size} images ({run.plan.steps_per_epoch:,} an epoch), "
        f"{run.step.precision}, ZeRO {run.step.engine.zero_optimization_stage()}, {run.processes.world} process(es) "
        f"on {run.processes.device.type}; output in {run.folder}/"
    )
    if phase := run.task.phase((run.total_steps - 1) / run.plan.steps_per_epoch):
        print_line(f"warning: until the last step {phase}; raise --epochs or --max_steps, whichever ends the run")


def report_run(run: Run, metrics: Mapping[str, float] | None) -> None:
    """Draw the curves, write metrics.json, print the metrics and what to do next."""
    task: Any = run.task  # which has a table and next commands beside what training asks of it
    folder, progress = run.folder, run.progress
    if run.finished is not None:
        if metrics:
            print_table(task.table(metrics))
        print_line(
            f"{folder}/ is finished at step {progress.step}: nothing is left to do. To train on, give more (as "
            f"{_twice(run)}) and --resume changed; to train again, another --output"
        )
        sys.stdout.flush()
        return
    draw_curves(folder / "log.jsonl", folder / "curves.png")
    identity = run.checkpoints.identity
    # Last, since it is what tells that nothing is left to do.
    write_metrics(
        folder / "metrics.json",
        {
            "step": progress.step,
            "training_seconds": progress.seconds,
            "images_per_second": progress.step * run.plan.global_batch_size / max(progress.seconds, 1e-9),
            "corrupt_images": progress.corrupt_images,
            "images_missing": task.num_missing(),
            "identity": digest_of(identity),
            "data": {name: identity[name] for name in OF_THE_DATA if name in identity},
            "program": program(),
            "precision": run.step.precision,
            "metrics": metrics,
            "at_chance": task.at_chance(metrics or {}),
            "best": {"step": progress.best_step, task.selection: progress.best} if progress.best is not None else None,
        },
    )
    if metrics:
        print_table(task.table(metrics))
    print_line(f"{progress.step} steps in {progress.seconds / 60:.1f} minutes of training; in {folder}/:")
    best = f"  best/ (step {progress.best_step})" if progress.best is not None else ""
    print_line(f"  curves.png  metrics.json  log.jsonl  recipe.yaml  tensorboard/  checkpoints/  model/{best}")
    for line in older_evaluations(folder):
        print_line(line)
    print_line("next:")
    quoted = shlex.quote(str(folder))
    train = "deepspeed soho_fast/train.py" if Path("soho_fast/train.py").is_file() else "python -m soho_fast.train"
    for command in [
        *task.next_commands(folder),
        f"{train} --recipe {quoted}/recipe.yaml --output {quoted}-longer {_twice(run)}",
        f"{train} --help",
    ]:
        print_line(f"  {command}")
    sys.stdout.flush()


def older_evaluations(run: Path) -> list[str]:
    """A line for each evaluation in a run's folder that is of another model than the one that has its name by now."""
    lines = []
    for path in sorted((run / "evaluation").glob("*/metrics.json")):
        try:
            about = json.loads(path.read_text())
            if about["checkpoint"] not in RUN_MODELS:
                continue
            model, was = run / Path(about["model"]).name, [about["step"], about["identity"]]
        except (OSError, ValueError, KeyError, TypeError):  # As of a model that is of no run.
            continue
        now = read_run_of(model)
        if now and was != [now["step"], now["identity"]]:
            lines.append(f"{path.parent} is of step {was[0]}; {model} is of step {now['step']} by now: evaluate again")
    return lines


def _twice(run: Run) -> str:
    """Options that make the run twice as long, whatever ended it."""
    settings, schedule = run.settings, run.settings.schedule
    ended_by_time = run.progress.step < run.total_steps
    steps = run.total_steps if ended_by_time else 2 * run.total_steps
    options = []
    if round(settings.epochs * run.plan.steps_per_epoch) < steps:
        options.append(f"--epochs {2 * settings.epochs:g}")
    if 0 < settings.max_steps < steps:
        options.append(f"--max_steps {2 * settings.max_steps}")
    if settings.max_minutes:
        options.append(f"--max_minutes {2 * settings.max_minutes:g}")
    if schedule.decay == "step" and not ended_by_time:
        options.append(f"--schedule.step_epochs '[{', '.join(f'{2 * epoch:g}' for epoch in schedule.step_epochs)}]'")
    return " ".join(options)


def report_evaluation(task: Any, evaluation: Any, about: Mapping[str, Any], folder: Path) -> None:
    """Write what an evaluation of one split found, and print its metrics.

    Args:
        task: the task.
        evaluation: what `evaluate_split` gave: its `metrics`, and `write(folder)`, which returns the names of files.
        about: what was evaluated, as metrics.json has it; its split and its checkpoint are printed.
        folder: where the files go.
    """
    metrics, where = evaluation.metrics, f"split {about['split']}"
    files = evaluation.write(folder)
    of_run = read_run_of(about["model"]) or {}
    of_run = {name: of_run[name] for name in ("step", "identity") if name in of_run}
    write_metrics(folder / "metrics.json", {**about, **of_run, "program": program(), "metrics": metrics})
    if metrics:
        table = task.table(metrics)
        table.title = f"{table.title}, {where}, checkpoint {about['checkpoint']}"
        print_table(table)
    else:
        print_line(f"{where} has no published answers to compare with")
    print_line(f"in {folder}/:  metrics.json  {'  '.join(files)}")
