"""Evaluate a model on a split of its task, alone or on several processes.

python -m soho_fast.evaluate --run runs/mini_vqa --split val
deepspeed --module soho_fast.evaluate --run runs/mini_vqa --split test --checkpoint last
python -m soho_fast.evaluate --recipe vqa --checkpoint FOLDER --split val --data_roots.vqa ... --data_roots.coco ...

Killed, the same command goes on where it was, also with another number of processes.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Run as a script, python puts this file's own folder first, where `data`, `engine`, ... would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Before torch loads OpenMP; see train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra

# Nothing heavy; see train.py.
with from_extra("train"):
    from soho_fast.common.command_line import Parser, as_text
    from soho_fast.common.errors import DISK_ERRORS, UserError, environment_rank, fail
    from soho_fast.common.hub import check_name, no_such_path
    from soho_fast.common.spelling import did_you_mean
    from soho_fast.engine.watchdog import PROCESS_FAILED, leave_heartbeat
    from soho_fast.tasks.recipe import build_demo_corpus, read_recipe, with_data_roots

# A run's folders of exported models, by what they are called on the command line.
CHECKPOINTS = {"best": "best", "last": "model"}

# Samples that int8 takes its ranges from.
_CALIBRATION_SAMPLES, _CALIBRATION_BATCH = 64, 8


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 75 a process
    failed (was killed), 130 when stopped."""
    rank, _ = environment_rank()
    try:
        with contextlib.ExitStack() as held:
            held.push(leave_heartbeat)
            return _run(sys.argv[1:] if arguments is None else arguments, held)
    except UserError as error:
        return fail(str(error), rank)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        said = f"{error.filename or 'results'}: {error.strerror}"
        return fail(f"{said}; with room again the same command goes on where this one was", rank)
    except RuntimeError as error:
        from soho_fast.common.workers import lost_worker

        told = lost_worker(error)
        if told is None:
            raise
        return fail(f"{told}; the same command goes on where this one was", rank, PROCESS_FAILED)
    except KeyboardInterrupt:
        if rank == 0:
            print("\nstopped; the same command goes on where this one was", file=sys.stderr)
        return 128 + signal.SIGINT


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="evaluate.py",
        description="Evaluate a model on a split of its task.",
        epilog="Every field of the recipe can be given too, as in training (train.py --recipe ... --help).",
    )
    parser.add_argument("--run", help="Folder of a training run; its recipe.yaml says what the task and the data are.")
    parser.add_argument("--recipe", help="Name or path of a recipe, where there is no run.")
    parser.add_argument(
        "--checkpoint",
        help="best or last of the run, or the folder (or hub name) of a model; the best one where there is one.",
    )
    parser.add_argument("--split", help="Name of a split of the recipe; the one to validate on when not given.")
    parser.add_argument(
        "--prepare",
        choices=["auto", "float32", "bf16", "fp16", "int8"],
        help="Prepare the model for inference in this precision, which is faster (docs/inference.md). int8 takes the "
        "ranges of its layers from training samples.",
    )
    parser.add_argument(
        "--into", help="Folder for the results; evaluation/<split>-<checkpoint>[-<precision>] of the run by default."
    )
    return parser.parse_known_args(as_text(arguments))


def _checkpoint(run: str | None, wanted: str | None) -> tuple[str, str]:
    """(folder or hub name of the model, what to call it)."""
    if run is None:
        if wanted is None or wanted in CHECKPOINTS:
            raise UserError(f"checkpoint: without --run, expected the folder or hub name of a model, got {wanted}")
        return _model(wanted)
    present = {name: Path(run) / folder for name, folder in CHECKPOINTS.items() if (Path(run) / folder).is_dir()}
    if wanted is None and not present:
        raise UserError(f"run: {run} has neither best/ nor model/; is it the folder of a run that has ended?")
    name = wanted or next(iter(present))
    if name in CHECKPOINTS:
        if name not in present:
            there = ", ".join(present) or "nothing"
            raise UserError(f"checkpoint: {run} has no {name} model ({CHECKPOINTS[name]}/); there is: {there}")
        return str(present[name]), name
    if not Path(name).exists() and (similar := did_you_mean(name, CHECKPOINTS)):
        raise UserError(f"checkpoint: expected best, last, or the folder or hub name of a model, got {name}{similar}")
    return _model(name)


def _model(name: str) -> tuple[str, str]:
    try:
        check_name(name, needs_owner=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint: {error}") from error
    return name, Path(name).name


def _check_split(recipe: Any, split: str | None) -> None:
    splits = list(getattr(recipe.data, "splits", ["heldout"]))
    if split is not None and split not in splits:
        similar = did_you_mean(split, splits)
        raise UserError(f"split: expected one of {', '.join(splits) or '(none given)'}, got {split!r}{similar}")


def _check_into(into: str | None) -> None:
    if into is not None and (Path(into) / "recipe.yaml").exists():
        raise UserError(f"into: {into} is the folder of a run, whose metrics.json would be lost; give another folder")


def _run(arguments: list[str], held: contextlib.ExitStack) -> int:
    options, rest = _options(arguments)
    if (options.run is None) == (options.recipe is None):
        raise UserError("expected exactly one of --run and --recipe")
    if options.run is not None and not Path(options.run).is_dir():
        raise UserError(f"run: {options.run}: {no_such_path(options.run)}; expected the folder of a training run")
    if options.run is not None and not (Path(options.run) / "recipe.yaml").is_file():
        raise UserError(f"run: {options.run} has no recipe.yaml; expected the folder of a training run")
    named = options.recipe or str(Path(options.run) / "recipe.yaml")
    flags = ("--run", "--recipe", "--checkpoint", "--split", "--prepare", "--into")
    recipe, name = read_recipe(["--recipe", named, *rest], flags=flags)
    recipe = with_data_roots(recipe)
    _check_split(recipe, options.split)
    _check_into(options.into)
    model_folder, called = _checkpoint(options.run, options.checkpoint)
    with from_extra("train"):
        from transformers.utils import logging as transformers_logging

        from soho_fast.common.lock import only_user
        from soho_fast.common.progress import ProgressLines
        from soho_fast.common.tables import print_table
        from soho_fast.engine.distributed import leave_processes, start_processes
        from soho_fast.engine.report import write_metrics
    processes = start_processes(recipe.engine.threads, recipe.engine.timeout_seconds)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # What could not be loaded is told by an error of ours, in a line.
    say = print if processes.is_main else _silent
    try:
        build_demo_corpus(recipe.corpus, processes)
        task = recipe.make_task(say)
        model = task.load_model(model_folder).to(processes.device)
        if options.prepare is None:
            task.speed_up(model, processes.device)
        else:
            calibration = _calibration(task, processes.device) if options.prepare == "int8" else None
            model.prepare_for_inference(options.prepare, calibration=calibration)
        split = options.split or task.default_split
        prepared = model.prepared["precision"] if options.prepare else None
        own = f"{split}-{called}-{prepared}" if prepared else f"{split}-{called}"
        folder = Path(options.into or Path(options.run or f"runs/{name}") / "evaluation" / own)
        how = f", prepared in {prepared}" if prepared else ""
        say(f"{task.name}, split {split}, checkpoint {called} ({model_folder}){how}, {processes.world} process(es)")
        held.enter_context(only_user(folder, processes, say))
        evaluation = task.evaluate_split(
            model,
            split,
            processes=processes,
            keep_in=folder / "partial",
            identity=_weights(model_folder),
            progress=ProgressLines(say, "evaluation"),
        )
    except UserError:
        raise
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) in DISK_ERRORS:
            raise
        # Readers and models refuse what they are given with these; see SOHO_FAST_TRACEBACK for where.
        if os.environ.get("SOHO_FAST_TRACEBACK") == "1":
            traceback.print_exc()
        raise UserError(str(error)) from error
    if processes.is_main:
        files = evaluation.write(folder)
        metrics = evaluation.metrics
        about = {"task": task.name, "split": split, "checkpoint": called, "model": model_folder, "prepared": prepared}
        write_metrics(folder / "metrics.json", {**about, **_step(options.run, called), "metrics": metrics})
        if metrics:
            table = task.table(metrics)
            table.title = f"{table.title}, split {split}, checkpoint {called}"
            print_table(table)
        else:
            print(f"split {split} has no published answers to compare with")
        print(f"in {folder}/:  metrics.json  {'  '.join(files)}")
    processes.wait()
    leave_processes()
    return 0


def _calibration(task: Any, device: Any) -> Iterator[dict[str, Any]]:
    """Training samples as the model is called with them, without what they are to teach."""
    data = task.training_data()
    data.set_epoch(0)
    for begin in range(0, min(_CALIBRATION_SAMPLES, len(data)), _CALIBRATION_BATCH):
        numbers = range(begin, min(begin + _CALIBRATION_BATCH, len(data)))
        batch = task.collate([data[number] for number in numbers])
        batch = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
        batch = task.on_device(batch)
        names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
        given = {name: batch[name] for name in names if name in batch}
        yield {**given, "image_index": batch.get("image_index", batch.get("own_image"))}


def _weights(folder: str) -> dict[str, Any]:
    """What tells one model from another."""
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        return {"model": folder}
    with path.open("rb") as file:
        return {"weights": hashlib.file_digest(file, "sha256").hexdigest()}


def _step(run: str | None, called: str) -> dict[str, int]:
    """The training step of a run's checkpoint, where the run has ended and says so."""
    try:
        metrics = json.loads((Path(run) / "metrics.json").read_text())
        return (
            {"step": metrics["best"]["step"] if called == "best" else metrics["step"]} if called in CHECKPOINTS else {}
        )
    except (TypeError, OSError, ValueError, KeyError):
        return {}


def _silent(_: str) -> None:
    """Ranks other than the first say nothing."""


if __name__ == "__main__":
    sys.exit(main())
