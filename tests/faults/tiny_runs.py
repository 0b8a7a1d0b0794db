"""Tiny runs of the real commands in forked processes, and what a run must look like in the end.

Everything heavy is imported once, by the campaign; a command is then a fork that calls its `main`, which takes a second
or two instead of ten. What happens in a run's folder (files opened to write, renamed, deleted, synced) is counted by an
audit hook: an event has the same number in each run of the same command.
"""

import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

STEPS = 6
PATIENCE = float(os.environ.get("FAULTS_PATIENCE", "1"))
"""Times longer than usual that a command may take until it counts as one that hangs: for a busy machine."""
COMMANDS = {
    "train": "soho_fast.train", "evaluate": "soho_fast.evaluate", "ask": "soho_fast.ask.__main__",
    "corpus": "soho_fast.data.mini.__main__", "explore": "soho_fast.explore.__main__",
    "check": "soho_fast.tasks.check", "tokenizer": "soho_fast.data.tokenizer",
    "app": "soho_fast.explore.app_command", "suite": "soho_fast.tasks.suites",
}  # fmt: skip
# What the commands import, at their start or later.
_IMPORTED = (
    *COMMANDS.values(), "soho_fast.engine.trainer", "soho_fast.tasks.recipe", "soho_fast.data.mini",
    "soho_fast.model.fast.cpu", "soho_fast.ask.many", "soho_fast.explore.build", "soho_fast.engine.report",
    "matplotlib.pyplot", "torch.utils.data._utils.worker",
)  # fmt: skip
_SMALL = {
    "optim": {"frozen_backbone_epochs": [0, 0]},
    "batch": {"global_batch_size": 4, "workers": 0},
    "log": {"every_steps": 1},
    "checkpoint": {"every_steps": 2, "every_minutes": 0, "keep": 2},
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

Before = Callable[[], Any] | None
"""Called in a command's process before it begins; may change anything there."""
Act = Callable[[int, str, str], None]
"""Called with number, kind and path of an event."""
Case = tuple[str, Callable[[Path, random.Random], int | None]]
"""Its name, and what tries it in a folder, by draws; returns how many faults that was (None: one), raises LostError."""


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


class Command:
    """A command that runs in a process of its own; `used`: the resources that it took, once it has ended."""

    def __init__(self, output: Path, pid: int) -> None:
        self.output, self.pid = output, pid
        self.code: int | None = None
        self.used: Any = None

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
        return Finished(None if hung else self.code, self.output.read_text(errors="replace"))

    def send(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if not self.poll():
            os.kill(self.pid, number)


def import_everything() -> None:
    """Import what the commands will: once, before the first fork. Computes nothing, so that no threads are forked."""
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", MPLBACKEND="Agg", HF_HUB_OFFLINE="1", COLUMNS="120")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"):
        os.environ.pop(name, None)
    for name in _IMPORTED:
        importlib.import_module(name)
    # Of the commit that is there now, whatever is committed meanwhile.
    importlib.import_module("soho_fast.common.versions").program()


def start(arguments: list[str], *, before: Before = None, **environment: str) -> Command:
    """Start one of `COMMANDS` in a fork."""
    output = Path(os.environ["FAULTS_FOLDER"]) / f"said-{time.monotonic_ns()}.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if pid := os.fork():
        os.close(file)
        return Command(output, pid)
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


def run(arguments: list[str], *, before: Before = None, timeout: float = 120) -> Finished:
    """Start a command and wait for its end."""
    return start(arguments, before=before).wait(timeout)


def watch(folder: Path, act: Act) -> Callable[[], None]:
    """A `before` that calls `act` before each event that changes something below `folder`."""
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
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            happened("open", arguments[0])
        elif event in ("os.rename", "os.mkdir", "os.truncate"):
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


def at_event(at: int, act: Callable[[], Any]) -> Act:
    """Calls `act` at event number `at`."""
    return lambda number, event, path: act() if number == at else None


def kill_at(folder: Path, at: int) -> Callable[[], None]:
    """A `before` that kills, as by `kill -9`, at event number `at`."""
    return watch(folder, at_event(at, lambda: os.kill(os.getpid(), signal.SIGKILL)))


class Bench:
    """A corpus, recipes of two tasks on it, and runs of them that nothing disturbed.

    Attributes:
        events: (kind, path in the folder) of what happens in the folder of a training or an evaluation, in order.
        seconds: that these take.
        digests: of the two trainings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.corpus = folder, folder / "corpus"
        self.recipes = {task: folder / f"{task}.yaml" for task in _TASKS}
        self.events: dict[str, list[tuple[str, str]]] = {}
        self.seconds: dict[str, float] = {}
        self.digests: dict[str, dict[str, Any]] = {}

    def prepare(self) -> None:
        """Build the corpus, make the undisturbed runs, and of each one that was killed after its second checkpoint."""
        from soho_fast.data.mini import build_corpus
        from soho_fast.tasks.recipe import RECIPES

        build_corpus(self.corpus, num_train=24, num_heldout=8, progress=False)
        for task, (name, data, evaluation) in _TASKS.items():
            recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
            for part, values in _SMALL.items():
                recipe[part] = {**recipe.get(part, {}), **values}
            recipe["data"] |= {"shorter_edge": 32, "longer_edge": 32, **data}
            recipe |= {"model": {"config": _MODEL}, "evaluation": evaluation, "max_steps": STEPS, "epochs": 2}
            recipe["data_roots"] = {"corpus": str(self.corpus)}
            self.recipes[task].write_text(yaml.safe_dump(recipe, sort_keys=False))
            self._note(task, self.command(task, self.folder / task), self.folder / task)
            self.digests[task] = digest(self.folder / task)
            half, last = self.folder / f"{task}-half", f"checkpoints/step-{STEPS:08d}"
            at = next(number for number, (_, path) in enumerate(self.events[task], 1) if path.startswith(last))
            killed = run(self.command(task, half), before=kill_at(half, at))
            assert killed.code == -signal.SIGKILL, killed.text
            assert newest_step(half) == STEPS - 2, sorted((half / "checkpoints").iterdir())
        self._note("evaluate", self.command("evaluate", self.folder / "evaluated"), self.folder / "evaluated")

    def _note(self, what: str, arguments: list[str], folder: Path) -> None:
        file, began = self.folder / f"{what}.events", time.monotonic()

        def act(number: int, event: str, path: str) -> None:
            with file.open("a") as events:
                events.write(json.dumps([event, os.path.relpath(path, folder)]) + "\n")

        run(arguments, before=watch(folder, act)).expect(0, where=f"the undisturbed {what}")
        self.seconds[what] = time.monotonic() - began
        self.events[what] = [tuple(json.loads(line)) for line in file.read_text().splitlines()]

    def private(self, folder: Path) -> "Bench":
        """A copy of the corpus, the recipes and what question answering came to, for faults that may write anywhere."""
        own = Bench(folder)
        shutil.copytree(self.corpus, own.corpus)
        self.copy("vqa", folder / "vqa", checkpoints=False)
        for name in (*(path.name for path in self.recipes.values()), "vqa/recipe.yaml"):
            text = (self.folder / name).read_text()
            (folder / name).write_text(text.replace(str(self.corpus), str(own.corpus)))
        return own

    def command(self, what: str, output: Path, *more: str) -> list[str]:
        """That trains a task, or evaluates (`evaluate`) the run of question answering."""
        if what == "evaluate":
            return ["evaluate", "--run", str(self.folder / "vqa"), "--into", str(output), *more]
        return ["train", "--recipe", str(self.recipes[what]), "--output", str(output), *more]

    def copy(self, name: str, target: Path, *, checkpoints: bool = True) -> Path:
        """A copy of an undisturbed run, or of one that was killed (`<task>-half`)."""
        leave_out = () if checkpoints else ("checkpoints",)
        return Path(shutil.copytree(self.folder / name, target, ignore=shutil.ignore_patterns(*leave_out)))

    def once(self, name: str, make: Callable[[Path], Any]) -> Path:
        """What is made in a folder by the first fault that asks for it."""
        known = self.folder / name
        if not known.exists():
            make(new := Path(os.environ["FAULTS_FOLDER"]) / "undisturbed")
            with contextlib.suppress(OSError):  # made by another fault meanwhile
                new.rename(known)
        return known

    @property
    def picture(self) -> Path:
        """One of the corpus."""
        return min(self.corpus.rglob("*.jpg"))

    def finish(self, what: str, output: Path, *more: str, before: Before = None) -> None:
        """The same command to its end. Raises LostError: another end than undisturbed, or not from the newest
        checkpoint on."""
        newest = newest_step(output)
        done = run(self.command(what, output, *more), before=before).expect(0, where=f"again, from step {newest}")
        if what == "evaluate":
            same_folders(self.folder / "evaluated", output)
            return
        told = re.search(r"resumed from .*\(step (\d+) of", done.text)
        if newest and (int(told[1]) if told else 0) < newest and not (told is None and newest == STEPS):
            raise LostError(f"resumed from step {told[1] if told else 0}, the newest checkpoint was of step {newest}")
        same(self.digests[what], digest(output))


def newest_step(output: Path) -> int:
    """The step of the newest checkpoint that is not half-written; 0 where there is none."""
    names = [path.name for path in (output / "checkpoints").glob("step-*")]
    return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d{8}", name)), default=0)


def digest(output: Path) -> dict[str, Any]:
    """What must be the same in each run of a recipe: losses and measures, weights to the bit, and the files' names."""
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    records = [line for line in lines if line["kind"] != "event"]
    metrics = json.loads((output / "metrics.json").read_text())
    for record in (*records, metrics):
        for name in _TIMES:
            record.pop(name, None)
    weights = [path for name in ("model", "best") for path in sorted((output / name).glob("*"))]
    return {
        **{f"log of step {record['step']}, {record['kind']}": record for record in records},
        "log": [f"{record['kind']} {record['step']}" for record in records],
        "metrics.json": metrics,
        # Files of TensorBoard are named by the time, one for each time that the run was started.
        "files": sorted(
            {
                str(path.relative_to(output)).partition(".tfevents.")[0]
                for path in output.rglob("*")
                if path.is_file() or path.parent.name == "checkpoints"
            }
        ),
        **{str(path.relative_to(output)): hashlib.blake2b(path.read_bytes()).hexdigest()[:12] for path in weights},
    }


def same(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises LostError: parts of two digests differ, by name and by how they begin to differ."""
    odd = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if odd:
        one, other = (str(each.get(odd[0])) for each in (expected, found))
        at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
        apart = f"{one[max(0, at - 40) : at + 40]!r} -> {other[max(0, at - 40) : at + 40]!r}"
        raise LostError(f"another end than undisturbed: {', '.join(odd[:5])}: {apart}")


def same_folders(expected: Path, found: Path) -> None:
    """Raises LostError: files of two folders differ, by name or content."""
    same(*(
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (expected, found)
    ))  # fmt: skip


def limit_memory(gigabytes: float = 12) -> None:
    """Let this process take so much address space beyond what it has."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(gigabytes * 2**30),) * 2)
