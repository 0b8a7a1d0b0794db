"""Checks a folder of images and captions before training: what recipe `own` reads of it.

    soho check my_images
    soho check my_images --recipe my_own.yaml    a copy of recipe own with other settings

Exit code: 0 it can be trained on, 1 something must be mended first, 2 a mistake on the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch loads OpenMP, as training does; see soho_fast/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import UserError, listed, print_line
from soho_fast.common.progress import ProgressLines
from soho_fast.engine.settings import EvaluationSettings
from soho_fast.tasks.recipe import Recipe, load_recipe, tokenizer_command

if TYPE_CHECKING:
    from soho_fast.data.readers.records import ImageTextRecord

# Below these a run shows that everything works, and held-out metrics say little.
_FEW_IMAGES, _FEW_HELD_OUT = 1000, 50
# Training is tried on so many images at least, evenly spread, with so many steps beyond a pass over them.
_TRIED_IMAGES, _TRIED_STEPS = 64, 8


class Findings:
    """What is said of a folder, line by line.

    Attributes:
        num_errors: Lines that name what must be mended before training.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._errors: set[str] = set()

    def error(self, what: object) -> None:
        """What must be mended; each once."""
        line = " ".join(str(what).split())
        if line not in self._errors:
            self._errors.add(line)
            self.say(f"error: {line}")

    @property
    def num_errors(self) -> int:
        """How many there are."""
        return len(self._errors)

    def warning(self, what: str) -> None:
        """What may be as it is, but is seldom wanted."""
        self.say(f"warning: {what}")


def check(folder: Path, recipe: Recipe, say: Callable[[str], None] = print_line) -> int:
    """Say what training on a folder would meet; returns how many things must be mended first.

    Args:
        folder: The images and `images.jsonl`.
        recipe: Of pre-training, its data in that folder.
        say: Called with each line.

    Raises:
        UserError: the recipe has no sources.
    """
    findings = Findings(say)
    if not recipe.data.sources:
        raise UserError("data.sources: empty; expected at least one")
    source = recipe.data.sources[0]
    annotations = Path(source.annotations)
    if not annotations.is_file() and source.format != "dataset":
        findings.error(f"{annotations} does not exist; write it (docs/own_data.md)")
        return findings.num_errors
    training, held_out = (_read(findings, recipe, name) for name in ("sources", "heldout"))
    if training and (held_out or not recipe.data.heldout):  # Otherwise it has been told what can't be read.
        _check_unnamed(findings, folder, [*training, *held_out])
    if training or held_out:
        _check_images(findings, training, held_out, recipe.data.shorter_edge)
        _check_texts(findings, [text for each in (*training, *held_out) for text in each.captions], recipe)
    if training and len(training) < _FEW_IMAGES:
        findings.warning(
            f"{len(training):,} images to train on teach little: a run on 257 photos had 31 % of masked words "
            "right (19 % with shuffled images) and 69 % of matching (chance 50 %)"
        )
    if held_out and len(held_out) < _FEW_HELD_OUT:
        few = f"{len(held_out):,} held-out images: metrics of so few are coarse"
        findings.warning(f'{few}; a "split" on every line says which, and how many, are held out')
    if not findings.num_errors:
        _check_training(findings, recipe, training)
    return findings.num_errors


def _read(findings: Findings, recipe: Recipe, purpose: str) -> list[ImageTextRecord]:
    from soho_fast.data.readers.records import ReadReport
    from soho_fast.tasks.pretraining import read_source

    records: list[ImageTextRecord] = []
    for number, source in enumerate(getattr(recipe.data, purpose)):
        report, where = ReadReport(), f"data.{purpose}[{number}]"
        try:
            found = read_source(source, report, where, recipe.data.missing_images)
        except (ValueError, FileNotFoundError) as error:
            findings.error(error)
            try:
                report = ReadReport()
                # Once more without the missing ones, to find what else is wrong.
                found = read_source(source, report, where, "skip")
            except (ValueError, FileNotFoundError):
                continue
        first, *left_out = report.lines()
        findings.say(first)
        for line in left_out:
            findings.warning(line)
        records += found
    return records


def _check_unnamed(findings: Findings, folder: Path, records: Sequence[ImageTextRecord]) -> None:
    from soho_fast.data.stores import images_below

    named = {os.path.realpath(str(record.image)) for record in records}
    try:
        there = images_below(folder)
    except OSError as error:  # as lost+found of a disk, which training never lists
        findings.warning(f"images that no line names were not looked for: {error}")
        return
    if unnamed := [name for name in there if os.path.realpath(folder / name) not in named]:
        findings.warning(
            f"{len(unnamed):,} images of {folder} are neither trained on nor held out: {listed(unnamed, 5)}"
        )


def _check_images(
    findings: Findings, training: Sequence[ImageTextRecord], held_out: Sequence[ImageTextRecord], shorter_edge: int
) -> None:
    """Decode every image once, as training does, and compare their bytes."""
    from soho_fast.data.images import look_at

    images = [record.image for record in (*training, *held_out)]
    corrupt, same = [], defaultdict(list)
    looked_at = look_at(images, shorter_edge, ProgressLines(findings.say, "images"))
    for number, (digest, wrong) in enumerate(looked_at):
        if wrong:
            corrupt.append(wrong)
        else:
            same[digest].append((images[number], number < len(training)))
    if corrupt:
        findings.error(f"{len(corrupt):,} images can't be read: {listed(corrupt, 5)}")
    copies = [group for group in same.values() if len(group) > 1]
    shared = [group for group in copies if len({is_trained_on for _, is_trained_on in group}) == 2]
    if shared:
        findings.error(
            f"{len(shared):,} images are both trained on and held out, under several names: "
            f"{listed([' = '.join(str(image) for image, _ in group) for group in shared], 5)}; "
            'keep one of each, or give all lines a "split"'
        )
    if within := [" = ".join(str(image) for image, _ in group) for group in copies if group not in shared]:
        findings.warning(f"{len(within):,} images come several times: {listed(within, 5)}")


def _check_texts(findings: Findings, texts: Sequence[str], recipe: Recipe) -> None:
    from soho_fast.data.text import describe_fit, load_tokenizer
    from soho_fast.data.tokenizer import words_of

    name = recipe.data.tokenizer
    if "/" in name and not Path(name).exists() and Path(name).parent.exists():
        findings.error(f"there is no tokenizer {name}; make one: {tokenizer_command(recipe)}")
        return
    try:
        tokenizer = load_tokenizer(name)
    except (ValueError, FileNotFoundError) as error:
        findings.error(error)
        return
    fit = describe_fit(tokenizer, texts)
    findings.say(f"tokenizer {name}: {fit.summary()}")
    for line in fit.warnings(recipe.data.max_text_length):
        findings.say(line)
    known = tokenizer.get_vocab()
    counts = Counter(word for text in texts for word in words_of(text))
    if lacking := [f"{word} ({count:,})" for word, count in counts.most_common() if word not in known]:
        findings.warning(
            f"{len(lacking):,} of {len(counts):,} words are no token of their own, but pieces or [UNK]: "
            f"{listed(lacking, 5)}"
        )


def _check_training(findings: Findings, recipe: Recipe, training: Sequence[ImageTextRecord]) -> None:
    """What training refuses or ends with in its first steps; else how many it takes, and how long."""
    from soho_fast.engine.batches import plan_batches

    beside = next(folder for folder in Path(recipe.output).parents if folder.is_dir())
    try:
        task = recipe.make_task(lambda line: None)
        plan = plan_batches(recipe.batch, len(task.training_data()), 1, recipe.seed)
        with tempfile.TemporaryDirectory(prefix="soho-check-", dir=beside) as folder:
            step, evaluation, num_bytes = _try_training(recipe, task, training, folder)
    except (ValueError, OSError, ImportError) as error:
        findings.error(error)
        return
    if (free := shutil.disk_usage(beside).free) < num_bytes:
        findings.error(f"output: {free / 1e9:.2f} GB are free for {recipe.output}; a run takes {num_bytes / 1e9:.2f}")
    steps = max(1, round(recipe.epochs * plan.steps_per_epoch))
    steps = min(steps, recipe.max_steps or steps)
    every = recipe.evaluation.quick_every_steps
    minutes = (steps * step + (steps // every * evaluation if every else 0)) / 60
    minutes = max(1, round(min(minutes, recipe.max_minutes or minutes)))
    findings.say(
        f"training: {steps:,} steps of {plan.global_batch_size} images, here about {minutes:,} "
        f"minute{'s' * (minutes > 1)}, and then the evaluation"
    )


def _try_training(recipe: Any, task: Any, training: Sequence[ImageTextRecord], folder: str) -> tuple[float, float, int]:
    """Train some steps on some of the images in a folder: seconds of a step, once features are cached, seconds of a
    quick evaluation, and the bytes that a run takes on disk."""
    from soho_fast.common.files import read_log
    from soho_fast.engine.distributed import leave_processes, start_processes
    from soho_fast.engine.resume import ResumePoint
    from soho_fast.engine.trainer import Run

    size = recipe.batch.global_batch_size
    share = max(1, len(training) // max(_TRIED_IMAGES, size))
    task.train_on(training[::share])
    trial = copy.deepcopy(recipe)
    trial.output, trial.resume, trial.log.every_steps, trial.log.trackers = folder, "auto", 1, []
    trial.max_minutes, trial.evaluation = 0.0, EvaluationSettings(at_end=False)
    # Features are cached where the steps are more than a pass over the images.
    trial.max_steps = trial.epochs = len(task.training_data()) // size + _TRIED_STEPS
    trial.engine.feature_cache_gb /= share
    task.processes = start_processes()
    try:
        run = Run(task, ResumePoint(task, trial, task.processes))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if run.train().signal_number:
                raise KeyboardInterrupt
            began = time.monotonic()
            run.evaluate(quick=True)
        evaluation = time.monotonic() - began
    finally:
        leave_processes()
    seconds = [record["seconds"] for record in read_log(Path(folder, "log.jsonl"))[0] if record["kind"] == "train"]
    sizes = {name: _bytes_in(Path(folder, name)) for name in ("checkpoints", "model")}
    # One more checkpoint is written before the oldest goes; `best` is as large as `model`.
    num_bytes = (recipe.checkpoint.keep or 2) * sizes["checkpoints"] + sum(sizes.values()) + sizes["model"]
    return statistics.median(b - a for a, b in pairwise(seconds[1 - _TRIED_STEPS :])), evaluation, num_bytes


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 nothing must be mended, 1 something must, 2 a mistake of the user,
    130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="soho check",
        description="Check a folder of images and captions before training.",
        epilog=__doc__.partition("\n\n")[2] if __doc__ else "",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder with images.jsonl")
    parser.add_argument("--recipe", default="own", help="recipe to train by: own, or a copy of it (default: own)")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        raise UserError(f"folder: {options.folder}: there is no such folder; expected one with images.jsonl")
    recipe = load_recipe(["--recipe", options.recipe, "--data_roots.images", str(options.folder)])
    if recipe.task != "pretraining":
        raise UserError(f"recipe: {options.recipe} is of task {recipe.task}; expected own, or a copy of it")
    num_errors = check(options.folder, recipe, print_line)
    if num_errors:
        print_line(f"{options.folder}: {num_errors} to mend before training")
        return 1
    command = shlex.join(["soho", "train", "--recipe", options.recipe, "--data_roots.images", str(options.folder)])
    print_line(f"{options.folder}: ready; next: {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
