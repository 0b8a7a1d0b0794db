"""Evaluate a model on a split of its task, alone or on several processes.

soho evaluate --run runs/mini_vqa --split val
deepspeed --module soho_fast.evaluate --run runs/mini_vqa --split test --checkpoint last
soho evaluate --recipe vqa --checkpoint FOLDER --split val --data_roots.vqa ... --data_roots.coco ...

Killed, the same command goes on where it was, also with another number of processes.
"""

import os
import sys
from collections.abc import Callable
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
    from soho_fast.common.command_line import Parser, as_text, flags_of, quiet_transformers
    from soho_fast.common.errors import UserError
    from soho_fast.common.hub import RUN_MODELS, check_name, no_such_path, run_model
    from soho_fast.common.spelling import did_you_mean
    from soho_fast.engine.watchdog import run_command, user_input
    from soho_fast.tasks.recipe import Recipe, build_demo_corpus, load_recipe


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 75 a process
    failed (was killed), 130 when stopped."""
    with run_command("the same command goes on where this one was") as command, user_input():
        parser = _parser()
        options, fields = parser.parse_known_args(as_text(arguments))
        of_recipe = ["--recipe", _recipe_file(options.run, options.recipe)]
        recipe = load_recipe([*of_recipe, *fields], flags=flags_of(parser))
        # What a command changes of a run's recipe is how it is evaluated, not how it was trained.
        trained = load_recipe(of_recipe) if options.run else recipe
        _check_split(recipe, options.split)
        if options.into and (Path(options.into) / "recipe.yaml").exists():
            raise UserError(f"into: {options.into} is a run, whose metrics.json would be lost; give another folder")
        model_folder, called = _model(options.run, options.checkpoint)
        with from_extra("train"):
            from soho_fast.common.checksums import folder_digest
            from soho_fast.common.lock import only_user
            from soho_fast.common.progress import ProgressLines
            from soho_fast.common.versions import cautions, program
            from soho_fast.engine.distributed import leave_processes, start_processes
            from soho_fast.engine.report import report_evaluation
            from soho_fast.tasks.evaluation.loading import load_for_evaluation
            from soho_fast.tasks.evaluation.sharing import Sharing

            quiet_transformers()
        processes = start_processes(timeout=recipe.engine.timeout_seconds)
        build_demo_corpus(recipe.corpus, processes)
        task = recipe.make_task(processes.say)
        told = cautions(model_folder, options.accept_changes)
        model = load_for_evaluation(task, model_folder, processes.device, options.prepare)
        split = options.split or task.default_split
        prepared = model.prepared["precision"] if options.prepare and model.prepared else None
        own = f"{split}-{called}-{prepared}" if prepared else f"{split}-{called}"
        folder = Path(options.into or Path(options.run or f"runs/{recipe.name}") / "evaluation" / own)
        what = f"{task.name}, split {split}, checkpoint {called} ({model_folder})"
        how = f", prepared in {prepared}" if prepared else ""
        for line in (f"{what}{how}, {processes.world} process(es)", *told):
            processes.say(line)
        with only_user(folder, processes, processes.say):
            progress, of_folder = ProgressLines(processes.say, "evaluation"), Path(model_folder)
            identity = {"model": folder_digest(of_folder) if of_folder.is_dir() else model_folder, **program()}
            evaluation = task.evaluate_split(model, split, Sharing(processes, progress, folder / "partial", identity))
            if processes.is_main:
                about = {"task": task.name, "split": split, "checkpoint": called, "model": model_folder}
                about |= {"prepared": prepared, **_about_images(task, split, trained, processes.say)}
                report_evaluation(task, evaluation, about, folder)
            processes.wait()
            leave_processes()
    return command.code


def _about_images(task: Any, split: str, trained: Recipe, say: Callable[[str], None]) -> dict[str, Any]:
    """Of the split's images, how many are trained on, and how many have no file; said where there are some."""
    try:
        num_trained_on = task.num_trained_on(split, trained.data, trained.seed)
    except (ValueError, OSError) as error:  # As on a machine that has the split's data alone.
        say(f"whether images of {split} are trained on is not known: {error}")
        num_trained_on = None
    if num_trained_on:
        say(f"{num_trained_on:,} images of {split} are trained on too; its metrics say little of unseen images")
    return {"images_trained_on": num_trained_on, "images_missing": task.num_missing()}


def _parser() -> Parser:
    parser = Parser(
        prog="soho evaluate",
        description="Evaluate a model on a split of its task.",
        epilog="Every field of the recipe can be given too, as in training (soho train --recipe ... --help). Example: "
        "soho evaluate --run runs/own_vqa --split val",
    )
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--run", help="Folder of a training run; its recipe.yaml names the task and the data.")
    of.add_argument("--recipe", help="Name or path of a recipe, where there is no run.")
    parser.add_argument(
        "--checkpoint",
        help="best or last of the run, or the folder or hub name of a model (default: best if there is one, else last)",
    )
    parser.add_argument("--split", help="Name of a split of the recipe (default: the one used for validation).")
    parser.add_argument(
        "--prepare",
        choices=["auto", "float32", "bf16", "fp16", "int8"],
        help="Prepare the model for faster inference in this precision (docs/inference.md); int8 is calibrated on "
        "training samples.",
    )
    parser.add_argument(
        "--into", help="Folder for the results (default: evaluation/<split>-<checkpoint>[-<precision>] of the run)."
    )
    parser.take_changes()
    return parser


def _recipe_file(run: str | None, recipe: str | None) -> str:
    if recipe is not None or run is None:
        return str(recipe)
    if not Path(run).is_dir():
        raise UserError(f"run: {run}: {no_such_path(run)}; expected the folder of a training run")
    if not (Path(run) / "recipe.yaml").is_file():
        raise UserError(f"run: {run} has no recipe.yaml; expected the folder of a training run")
    return str(Path(run) / "recipe.yaml")


def _check_split(recipe: Recipe, split: str | None) -> None:
    splits = list(getattr(recipe.data, "splits", ["heldout"]))
    if split is not None and split not in splits:
        similar = did_you_mean(split, splits)
        raise UserError(f"split: expected one of {', '.join(splits) or '(none given)'}, got {split!r}{similar}")


def _model(run: str | None, wanted: str | None) -> tuple[str, str]:
    """(folder or hub name of the model, what to call it)."""
    try:
        if wanted is not None and wanted not in RUN_MODELS:
            check_name(wanted, needs_owner=True)
            return wanted, Path(wanted).name
        if run is not None:
            return run_model(run, wanted)
    except FileNotFoundError as error:
        similar = did_you_mean(wanted, RUN_MODELS) if wanted not in RUN_MODELS else ""
        raise UserError(f"checkpoint: {error}{similar}") from error
    raise UserError(f"checkpoint: without --run, expected the folder or hub name of a model, got {wanted}")


if __name__ == "__main__":
    sys.exit(main())
