"""Tiny runs of the real commands in forked processes, and what a run must look like in the end.

Everything heavy is imported once, by the campaign; a command is then a fork that calls its `main`, which takes a second
or two instead of ten. What happens in a run's folder (files opened to write, renamed, deleted, synced) is counted by an
audit hook: an `at` is the number of such an event, the same in each run of the same command, where a fault strikes.
"""

import contextlib
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

STEPS = 6
PATIENCE = float(os.environ.get("FAULTS_PATIENCE", "1"))
"""Times longer than usual that a command may take until it counts as one that hangs: for a busy machine."""
COMMANDS = {
    "train": "soho_fast.train", "evaluate": "soho_fast.evaluate", "ask": "soho_fast.ask.__main__",
    "corpus": "soho_fast.data.mini.__main__", "shards": "soho_fast.data.shards.__main__",
    "explore": "soho_fast.explore.__main__", "export": "soho_fast.export.__main__",
    "studies": "soho_fast.studies.__main__", "check": "soho_fast.tasks.check", "import": "soho_fast.data.importing",
    "tokenizer": "soho_fast.data.tokenizer", "suite": "soho_fast.tasks.suites",
}  # fmt: skip
# What the commands import, at their start or later.
_IMPORTED = (
    *COMMANDS.values(), "soho_fast.engine.trainer", "soho_fast.tasks.recipe", "soho_fast.data.mini",
    "soho_fast.model.fast.cpu", "soho_fast.ask.many", "soho_fast.explore.build",
    "soho_fast.engine.report", "matplotlib.pyplot", "torch.utils.data._utils.worker",
)  # fmt: skip
_SMALL = {
    "corpus": {"num_train": 24, "num_heldout": 8, "image_size": 32},
    "optim": {"frozen_backbone_epochs": [0, 0]},
    "batch": {"global_batch_size": 4, "workers": 0},
    "log": {"every_steps": 1, "tensorboard": False},
    "checkpoint": {"every_steps": 2, "every_minutes": 0, "keep": 2},
    "engine": {"threads": 1},
}
_MODEL = {
    "backbone": "resnet10", "visual_pool": 1, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "num_codes": 16, "dictionary_init": "data",
}  # fmt: skip
_TASKS = {
    "pretraining": ("mini", {}, {}),
    "vqa": ("mini_vqa", {"min_answer_count": 1}, {"every_epochs": 0.5}),
}
# What two runs of the same seed may differ in: how long things took.
_TIMES = ("images_per_second", "milliseconds", "seconds", "training_seconds")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class LostError(Exception):
    """A fault that was not survived; the text says what was lost, of so many that were tried."""

    def __init__(self, text: str, tried: int = 1) -> None:
        super().__init__(text)
        self.tried = tried


@dataclass
class Finished:
    """A command that has ended: its exit code (negative: the signal that killed it; None: it hung) and all it said."""

    code: int | None
    text: str

    @property
    def errors(self) -> list[str]:
        """Its lines that tell an error."""
        return [line for line in self.text.splitlines() if re.match(r"error\b|usage:|.*: error: ", line)]

    def expect(self, *codes: int, where: str) -> "Finished":
        """Raises LostError: another exit code, a stack trace, or an error that is not one line."""
        said = " | ".join(self.text.strip().splitlines()[-3:])[-300:]
        if "Traceback (most recent call last)" in self.text:
            raise LostError(f"{where}: a stack trace: {said}")
        if self.code not in codes:
            raise LostError(f"{where}: exit code {'none, it hung' if self.code is None else self.code}: {said}")
        if self.code in (2, os.EX_TEMPFAIL) and len(self.errors) != 1:
            raise LostError(f"{where}: {len(self.errors)} error lines: {said}")
        return self


@dataclass
class Command:
    """A command that runs in a process of its own."""

    arguments: list[str]
    output: Path
    pid: int
    began: float = field(default_factory=time.monotonic)
    code: int | None = None
    used: resource.struct_rusage | None = None

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status, self.used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, timeout: float = 120) -> Finished:
        """Wait for its end; a command that takes longer is killed and has no exit code."""
        deadline, hung = time.monotonic() + timeout * PATIENCE, False
        while not self.poll():
            if time.monotonic() > deadline:
                hung = True
                self.send(signal.SIGKILL)
            time.sleep(0.01)
        return Finished(None if hung else self.code, self.said())

    def send(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if not self.poll():
            os.kill(self.pid, number)

    def said(self) -> str:
        """What it has said so far."""
        return self.output.read_text(errors="replace")


def import_everything() -> None:
    """Import what the commands will: once, before the first fork. Computes nothing, so that no threads are forked."""
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", MPLBACKEND="Agg", HF_HUB_OFFLINE="1", COLUMNS="120")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"):
        os.environ.pop(name, None)
    for name in _IMPORTED:
        importlib.import_module(name)
    # Of the commit that is there now, whatever is committed meanwhile.
    importlib.import_module("soho_fast.common.versions").program()


def start(arguments: list[str], *, before: Callable[[], Any] | None = None, **environment: str) -> Command:
    """Start one of `COMMANDS` in a fork; `before` is called there first, and may change anything there."""
    output = Path(os.environ["FAULTS_FOLDER"]) / f"said-{time.monotonic_ns()}.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pid = os.fork()
    if pid:
        os.close(file)
        return Command(arguments, output, pid)
    code: Any = 1
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.environ.update(environment)
        if before is not None:
            before()
        code = importlib.import_module(COMMANDS[arguments[0]]).main(arguments[1:])
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit((code or 0) & 0xFF)


def run(
    arguments: list[str], *, before: Callable[[], Any] | None = None, timeout: float = 120, **environment: str
) -> Finished:
    """Start a command and wait for its end."""
    return start(arguments, before=before, **environment).wait(timeout)


def watch(folder: Path, act: Callable[[int, str, str], None]) -> Callable[[], None]:
    """A `before` that calls `act(number, event, path)` before each event that changes something below `folder`."""
    prefix, seen, within = str(folder), [0], [False]

    def happened(event: str, path: Any) -> None:
        path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if not path.startswith(prefix) or within[0]:
            return
        seen[0] += 1
        within[0] = True
        try:
            act(seen[0], event, path)
        finally:
            within[0] = False

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & _WRITES:
                happened("open", arguments[0])
        elif event == "os.rename":
            happened("rename", arguments[0])
        elif event in ("os.mkdir", "os.truncate"):
            happened(event.removeprefix("os."), arguments[0])
        elif event in ("os.remove", "os.rmdir"):
            path, folder = arguments
            # A tree is deleted by handles of its folders.
            at = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else ""
            happened(event.removeprefix("os."), os.path.join(at, os.fsdecode(path)))

    def before() -> None:
        sync = os.fsync

        def fsync(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            happened("fsync", os.readlink(f"/proc/self/fd/{number}"))
            sync(file)

        os.fsync = fsync
        sys.addaudithook(hook)

    return before


class Bench:
    """A corpus, recipes of two tasks on it, and runs of them that nothing disturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = folder / "corpus"
        self.recipes: dict[str, Path] = {}
        self.events: dict[str, list[tuple[str, str]]] = {}
        self.seconds: dict[str, float] = {}
        self.digests: dict[str, dict[str, Any]] = {}

    def prepare(self) -> None:
        """Build the corpus and make the undisturbed runs."""
        from soho_fast.tasks.recipe import RECIPES

        for task, (name, data, evaluation) in _TASKS.items():
            recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
            for part, values in _SMALL.items():
                recipe[part] = {**recipe.get(part, {}), **values}
            recipe["data"] |= {"shorter_edge": 32, "longer_edge": 32, **data}
            recipe["model"] = {"config": _MODEL}
            recipe["evaluation"] = evaluation
            recipe |= {"data_roots": {"corpus": str(self.corpus)}, "max_steps": STEPS, "epochs": 2}
            self.recipes[task] = self.folder / f"{task}.yaml"
            self.recipes[task].write_text(yaml.safe_dump(recipe, sort_keys=False))
            output, events = self.folder / task, self.folder / f"{task}.events"
            note = self._note(events, output)
            began = time.monotonic()
            run(self.train(task, output), before=note).expect(0, where=f"the undisturbed run of {task}")
            self.seconds[task] = time.monotonic() - began
            self.events[task] = self._events(events)
            self.digests[task] = digest(output)
            self._leave_half(task)
        events, into = self.folder / "evaluate.events", self.folder / "evaluated"
        note = self._note(events, into)
        began = time.monotonic()
        run(self.evaluate(self.folder / "vqa", into), before=note).expect(0, where="the undisturbed evaluation")
        self.seconds["evaluate"] = time.monotonic() - began
        self.events["evaluate"] = self._events(events)

    def _note(self, events: Path, folder: Path) -> Callable[[], None]:
        def act(number: int, event: str, path: str) -> None:
            with events.open("a") as file:
                file.write(json.dumps([event, os.path.relpath(path, folder)]) + "\n")

        return watch(folder, act)

    def _events(self, path: Path) -> list[tuple[str, str]]:
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()]

    def _leave_half(self, task: str) -> None:
        """A run that was killed after its second checkpoint."""
        folder = self.folder / f"{task}-half"

        def act(number: int, event: str, path: str) -> None:
            if event == "open" and path.startswith(f"{folder}/checkpoints/step-{STEPS:08d}"):
                os.kill(os.getpid(), signal.SIGKILL)

        killed = run(self.train(task, folder), before=watch(folder, act))
        assert killed.code == -signal.SIGKILL, killed.text
        assert newest_step(folder) == STEPS - 2, sorted((folder / "checkpoints").iterdir())

    def private(self, folder: Path) -> "Bench":
        """A copy of the corpus, the recipes and what question answering came to, for faults that may write anywhere."""
        own = Bench(folder)
        shutil.copytree(self.corpus, own.corpus)
        shutil.copytree(self.folder / "vqa", folder / "vqa", ignore=shutil.ignore_patterns("checkpoints"))
        own.recipes = {task: folder / path.name for task, path in self.recipes.items()}
        for name in (*(path.name for path in self.recipes.values()), "vqa/recipe.yaml"):
            text = (self.folder / name).read_text()
            (folder / name).write_text(text.replace(str(self.corpus), str(own.corpus)))
        return own

    def train(self, task: str, output: Path, *more: str) -> list[str]:
        """The command that trains."""
        return ["train", "--recipe", str(self.recipes[task]), "--output", str(output), *more]

    def evaluate(self, run_folder: Path, into: Path, *more: str) -> list[str]:
        """The command that evaluates a run of question answering."""
        return ["evaluate", "--run", str(run_folder), "--into", str(into), *more]

    def copy(self, name: str, target: Path) -> Path:
        """A copy of an undisturbed run, or of one that was killed (`<task>-half`)."""
        shutil.copytree(self.folder / name, target)
        return target

    def resume(self, task: str, output: Path, *more: str, before: Callable[[], Any] | None = None) -> None:
        """Run to the end, from the newest checkpoint there is. Raises LostError: another end than undisturbed."""
        newest = newest_step(output)
        done = run(self.train(task, output, *more), before=before).expect(0, where=f"resumed from step {newest}")
        told = re.search(r"resumed from .*\(step (\d+) of", done.text)
        if newest and (int(told[1]) if told else 0) < newest and not (told is None and newest == STEPS):
            raise LostError(f"resumed from step {told[1] if told else 0}, the newest checkpoint was of step {newest}")
        self.compare(task, output)

    def compare(self, task: str, output: Path) -> None:
        """Raises LostError: the run does not look as the undisturbed one does."""
        differences = differing(self.digests[task], digest(output))
        if differences:
            raise LostError("another end than undisturbed: " + "; ".join(differences)[:300])


def newest_step(output: Path) -> int:
    """The step of the newest checkpoint that is not half-written; 0 where there is none."""
    names = [path.name for path in (output / "checkpoints").glob("step-*")]
    return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d{8}", name)), default=0)


def digest(output: Path) -> dict[str, Any]:
    """What must be the same in each run of a recipe: losses and measures, weights to the bit, and the files' names."""
    records = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    for record in records:
        for name in _TIMES:
            record.pop(name, None)
    metrics = json.loads((output / "metrics.json").read_text())
    weights = {}
    for name in ("model", "best"):
        for path in sorted((output / name).glob("*")):
            weights[f"{name}/{path.name}"] = hashlib.blake2b(path.read_bytes()).hexdigest()[:12]
    files = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    return {
        **{
            f"log of step {record['step']}, {record['kind']}": record for record in records if record["kind"] != "event"
        },
        "log": [f"{record['kind']} {record['step']}" for record in records if record["kind"] != "event"],
        "metrics.json": {name: value for name, value in metrics.items() if name not in _TIMES},
        "files": files,
        **weights,
    }


def differing(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One text for each part that differs."""
    lines = []
    for name in [*expected, *(name for name in found if name not in expected)]:
        ours, theirs = expected.get(name), found.get(name)
        if ours == theirs:
            continue
        if isinstance(ours, list) and isinstance(theirs, list):
            counts, others = Counter(ours), Counter(theirs)
            more, less = list((others - counts).elements()), list((counts - others).elements())
            lines.append(f"{name}: left over {more}, missing {less}, or another order")
        elif isinstance(ours, dict) and isinstance(theirs, dict):
            keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
            lines.append(f"{name}: " + ", ".join(f"{key} {ours.get(key)} -> {theirs.get(key)}" for key in keys[:3]))
        else:
            lines.append(f"{name}: {str(ours)[:80]} -> {str(theirs)[:80]}")
    return lines


def limit_memory(gigabytes: float) -> None:
    """Let this process take so much address space beyond what it has."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(gigabytes * 2**30),) * 2)
