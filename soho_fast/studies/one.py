"""One run, in a process of its own: it claims its folder, trains, evaluates, adds its row and clears up."""

import json
import multiprocessing
import os
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from soho_fast.common.errors import UserError, print_line
from soho_fast.common.files import PARTIAL, delete
from soho_fast.studies.results import Row, append_row, by_digest, read_rows

# Exit code of a run that another process is at; no command of this package ends with it.
TAKEN = 111

# Function (folder of a training, number of images) -> metrics of what its codes mean, where a stage asks for them. By
# name: studies need no explorer otherwise.
MEASURE_CODES = "soho_fast.explore.codes:measure_codes"

# What is kept of a run once its row is written; a model only where others start from it.
_CLEARED = ("checkpoints", "best", "tensorboard", "evaluation")


@dataclass
class Job:
    """What a process gets; plain values, since it gets them over a pipe.

    Attributes:
        row: The row's fields that are known before: study, condition, seed, stage, digest, recipe.
        recipe: The recipe's fields, all paths filled in but data roots.
        splits, codes: As those of `Stage`.
        folder: The run's.
        results: The file that gets the row.
        known: Other files of rows.
        keep_model: Others start from its model.
        launcher: Words before the training command, where several processes train; empty trains in this one.
    """

    row: dict[str, Any]
    recipe: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    codes: int
    folder: str
    results: str
    known: list[str]
    keep_model: bool
    launcher: str


def run_one(job: Job) -> None:
    """The process's whole work; leaves with an exit code: 0 done, TAKEN, or that of what failed."""
    # A terminal's Ctrl-C goes to the study, which asks its runs to stop.
    os.setsid()
    # The server that this process was forked from ignores what asks it to stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    # Loader processes start as those of any training, not by the server that this process was forked from.
    multiprocessing.set_start_method(None, force=True)
    from soho_fast.common.lock import only_user
    from soho_fast.common.processes import Processes

    try:
        with only_user(folder, Processes(), print_line):
            code = _make(job, folder)
    except UserError as error:
        print_line(f"error: {error}")
        code = TAKEN if "in use by" in str(error) else 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_the_study() -> None:
    """A study that was killed leaves no run behind: each saves a checkpoint and ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "started by multiprocessing"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _make(job: Job, folder: Path) -> int:
    def row() -> Row | None:
        rows = read_rows(map(Path, job.known), optional=Path(job.results))
        return by_digest(rows).get(job.row["digest"])

    training, done = folder / "training", folder / "done"
    if row() is not None and (not job.keep_model or (done.exists() and (training / "model").is_dir())):
        clear_up(training, job.keep_model)
        return 0
    if done.exists():
        # Its row or its model has been deleted, and its checkpoints went when it was done.
        shutil.rmtree(training, ignore_errors=True)
        done.unlink()
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({**job.recipe, "output": str(training)}, indent=1))  # JSON is YAML.
    began = time.monotonic()
    if code := _call(job, "train", ["--recipe", str(recipe), "--trust-file"]):
        return code
    about = json.loads((training / "metrics.json").read_text())
    metrics: dict[str, float] = dict(about["metrics"] or {})
    for name, fields in job.splits.items():
        own = ["--split", name] if name in job.recipe.get("data", {}).get("splits", {}) else []
        into = training / "evaluation" / name
        given = [part for field, value in fields.items() for part in (f"--{field}", json.dumps(value))]
        arguments = ["--run", str(training), "--checkpoint", "last", "--into", str(into), *own, *given]
        if code := _call(job, "evaluate", arguments):
            return code
        found = json.loads((into / "metrics.json").read_text())["metrics"]
        metrics |= {f"{name}.{metric}": value for metric, value in found.items()}
    if job.codes:
        measure_codes = resolve_name(MEASURE_CODES)
        metrics |= {f"codes.{name}": value for name, value in measure_codes(training, job.codes).items()}
    if row() is None:
        usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        append_row(
            Path(job.results),
            {
                **job.row,
                "metrics": metrics,
                "steps": about["step"],
                "training_seconds": round(about["training_seconds"], 3),
                "seconds": round(time.monotonic() - began, 3),
                "images_per_second": round(about["images_per_second"], 3),
                # Of the largest process; Linux counts KiB.
                "peak_memory_gb": round(max(usage) * 1024 / 1e9, 4),
                "precision": about["precision"],
                "launcher": job.launcher,
                "versions": _versions(),
                "identity": about["identity"],
                "data": about["data"],
            },
        )
    # Before anything is deleted: what is half deleted could not be gone on from.
    done.touch()
    clear_up(training, job.keep_model)
    return 0


def clear_up(training: Path, keep_model: bool) -> None:
    """Delete what is not kept of a run whose row is written, and what is half deleted of that."""
    for name in (*_CLEARED, *([] if keep_model else ["model"])):
        delete(training / name)
        delete(training / f"{name}{PARTIAL}")


def _call(job: Job, command: str, arguments: list[str]) -> int:
    """A command of this package: in this process, or by the launcher in several."""
    if not job.launcher:
        from importlib import import_module

        return import_module(f"soho_fast.{command}").main(arguments)
    program = Path(__file__).resolve().parent.parent / f"{command}.py"
    started = subprocess.Popen([*shlex.split(job.launcher), str(program), *arguments])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: started.send_signal(number))
    return started.wait()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import torch

    from soho_fast.common.environment import processor_name
    from soho_fast.common.versions import program

    return {
        **program(),
        "deepspeed": version("deepspeed"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name(),
    }
