"""Makes the runs that have no row yet: `soho train` and `soho evaluate`, in processes of their own."""

import fcntl
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soho_fast
from benchmarks.studies.study import Row, Run, known, read_rows
from soho_fast.common.environment import processor_name
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.files import delete, write_atomically
from soho_fast.common.processes import Processes
from soho_fast.tasks.recipe import build_demo_corpus, load_recipe

# What a row has of its training's metrics.json.
_TOLD = "step", "training_seconds", "images_per_second", "precision", "program", "identity", "data"


class FailedError(RuntimeError):
    """A command of a run ended with another code than 0."""


@dataclass
class Runner:
    """Makes runs and writes their rows. Several on one folder, also on machines that share it, divide the runs.

    Attributes:
        name: The study's.
        runs: All of its runs that are asked for.
        folder: Where they lie, each in a folder of its own with its log and its row.
        results: Further files of rows that count as done.
        launcher: Words before each command that start it in several processes, such as `deepspeed --num_gpus 8`.
    """

    name: str
    runs: Sequence[Run]
    folder: Path
    results: Sequence[Path] = ()
    launcher: str = ""

    def rows(self) -> list[Row]:
        """All rows there are; the folder's own are gathered in its `results.jsonl`."""
        own = read_rows(sorted(self.folder.glob("*/row.json")))
        if own:
            write_atomically(self.folder / "results.jsonl", "".join(f"{json.dumps(row)}\n" for row in own))
        return read_rows(self.results) + own

    def left(self) -> list[Run]:
        """The runs without a row."""
        done = {row["digest"] for row in self.rows()}
        return [run for run in self.runs if run.digest not in done]

    def check(self) -> list[str]:
        """The demo corpora that recipes ask for. Raises UserError: a recipe can't be read as the study changes it."""
        corpora = []
        for run in {(run.condition, run.stage): run for run in self.runs}.values():
            try:
                recipe, *_ = [load_recipe([*run.fields, *fields]) for fields in {(), *run.splits.values()}]
                named = [split for split, fields in run.splits.items() if not fields]
                known("splits", named, getattr(recipe.data, "splits", ()))
            except UserError as error:
                raise UserError(f"{run}: {error}") from None
            corpora += [] if recipe.corpus in corpora else [recipe.corpus]
        return corpora

    def make(self) -> int:
        """Make what is left. Returns how many runs failed; the same call tries them again.

        Raises:
            UserError: a recipe can't be read.
            KeyboardInterrupt: asked to stop; the run has saved a checkpoint, from which the same call goes on.
        """
        for corpus in self.check():
            build_demo_corpus(corpus, Processes())
        failed = 0
        for run in self.left():
            folder = self._folder(run)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("w") as lock:
                try:
                    # Its commands inherit it: one that outlives a killed study holds it to its end.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    print_line(f"{run}: left out, another command is at it ({folder}/lock)")
                    continue
                if run not in (left := self.left()):
                    continue  # Another command has made it meanwhile.
                if run.start in left:
                    print_line(f"{run}: left out, {run.start.stage} is not done")
                    continue
                print_line(f"{run}: begins, {len(left)} are left; {folder}/log.txt")
                try:
                    self._make(run, lock.fileno())
                    print_line(f"{run}: done")
                except FailedError as error:
                    failed += 1
                    print_line(f"{run}: failed: {error}")
        return failed

    def _make(self, run: Run, lock: int) -> None:
        folder, training = self._folder(run), self._folder(run) / "training"
        # Written last: where it is, nothing is left to train.
        if not (training / "metrics.json").exists():
            start = ["--model.pretrained", f"{self._folder(run.start)}/training/model"] if run.start else []
            self._call(folder, lock, "train", *run.fields, *start, "--output", str(training))
        about = json.loads((training / "metrics.json").read_text())
        metrics = dict(about["metrics"] or {})
        for split, fields in run.splits.items():
            into = folder / "evaluation" / split
            if not (into / "metrics.json").exists():
                of = ["--run", str(training), "--checkpoint", "last", "--into", str(into)]
                self._call(folder, lock, "evaluate", *of, *(fields or ("--split", split)))
            found = json.loads((into / "metrics.json").read_text())["metrics"]
            metrics |= {f"{split}.{name}": value for name, value in found.items()}
        row = {"study": self.name, "condition": run.condition, "seed": run.seed, "stage": run.stage}
        row |= {"digest": run.digest, "commit": about["program"]["commit"], "metrics": metrics}
        row |= {name: about[name] for name in _TOLD} | {"launcher": self.launcher, "processor": processor_name()}
        for name in ("checkpoints", "best", "tensorboard"):
            delete(training / name)
        write_atomically(folder / "row.json", json.dumps(row))

    def _call(self, folder: Path, lock: int, command: str, *arguments: str) -> None:
        words = shlex.split(self.launcher) or [sys.executable]
        words += [str(Path(soho_fast.__file__).with_name(f"{command}.py")), *arguments]
        with (folder / "log.txt").open("ab") as log:
            # In a session of its own: a terminal's Ctrl-C comes to this process alone, which hands it on.
            process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, pass_fds=[lock])
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
        if code:
            lines = (folder / "log.txt").read_text(errors="replace").splitlines() or [""]
            said = next((line for line in reversed(lines) if line.startswith("error")), lines[-1])
            raise FailedError(f"soho {command} ended with code {code}: {said} ({folder}/log.txt)")

    def _folder(self, run: Run) -> Path:
        return self.folder / f"{re.sub(r'[^a-z0-9]+', '-', str(run).lower())}-{run.digest[:8]}"
