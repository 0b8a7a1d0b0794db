"""Train SOHO by a recipe: pre-training, or one of the tasks.

soho train                                            recipe mini: builds its corpus, trains, evaluates
soho train --recipe vqa --model.pretrained runs/paper/model --data_roots.vqa ... --data_roots.coco ...
deepspeed --quiet soho_fast/train.py --recipe paper --data_roots.coco ... --data_roots.visual_genome ...
deepspeed --hostfile hosts soho_fast/train.py         several machines that share the output folder; without ssh, on
    each of them: deepspeed --hostfile hosts --no_ssh --node_rank N --master_addr FIRST soho_fast/train.py
"""

import dataclasses
import os
import sys
from pathlib import Path

if __name__ == "__main__" and sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Run as a script, python puts this file's own folder first, where `data`, `engine`, ... would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Before torch loads OpenMP: threads without work give their core away after some microseconds. By default they wait
# much longer, and two of them fell to a fifth of their speed as soon as another program ran on their two cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from soho_fast.common.extras import from_extra

# Nothing heavy stands here: the command line is read before torch and DeepSpeed are loaded, which takes seconds.
with from_extra("train"):
    from soho_fast.common.command_line import quiet_transformers
    from soho_fast.engine.watchdog import run_command, user_input
    from soho_fast.tasks.recipe import build_demo_corpus, code_named, load_recipe, write_recipe


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 75 a process
    failed (was killed), 128 + signal when stopped."""
    with run_command("the same command continues from the newest checkpoint") as command:
        recipe = load_recipe(arguments, with_files=True)
        with from_extra("train"):
            from soho_fast.common.lock import only_user
            from soho_fast.engine.distributed import leave_processes, start_processes
            from soho_fast.engine.report import report_run, say_start
            from soho_fast.engine.resume import ResumePoint
            from soho_fast.engine.trainer import Run

            quiet_transformers()
        processes = start_processes(timeout=recipe.engine.timeout_seconds)
        with only_user(Path(recipe.output), processes, processes.say):
            with user_input():
                task = recipe.make_task(processes.say, processes)
                resume_point = ResumePoint(task, recipe, processes)
                build_demo_corpus(recipe.corpus, processes)
                run = Run(task, resume_point)
            if processes.is_main and run.steps_left:
                write_recipe(recipe, resume_point.folder / "recipe.yaml")
            if processes.is_main and run.finished is None:
                say_start(run, recipe.name)
            result = run.train()
            if result.signal_number:
                command.code = 128 + result.signal_number
            else:
                if processes.is_main:
                    report_run(run, result.metrics, code_named(dataclasses.asdict(recipe)))
                processes.wait()
            leave_processes()
    return command.code


if __name__ == "__main__":
    sys.exit(main())
