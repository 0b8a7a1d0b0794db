"""What a run says and leaves when it is done: the table and metrics.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soho_fast.common.errors import print_line
from soho_fast.common.files import write_atomically
from soho_fast.common.tables import print_table
from soho_fast.common.versions import program, read_run_of
from soho_fast.engine.changes import OF_THE_DATA, digest_of

if TYPE_CHECKING:
    from soho_fast.engine.trainer import Run


def write_metrics(path: Path, values: Mapping[str, Any]) -> None:
    """Write metrics.json."""
    write_atomically(path, json.dumps(dict(values), indent=1) + "\n")


def say_start(run: Run, name: str) -> None:
    """Print what a run of this recipe trains, how and where."""
    # Under ZeRO 3 a parameter is empty between uses; `ds_numel` is its whole size.
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in run.step.engine.module.parameters())
    print_line(
        f"recipe {name}: {parameters / 1e6:.1f} M parameters, {run.total_steps} steps of "
        f"{run.plan.global_batch_size} images ({run.plan.steps_per_epoch:,} an epoch), "
        f"{run.step.precision}, ZeRO {run.step.engine.zero_optimization_stage()}, {run.processes.world} process(es) "
        f"on {run.processes.device.type}; output in {run.folder}/"
    )
    if phase := run.task.phase((run.total_steps - 1) / run.plan.steps_per_epoch):
        print_line(f"warning: until the last step {phase}; raise --epochs or --max_steps, whichever ends the run")


def report_run(run: Run, metrics: Mapping[str, float] | None, code: Iterable[tuple[str, str]] = ()) -> None:
    """Write metrics.json, print the metrics and what to do next.

    Args:
        code: (field, import path) of what the run has of a user's own, which the next commands need imported.
    """
    task: Any = run.task  # which has a table and next commands beside what training asks of it
    folder, progress = run.folder, run.progress
    if run.finished is not None:
        if metrics:
            print_table(task.table(metrics))
        print_line(
            f"{folder}/ is finished at step {progress.step}: nothing is left to do. To train on, give more --epochs, "
            "--max_steps or --max_minutes, whichever ends it, and --resume changed; to train again, another --output"
        )
        sys.stdout.flush()
        return
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
    print_line(f"  metrics.json  log.jsonl  recipe.yaml  tensorboard/  checkpoints/  model/{best}")
    print_line("next:")
    for command in task.next_commands(folder):
        print_line(f"  {_with_code(command, list(code))}")
    sys.stdout.flush()


def _with_code(command: str, code: list[tuple[str, str]]) -> str:
    """A command for a run's model, which imports the parts of the model and the task that are a user's."""
    modules = dict.fromkeys(path.partition(":")[0] for name, path in code if name.startswith(("task", "model.config.")))
    command, comment, words = command.partition("  #")
    if modules and command.startswith(("soho evaluate ", "soho explore ")):
        command += " --trust-file"
    elif modules and command.startswith("soho ask "):
        command += "".join(f" --import {module}" for module in modules)
    elif "--model.pretrained " in command:
        command += "".join(f" --{name} {path}" for name, path in code if name.startswith("model.config."))
    return command + comment + words


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
