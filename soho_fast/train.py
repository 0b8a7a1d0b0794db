"""Pre-train SOHO by a recipe.

deepspeed soho_fast/train.py                          recipe mini: builds its corpus, trains, measures
deepspeed soho_fast/train.py --recipe paper --places.coco ... --places.visual_genome ...
python -m soho_fast.train --optim.lr 3e-4 --max_steps 100
deepspeed --hostfile hosts soho_fast/train.py         several machines that share the output folder; without ssh, on
    each of them: deepspeed --hostfile hosts --no_ssh --node_rank N --master_addr FIRST soho_fast/train.py
"""

import errno
import os
import signal
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__" and sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Run as a script, python puts this file's own folder first, where `data`, `engine`, ... would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from soho_fast.data.images import BrokenImageError
from soho_fast.engine.errors import UserError
from soho_fast.engine.processes import environment_rank, leave_processes, start_processes
from soho_fast.engine.recipe import fail, fill_places, parse_recipe, write_recipe
from soho_fast.engine.report import draw_curves, print_table, write_metrics
from soho_fast.engine.trainer import Trainer, TrainSettings
from soho_fast.tasks.pretraining import PretrainingData, PretrainingModel, PretrainingTask

RECIPES = Path(__file__).resolve().parent / "recipes"


@dataclass
class DemoCorpus:
    """The demo corpus, built where it is absent.

    Args:
        folder: Where it is, or goes; empty uses none.
        num_train: Training scenes.
        num_heldout: Held-out scenes.
        image_size: Side of its square pictures, in pixels.
        seed: Seed of everything in it.
    """

    folder: str = ""
    num_train: int = 4000
    num_heldout: int = 500
    image_size: int = 128
    seed: int = 0


@dataclass
class Recipe(TrainSettings):
    """Pre-train SOHO: everything one run needs.

    Args:
        places: Folders that the strings of `corpus`, `data` and `model` name as {key}.
        corpus: Demo corpus.
        data: Training and held-out data.
        model: Model and its starting weights.
    """

    places: dict[str, str] = field(default_factory=dict)
    corpus: DemoCorpus = field(default_factory=DemoCorpus)
    data: PretrainingData = field(default_factory=PretrainingData)
    model: PretrainingModel = field(default_factory=PretrainingModel)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 128 + signal when stopped."""
    rank, _ = environment_rank()
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        return fail(str(error), rank)
    except OSError as error:
        # Logs, curves and tables meet a full disk too; checkpoints and the model report theirs themselves.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return fail(f"{error.filename or 'output'}: {error.strerror}; the checkpoints written so far are intact", rank)
    except KeyboardInterrupt:
        # Before the first step or after the last one; in between `StopRequest` hears it.
        if rank == 0:
            print("\nstopped outside training; the same command continues from the newest checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(arguments: list[str]) -> int:
    recipe, name = parse_recipe(Recipe, arguments, RECIPES, default="mini")
    recipe.output = recipe.output or f"runs/{name}"
    recipe.corpus = fill_places(recipe.corpus, recipe.places)
    recipe.data = fill_places(recipe.data, recipe.places)
    recipe.model = fill_places(recipe.model, recipe.places)
    processes = start_processes(recipe.engine.threads)
    say = print if processes.is_main else _silent
    try:
        if recipe.corpus.folder:
            _build_corpus(recipe.corpus, processes)
        task = PretrainingTask(recipe.data, recipe.seed, recipe.model, say=say)
        trainer = Trainer(task, recipe, processes)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        # Readers and models refuse what they are given with these; see SOHO_FAST_TRACEBACK for where.
        if os.environ.get("SOHO_FAST_TRACEBACK") == "1":
            traceback.print_exc()
        raise UserError(str(error)) from error
    folder = Path(recipe.output)
    if processes.is_main:
        write_recipe(recipe, folder / "recipe.yaml")
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.engine.module.parameters())
        say(
            f"recipe {name}: {parameters / 1e6:.1f} M parameters, {trainer.total_steps} steps of "
            f"{trainer.plan.images_per_step} images, {trainer.precision}, "
            f"ZeRO {trainer.engine.zero_optimization_stage()}, {processes.world} process(es) on "
            f"{processes.device.type}; output in {folder}/"
        )
    try:
        result = trainer.train()
    except BrokenImageError as error:
        # Raised in a loader process, its text comes with that process's stack before it.
        raise UserError(str(error).rpartition("BrokenImageError: ")[2].strip()) from error
    if result.signal_number:
        leave_processes()
        return 128 + result.signal_number
    if processes.is_main:
        _report(task, trainer, result.measures, folder)
    processes.wait()
    leave_processes()
    return 0


def _build_corpus(settings: DemoCorpus, processes) -> None:
    """The first rank builds; then one rank of each further machine, which keeps what it finds on a shared disk."""
    from soho_fast.data.mini import build_corpus

    for turn in (processes.is_main, processes.local_rank == 0 and not processes.is_main):
        if turn:
            build_corpus(
                settings.folder,
                num_train=settings.num_train,
                num_heldout=settings.num_heldout,
                image_size=settings.image_size,
                seed=settings.seed,
                progress=processes.is_main,
            )
        processes.wait()


def _report(task: PretrainingTask, trainer: Trainer, measures: dict[str, float], folder: Path) -> None:
    progress = trainer.progress
    write_metrics(
        folder / "metrics.json",
        {
            "step": progress.step,
            "training_seconds": progress.seconds,
            "images_per_second": progress.step * trainer.plan.images_per_step / max(progress.seconds, 1e-9),
            "broken_images": progress.broken_images,
            "precision": trainer.precision,
            "measures": measures,
        },
    )
    draw_curves(folder / "log.jsonl", folder / "curves.png")
    if measures:
        print_table(task.table(measures))
    print(f"{progress.step} steps in {progress.seconds / 60:.1f} minutes of training; in {folder}/:")
    print("  curves.png  metrics.json  log.jsonl  recipe.yaml  tensorboard/  checkpoints/  model/")
    print("next:")
    for command in [
        *task.next_commands(folder),
        f"deepspeed soho_fast/train.py --recipe {folder}/recipe.yaml --output runs/longer --epochs 20",
        "deepspeed soho_fast/train.py --help",
    ]:
        print(f"  {command}")
    sys.stdout.flush()


def _silent(_: str) -> None:
    """Ranks other than the first say nothing."""


if __name__ == "__main__":
    sys.exit(main())
