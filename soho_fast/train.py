"""Train SOHO by a recipe: pre-training, or one of the tasks.

deepspeed soho_fast/train.py                          recipe mini: builds its corpus, trains, evaluates
deepspeed soho_fast/train.py --recipe paper --data_roots.coco ... --data_roots.visual_genome ...
deepspeed soho_fast/train.py --recipe vqa --model.pretrained runs/paper/model --data_roots.vqa ... --data_roots.coco ...
python -m soho_fast.train --optim.lr 3e-4 --max_steps 100
deepspeed --hostfile hosts soho_fast/train.py         several machines that share the output folder; without ssh, on
    each of them: deepspeed --hostfile hosts --no_ssh --node_rank N --master_addr FIRST soho_fast/train.py
"""

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Run as a script, python puts this file's own folder first, where `data`, `engine`, ... would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Before torch loads OpenMP: threads without work give their core away after some microseconds. By default they wait
# much longer, and two of them fell to a fifth of their speed as soon as another program ran on their two cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra

# Nothing heavy stands here: the command line is read before torch and DeepSpeed are loaded, which takes seconds.
with from_extra("train"):
    from soho_fast.common.errors import DISK_ERRORS, UserError, environment_rank, fail
    from soho_fast.engine.watchdog import PROCESS_FAILED, leave_heartbeat
    from soho_fast.tasks.recipe import build_demo_corpus, check_paths, read_recipe, with_data_roots, write_recipe


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 75 a process
    failed (was killed), 128 + signal when stopped."""
    rank, _ = environment_rank()
    try:
        with contextlib.ExitStack() as held:
            held.push(leave_heartbeat)
            return _run(sys.argv[1:] if arguments is None else arguments, held)
    except UserError as error:
        return fail(str(error), rank)
    except OSError as error:
        # Logs, curves and tables meet a full disk too; checkpoints and the model report theirs themselves.
        if error.errno not in DISK_ERRORS:
            raise
        return fail(f"{error.filename or 'output'}: {error.strerror}; the checkpoints written so far are intact", rank)
    except RuntimeError as error:
        from soho_fast.common.workers import lost_worker

        told = lost_worker(error)
        if told is None:
            raise
        return fail(f"{told}; the same command continues from the newest checkpoint", rank, PROCESS_FAILED)
    except KeyboardInterrupt:
        # Before the first step or after the last one; in between `StopRequest` hears it.
        if rank == 0:
            print("\nstopped outside training; the same command continues from the newest checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(arguments: list[str], held: contextlib.ExitStack) -> int:
    recipe, name = read_recipe(arguments)
    recipe = with_data_roots(recipe)
    check_paths(recipe)
    recipe.output = recipe.output or f"runs/{name}"
    with from_extra("train"):
        from transformers.utils import logging as transformers_logging

        from soho_fast.common.errors import CorruptImageError
        from soho_fast.common.lock import only_user
        from soho_fast.engine.distributed import leave_processes, start_processes
        from soho_fast.engine.resume import ResumePoint
        from soho_fast.engine.trainer import Run
    processes = start_processes(recipe.engine.threads, recipe.engine.timeout_seconds)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # What could not be loaded is told by an error of ours, in a line.
    say = print if processes.is_main else _silent
    held.enter_context(only_user(Path(recipe.output), processes, say))
    try:
        task = recipe.make_task(say, processes)
        # Before the corpus: other settings of it would replace the one that the run was trained on.
        resume_point = ResumePoint(task, recipe, processes)
        build_demo_corpus(recipe.corpus, processes)
        trainer = Run(task, resume_point)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        # Readers and models refuse what they are given with these; see SOHO_FAST_TRACEBACK for where.
        if os.environ.get("SOHO_FAST_TRACEBACK") == "1":
            traceback.print_exc()
        raise UserError(str(error)) from error
    folder = Path(recipe.output)
    if trainer.finished is not None:
        if processes.is_main:
            _say_finished(task, trainer, folder)
        processes.wait()
        leave_processes()
        return 0
    if processes.is_main:
        if trainer.steps_left:
            write_recipe(recipe, folder / "recipe.yaml")
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.step.engine.module.parameters())
        say(
            f"recipe {name}: {parameters / 1e6:.1f} M parameters, {trainer.total_steps} steps of "
            f"{trainer.plan.global_batch_size} images ({trainer.plan.steps_per_epoch:,} an epoch), "
            f"{resume_point.precision}, ZeRO {trainer.step.engine.zero_optimization_stage()}, "
            f"{processes.world} process(es) on {processes.device.type}; output in {folder}/"
        )
    try:
        result = trainer.train()
    except CorruptImageError as error:
        # Raised in a loader process, its text comes with that process's stack before it.
        raise UserError(str(error).rpartition("CorruptImageError: ")[2].strip()) from error
    if result.signal_number:
        leave_processes()
        return 128 + result.signal_number
    if processes.is_main:
        _report(task, trainer, result.metrics, folder)
    processes.wait()
    leave_processes()
    return 0


def _say_finished(task: Any, trainer: Any, folder: Path) -> None:
    from soho_fast.common.tables import print_table

    if trainer.finished["metrics"]:
        print_table(task.table(trainer.finished["metrics"]))
    print(
        f"{folder}/ is finished at step {trainer.progress.step}: nothing is left to do. To train on, give more (as "
        f"{_twice(trainer)}) and --resume changed; to train anew, another --output"
    )
    sys.stdout.flush()


def _twice(trainer: Any) -> str:
    """Options that make the run twice as long, whatever ended it."""
    settings, schedule = trainer.settings, trainer.settings.schedule
    ended_by_time = trainer.progress.step < trainer.total_steps
    steps = trainer.total_steps if ended_by_time else 2 * trainer.total_steps
    options = []
    if round(settings.epochs * trainer.plan.steps_per_epoch) < steps:
        options.append(f"--epochs {2 * settings.epochs:g}")
    if 0 < settings.max_steps < steps:
        options.append(f"--max_steps {2 * settings.max_steps}")
    if settings.max_minutes:
        options.append(f"--max_minutes {2 * settings.max_minutes:g}")
    if schedule.decay == "step" and not ended_by_time:
        options.append(f"--schedule.step_epochs '[{', '.join(f'{2 * epoch:g}' for epoch in schedule.step_epochs)}]'")
    return " ".join(options)


def _report(task: Any, trainer: Any, metrics: dict[str, float] | None, folder: Path) -> None:
    from soho_fast.common.tables import print_table
    from soho_fast.engine.report import draw_curves, write_metrics

    progress = trainer.progress
    draw_curves(folder / "log.jsonl", folder / "curves.png")
    # Last, since it is what tells that nothing is left to do.
    write_metrics(
        folder / "metrics.json",
        {
            "step": progress.step,
            "training_seconds": progress.seconds,
            "images_per_second": progress.step * trainer.plan.global_batch_size / max(progress.seconds, 1e-9),
            "corrupt_images": progress.corrupt_images,
            "precision": trainer.step.precision,
            "metrics": metrics,
            "best": {"step": progress.best_step, task.selection: progress.best} if progress.best is not None else None,
        },
    )
    if metrics:
        print_table(task.table(metrics))
    print(f"{progress.step} steps in {progress.seconds / 60:.1f} minutes of training; in {folder}/:")
    best = f"  best/ (step {progress.best_step})" if progress.best is not None else ""
    print(f"  curves.png  metrics.json  log.jsonl  recipe.yaml  tensorboard/  checkpoints/  model/{best}")
    print("next:")
    program = "deepspeed soho_fast/train.py" if Path("soho_fast/train.py").is_file() else "python -m soho_fast.train"
    for command in [
        *task.next_commands(folder),
        f"{program} --recipe {folder}/recipe.yaml --output {folder}-longer {_twice(trainer)}",
        f"{program} --help",
    ]:
        print(f"  {command}")
    sys.stdout.flush()


def _silent(_: str) -> None:
    """Ranks other than the first say nothing."""


if __name__ == "__main__":
    sys.exit(main())
