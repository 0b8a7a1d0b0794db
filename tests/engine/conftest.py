"""Launching the engine in processes of its own: its process group and signal handlers must not reach the tests'."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from forked_python import ForkedPython

from soho_fast import train
from soho_fast.data.mini import build_corpus
from soho_fast.tasks.recipe import RECIPES

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "engine"))
SCRIPT = Path(__file__).with_name("engine_run.py")
LIBRARIES = (
    "torchvision", "transformers.models.bert.modeling_bert", "deepspeed", "matplotlib.pyplot",
    "torch.utils.tensorboard",
)  # fmt: skip

# Recipe mini, made small.
SMALL = {
    "data": {
        "shorter_edge": 64, "longer_edge": 64,
        "mvm_from_epoch": 0, "mvm_probability": 1.0, "conditional_masking": False,
    },
    "model": {
        "config": {
            "backbone": "resnet10", "visual_pool": 1, "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 64, "num_codes": 16, "dictionary_init": "data",
        }
    },
    # Where a trained backbone comes to a stand, ranks average their BatchNorm: a resumed run equals to rounding only.
    "optim": {"frozen_backbone_epochs": [0, 0]},
    "batch": {"global_batch_size": 8, "workers": 1},
    "log": {"every_steps": 1},
}  # fmt: skip


@dataclass
class Finished:
    """A finished launch."""

    code: int
    text: str

    def results(self) -> list[dict]:
        """What the ranks printed at the end of each run."""
        return [json.loads(line) for line in self.text.splitlines() if line.startswith('{"rank"')]


def environment() -> dict[str, str]:
    """One thread each, the package importable, no launcher's variables."""
    values = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return values | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def clean_environment() -> dict[str, str]:
    return environment()


def command(processes: int, port: int, *options: str) -> list[str]:
    """How to start a script with so many processes (alone: without the launcher), or by these launcher options."""
    if processes == 1 and not options:
        return [sys.executable]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, *(options or ("--num_accelerators", str(processes))), "--master_port", str(port)]


def _start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        arguments, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def _end(process: subprocess.Popen) -> None:
    """Kill what is left of a launch: ranks outlive a launcher that is killed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def port() -> int:
    """A port that is free now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def forked() -> Iterator[Callable[[int], ForkedPython]]:
    """`python ...` in the engine's environment, with the libraries imported beforehand; one that is forked a rank."""

    @functools.cache
    def of_rank(rank: int) -> ForkedPython:
        return ForkedPython(environment(), *LIBRARIES)

    yield of_rank
    for rank in range(of_rank.cache_info().currsize):
        of_rank(rank).close()


@pytest.fixture
def launch(
    forked: Callable[[int], ForkedPython], port: int, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Finished]:
    """Run requests for `engine_run.py`, or a script, one after another in the same processes, and wait.

    Processes are given what DeepSpeed's launcher would give them; with `by_launcher` it starts them, which takes long.
    `of_rank` are arguments of single ranks.
    """

    def run(
        *requests: dict,
        processes: int = 1,
        script: Path = SCRIPT,
        arguments: list[str] | None = None,
        of_rank: dict[int, list[str]] | None = None,
        by_launcher: bool = False,
    ) -> Finished:
        arguments = [json.dumps(requests)] if arguments is None else arguments
        if not by_launcher:
            said = tmp_path_factory.mktemp("said") / "stdout"

            def run_rank(rank: int) -> int:
                values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_SIZE": processes}
                values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
                started = environment() | {name: str(value) for name, value in values.items()}
                own = [*arguments, *(of_rank or {}).get(rank, [])]
                return forked(rank).run([str(script), *own], ROOT, started, said, said)

            with ThreadPoolExecutor(processes) as ranks:
                codes = list(ranks.map(run_rank, range(processes)))
            return Finished(max(codes, key=abs), said.read_text())
        process = _start([*command(processes, port), str(script), *arguments])
        try:
            text = process.communicate(timeout=900)[0]
        finally:
            _end(process)
        return Finished(process.returncode, text)

    return run


@pytest.fixture
def start(port: int) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a script without waiting for its end; output and errors come through one pipe."""

    started = []

    def run(script: Path, arguments: list[str], *options: str, processes: int = 1) -> subprocess.Popen:
        started.append(_start([*command(processes, port, *options), str(script), *arguments]))
        return started[-1]

    yield run
    for process in started:
        _end(process)


@pytest.fixture
def again(launch: Callable[..., Finished]) -> Callable[..., tuple[int, str]]:
    """Run the training command with these arguments: exit code and output."""

    def run(*arguments: str) -> tuple[int, str]:
        done = launch(script=Path(train.__file__), arguments=list(arguments))
        return done.code, done.text

    return run


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., dict]:
    """A request with small, quick settings, writing to a folder of this test."""

    def make(name: str, **changes: object) -> dict:
        base = {
            "output": str(tmp_path / name), "epochs": 100, "max_steps": 10,
            "optim": {"lr": 1e-2, "backbone_lr": 1e-2, "clip": 1.0}, "schedule": {"warmup_steps": 2},
            "batch": {"global_batch_size": 8, "workers": 0}, "checkpoint": {"every_minutes": 0},
            "log": {"every_steps": 1}, "evaluation": {"at_end": False},
        }  # fmt: skip
        for key, value in changes.items():
            base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
        return base

    return make


@pytest.fixture
def losses() -> Callable[[dict], list[float]]:
    """The losses in a run's log, one a step, and a check that no step is there twice."""

    def read(request: dict) -> list[float]:
        lines = (Path(request["output"]) / "log.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
        assert [record["step"] for record in records] == list(range(1, len(records) + 1))
        return [record["loss"] for record in records]

    return read


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    """Recipe mini, made small, all in this test's folder."""
    recipe = yaml.safe_load((RECIPES / "mini.yaml").read_text())
    for part, values in SMALL.items():
        # The model is this test's own: what mini starts from and how fast it learns is tuned elsewhere.
        recipe[part] = values if part == "model" else {**recipe.get(part, {}), **values}
    recipe["data_roots"] = {"corpus": str(build_corpus(tmp_path / "corpus", num_train=40, num_heldout=12))}
    recipe |= {"output": str(tmp_path / "run"), "max_steps": 3, "max_minutes": 0}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
