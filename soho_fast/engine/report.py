"""What a run says and leaves when it is done: the table and metrics.json."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soho_fast.common.errors import print_line
from soho_fast.common.files import read_json, write_atomically
from soho_fast.common.hub import RUN_MODELS
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
            f"{folder}/ is finished at step {progress.step}: nothing is left to do. To train on, give more (as "
            f"{_twice(run)}) and --resume changed; to train again, another --output"
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
    for line in older_evaluations(folder):
        print_line(line)
    print_line("next:")
    quoted = shlex.quote(str(folder))
    train = "deepspeed soho_fast/train.py" if Path("soho_fast/train.py").is_file() else "python -m soho_fast.train"
    code, trackers = list(code), run.settings.log.trackers
    trust = " --trust-file" if code or trackers else ""
    for command in [
        *(_with_code(each, code) for each in task.next_commands(folder)),
        f"{train} --recipe {quoted}/recipe.yaml --output {quoted}-longer {_twice(run)}{trust}",
        f"{train} --help",
    ]:
        print_line(f"  {command}")
    sys.stdout.flush()


def _with_code(command: str, code: list[tuple[str, str]]) -> str:
    """A command for a run's model, which imports the parts of the model and the task that are a user's."""
    modules = dict.fromkeys(path.partition(":")[0] for name, path in code if name.startswith(("task", "model.config.")))
    command, comment, words = command.partition("  #")
    if modules and re.search(r"soho_fast\.(evaluate|explore) ", command):
        command += " --trust-file"
    elif modules and "soho_fast.ask " in command:
        command += "".join(f" --import {module}" for module in modules)
    elif "--model.pretrained " in command:
        command += "".join(f" --{name} {path}" for name, path in code if name.startswith("model.config."))
    return command + comment + words


def older_evaluations(run: Path) -> list[str]:
    """A line for each evaluation in a run's folder that is of another model than the one that has its name by now."""
    lines = []
    for path in sorted((run / "evaluation").glob("*/metrics.json")):
        try:
            about = read_json(path)
            if about["checkpoint"] not in RUN_MODELS:
                continue
            # By its name in this folder: the run may have been moved since.
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
    # Where the clock ended it only the minutes have to grow: no limit below is less than `steps` then.
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
