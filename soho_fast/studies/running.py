"""Makes the runs of a study that are not done yet: one after another, or several at a time, on one machine or more.

Runs are claimed by locks in the study's folder, which the kernel drops when a process ends, however it ends. Several
studies on the same folder, on this machine or on others that share it, therefore divide the runs among themselves.
"""

import fcntl
import json
import multiprocessing
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

from soho_fast.common.errors import UserError
from soho_fast.studies.matrix import Run, of_other_data
from soho_fast.studies.one import TAKEN, Job, clear_up, run_one
from soho_fast.studies.results import Row, by_digest, read_rows

# What every run imports, imported once, by the process that the runs' are forked from.
_PRELOADED = [
    "soho_fast.train", "soho_fast.evaluate", "soho_fast.engine.trainer", "soho_fast.tasks.pretraining",
    "soho_fast.tasks.retrieval", "soho_fast.tasks.question_answering", "soho_fast.tasks.visual_reasoning",
    "soho_fast.tasks.visual_entailment", "soho_fast.data.mini", "soho_fast.engine.report", "soho_fast.explore.codes",
    "soho_fast.studies.one", "matplotlib.pyplot",
]  # fmt: skip
# Seconds: how often a run is looked after, and how long one is left alone that another process is at.
_LOOK, _LEFT_ALONE = 0.2, 20.0


@dataclass
class Place:
    """Where a study's runs lie and how they are made.

    Attributes:
        folder: The study's.
        known: Files of rows that count as done, beside the folder's own.
        jobs: Runs at a time.
        threads: CPU threads of each; 0 divides the cores among them.
        launcher: Words before the training command; empty trains in one process.
    """

    folder: Path
    known: list[Path] = field(default_factory=list)
    jobs: int = 1
    threads: int = 0
    launcher: str = ""

    @property
    def results(self) -> Path:
        """The file of this folder's rows."""
        return self.folder / "results.jsonl"

    def rows(self) -> list[Row]:
        """All rows. Raises UserError: a file does not hold rows."""
        return read_rows(self.known, optional=self.results)


class Estimate:
    """Seconds that runs will take, by those that are done."""

    def __init__(self, runs: Sequence[Run], rows: Sequence[Row]) -> None:
        found = by_digest(rows)
        self._of_stage: dict[str, list[float]] = defaultdict(list)
        for run in runs:
            row = found.get(run.digest)
            if row is not None and "seconds" in row:
                self._of_stage[run.cell.stage].append(row["seconds"])

    def seconds(self, run: Run) -> float | None:
        """The mean of those of its stage; None where none is done."""
        known = self._of_stage.get(run.cell.stage)
        return fmean(known) if known else None

    def total(self, runs: Sequence[Run], jobs: int) -> str:
        """Of all these, as h:mm:ss."""
        each = [self.seconds(run) for run in runs]
        known = clock(sum(seconds for seconds in each if seconds is not None) / jobs)
        unknown = sum(seconds is None for seconds in each)
        return f"{known} and {unknown} runs of unknown length" if unknown else known


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def needed(runs: Sequence[Run], rows: Sequence[Row], folder: Path) -> list[Run]:
    """The runs without a row, and those whose model is not here but needed by one of these."""
    found = by_digest(rows)
    wanted = {run.digest for run in runs if run.digest not in found}
    # From the last stage to the first: what is needed may itself start from another.
    for run in reversed(runs):
        needs_model = any(each.digest in wanted for each in run.dependents)
        if run.digest not in wanted and needs_model and not _is_ready(run, folder):
            wanted.add(run.digest)
    return [run for run in runs if run.digest in wanted]


def _is_ready(run: Run, root: Path) -> bool:
    return (run.folder(root) / "done").exists() and run.model(root).is_dir()


class Runner:
    """Makes runs until none is left, one fails, or it is asked to stop.

    Args:
        name: The study's.
        runs: All of its runs that are asked for.
        place: Where and how.
        say: Called with each line of progress.
    """

    def __init__(self, name: str, runs: Sequence[Run], place: Place, say: Callable[[str], None]) -> None:
        self.name, self.runs, self.place, self.say = name, runs, place, say
        self._processes: dict[str, tuple[Run, Any, float]] = {}
        self._left_alone: dict[str, float] = {}
        self._failed: dict[str, str] = {}
        self._stop = 0

    def make(self) -> int:
        """Makes them. Returns the exit code: 0 all are done, 1 some failed, 128 + signal when stopped."""
        self.place.folder.mkdir(parents=True, exist_ok=True)
        left = needed(self.runs, self.place.rows(), self.place.folder)
        self._clear_up(left)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # The server that runs are forked from is not to hear of a terminal that goes: it ends with the study.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in stops}
        if left:
            ensure_running()
        for number in stops:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, self._hear)
        try:
            self._loop(context)
        finally:
            for _, process, _ in self._processes.values():
                process.terminate()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._failed:
            self.say(f"{len(self._failed)} run(s) failed: {', '.join(self._failed)}; the same command tries them again")
        if self._stop:
            self.say("stopped; the same command goes on from here")
            return 128 + self._stop
        return 1 if self._failed else 0

    def _clear_up(self, left: Sequence[Run]) -> None:
        """What runs left that have written their rows, and were killed before they had cleared up."""
        done = by_digest(read_rows([], optional=self.place.results))
        for run in self.runs:
            folder = run.folder(self.place.folder)
            # Without `done` it may be made again, for its model; a model that nothing needs may be needed again.
            if run.digest in done and run not in left and ((folder / "done").exists() or not run.dependents):
                clear_up(folder / "training", keep_model=True)

    def _loop(self, context: Any) -> None:
        while True:
            self._collect()
            left = needed(self.runs, self.place.rows(), self.place.folder)
            if self._stop:
                if not self._processes:
                    return
                time.sleep(_LOOK)
                continue
            failed = {run.digest for run in self.runs if str(run.cell) in self._failed}
            left = [run for run in left if run.digest not in failed and not _starts_from(run, failed)]
            if not left and not self._processes:
                return
            here = {run.digest for run in left}
            ready = [
                run
                for run in left
                if run.digest not in self._processes
                and self._left_alone.get(run.digest, 0) < time.monotonic()
                and (run.start is None or (run.start.digest not in here and _is_ready(run.start, self.place.folder)))
            ]
            for run in ready[: self.place.jobs - len(self._processes)]:
                if not self._stop:
                    self._begin(run, context, len(left))
            time.sleep(_LOOK)

    def _begin(self, run: Run, context: Any, num_left: int) -> None:
        threads = self.place.threads or max(1, len(os.sched_getaffinity(0)) // self.place.jobs)
        recipe = {**run.content, "engine": {**run.content.get("engine", {}), "threads": threads}}
        if run.start is not None:
            recipe["model"] = {**recipe.get("model", {}), "pretrained": str(run.start.model(self.place.folder))}
        cell = run.cell
        job = Job(
            row={"study": self.name, **vars(cell), "recipe": run.recipe, "digest": run.digest},
            recipe=recipe,
            splits={name: dict(fields) for name, fields in run.splits.items()},
            codes=run.codes,
            folder=str(run.folder(self.place.folder)),
            results=str(self.place.results),
            known=[str(path) for path in self.place.known],
            keep_model=bool(run.dependents),
            launcher=run.launcher or self.place.launcher,
        )
        process = context.Process(target=run_one, args=(job,))
        process.start()
        self._processes[run.digest] = run, process, time.monotonic()
        if self._stop:  # heard while it began
            process.terminate()
        self.say(f"{cell}: begins, {num_left} left; {job.folder}/log.txt")

    def _collect(self) -> None:
        for digest, (run, process, began) in list(self._processes.items()):
            if process.is_alive():
                continue
            process.join()
            del self._processes[digest]
            code = process.exitcode
            if code == 0:
                rows = self.place.rows()
                left = needed(self.runs, rows, self.place.folder)
                total = Estimate(self.runs, rows).total(left, self.place.jobs)
                self.say(
                    f"{run.cell}: done in {clock(time.monotonic() - began)}; {len(self.runs) - len(left)} of "
                    f"{len(self.runs)} runs, {total} left"
                )
                for line in of_other_data(self.runs, by_digest(rows)):
                    self.say(line)
            elif code == TAKEN:
                self._left_alone[digest] = time.monotonic() + _LEFT_ALONE
                self.say(f"{run.cell}: another process is at it")
            elif not self._stop:
                self._failed[str(run.cell)] = self._reason(run, code)
                self.say(f"{run.cell}: failed: {self._failed[str(run.cell)]}")

    def _reason(self, run: Run, code: int) -> str:
        log = run.folder(self.place.folder) / "log.txt"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
        said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
        return f"exit code {code}: {said.removeprefix('error: ')} ({log})"

    def _hear(self, number: int, _: FrameType | None) -> None:
        if not self._stop:
            self.say(f"asked to stop: {len(self._processes)} run(s) save a checkpoint")
        self._stop = self._stop or number
        for running in self._processes.values():
            running[1].terminate()


def _starts_from(run: Run, digests: set[str]) -> bool:
    return run.start is not None and (run.start.digest in digests or _starts_from(run.start, digests))


def build_corpora(runs: Sequence[Run], folder: Path) -> None:
    """Reads the recipes of all runs before they begin, and builds each demo corpus that they use, once.

    Args:
        runs: The runs.
        folder: The study's; another study in it waits meanwhile.

    Raises:
        UserError: a recipe's value can't be used, a corpus can't be built, or two are to lie in one folder.
    """
    from soho_fast.common.processes import Processes
    from soho_fast.tasks.recipe import build_demo_corpus, load_recipe

    different: dict[str, Run] = {}
    for run in runs:
        different.setdefault(json.dumps({**run.content, "seed": 0}, sort_keys=True), run)
    corpora: dict[str, Any] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "corpora.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        path = folder / "corpora.yaml"
        for run in different.values():
            path.write_text(json.dumps(run.content))
            try:
                corpus = load_recipe(["--recipe", str(path)]).corpus
            except UserError as error:
                raise UserError(f"{run.cell}: {error}") from None
            finally:
                path.unlink()
            if corpora.setdefault(corpus.folder, corpus) != corpus:
                raise UserError(
                    f"{run.cell}: corpus.folder: {corpus.folder} is to hold a corpus of other settings too; give each "
                    "its own folder"
                )
        for corpus in corpora.values():
            build_demo_corpus(corpus, Processes())
