"""A checkpoint is what was written: altered, truncated, planted and foreign things in a run's folder."""

import dataclasses
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_run import run_one
from tiny_corpus import Planted

from soho_fast.common.errors import UserError
from soho_fast.common.processes import Processes
from soho_fast.engine import checkpoint as checkpoints
from soho_fast.engine.checkpoint import MANIFEST, Checkpoints, rng_state, set_rng_state
from soho_fast.engine.distributed import leave_processes, start_processes
from soho_fast.engine.watchdog import StopRequest
from soho_fast.tasks.recipe import read_recipe

ALONE = Processes(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of a run of six steps that was stopped after four, with checkpoints of steps 2 and 4; its ranks)."""
    with pytest.MonkeyPatch.context() as environment:
        # DeepSpeed asks for them; where a test before has left its process group, nobody else sets them.
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}.items():
            environment.setenv(name, value)
        processes = start_processes()
        folder = tmp_path_factory.mktemp("trained") / "run"
        assert run_one(_request(folder, task={"signal_at": 3}), processes) == 128 + signal.SIGTERM
        assert _names(folder) == ["step-00000002", "step-00000004"]
        yield folder, processes
        leave_processes()


def _request(folder: Path, **changes) -> dict:
    return {
        "output": str(folder), "epochs": 100, "max_steps": 6, "batch": {"global_batch_size": 8, "workers": 0},
        "checkpoint": {"every_minutes": 0, "every_steps": 2}, "evaluation": {"at_end": False},
        "log": {"every_steps": 1},
    } | changes  # fmt: skip


@pytest.fixture
def run(trained, tmp_path):
    """(folder of a copy of the run, train on in it to its end)."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    return folder, lambda **changes: run_one(_request(folder, **changes), trained[1])


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoints"))


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _flip_middle(path: Path) -> None:
    _flip(path, path.stat().st_size // 2)


def _step_taken(out: str) -> int:
    (line,) = [line for line in out.splitlines() if line.startswith("resumed from")]
    return int(line.split("(step ")[1].split(" of")[0])


FILES = ["mp_rank_00_model_states.pt", "rank-00000.pt", MANIFEST]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_falls_back_to_the_older_checkpoint_in_one_sentence(run, capsys, name):
    folder, train_on = run
    path = folder / "checkpoints" / "step-00000004" / name
    # Of the manifest each byte matters, whatever it says: this one is a digit of the seconds or of a checksum.
    content = path.read_bytes()
    _flip_middle(path) if name != MANIFEST else _flip(path, content.index(b".", content.index(b'"seconds": ')) + 3)
    assert train_on() == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "step-00000004" in line]
    assert f"step-00000004 ({name} differs from its " in line and line.endswith("step-00000002, is taken")
    assert _step_taken(out) == 2


def test_each_flipped_bit_of_a_manifest_is_noticed_or_changes_nothing(trained):
    path = trained[0] / "checkpoints" / "step-00000004"
    before = checkpoints._read_manifest(path)
    content = (path / MANIFEST).read_bytes()
    unnoticed = 0
    try:
        for at in range(0, 8 * len(content), 11):
            flipped = bytearray(content)
            flipped[at // 8] ^= 1 << at % 8
            (path / MANIFEST).write_bytes(flipped)
            if checkpoints._fault(path) is None:
                unnoticed += 1
                assert checkpoints._read_manifest(path) == before, at
    finally:
        (path / MANIFEST).write_bytes(content)
    # White space: a line break that became a tab and the like.
    assert unnoticed < 0.01 * 8 * len(content) / 11


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"\xff\x00junk", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[1, 2]", "is not a checkpoint's"),
        (b'{"format": 1, "progress": {"step": 4}}', "it has format 1, this version reads 4"),
        (b'{"format": 4, "progress": {"step": 4}}', "differs from its own checksum"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(run, capsys, content, words):
    folder, train_on = run
    (folder / "checkpoints" / "step-00000004" / MANIFEST).write_bytes(content)
    assert train_on() == 0
    out = capsys.readouterr().out
    assert words in out and _step_taken(out) == 2


@pytest.mark.parametrize("progress", [None, {"steps": 4}, [4]])
def test_a_manifest_of_another_kind_with_its_checksum(run, capsys, progress):
    folder, train_on = run
    _reseal(folder / "checkpoints" / "step-00000004", progress=progress)
    assert train_on() == 0
    assert "lacks what this version writes" in capsys.readouterr().out


def test_missing_and_added_files_are_damage(run, capsys):
    folder, train_on = run
    (folder / "checkpoints" / "step-00000004" / "mp_rank_01_model_states.pt").touch()
    (folder / "checkpoints" / "step-00000002" / "rank-00000.pt").unlink()
    with pytest.raises(UserError) as refused:
        train_on()
    assert str(refused.value).startswith(f"{folder}/checkpoints: none of the checkpoints can be used: ")
    assert "step-00000004 (mp_rank_01_model_states.pt does not belong to it)" in str(refused.value)
    assert "step-00000002 (rank-00000.pt is missing)" in str(refused.value)
    assert len((folder / "log.jsonl").read_text().splitlines()) == 4, "nothing of the run is lost"


def test_an_intact_checkpoint_is_never_pruned_for_a_damaged_one(run, capsys, monkeypatch):
    """Step 4 is altered; saved next is step 3, of which alone is kept: it must not be the altered one that stays."""
    folder, train_on = run
    _flip_middle(folder / "checkpoints" / "step-00000004" / "rank-00000.pt")
    with monkeypatch.context() as stopped:
        stopped.setattr(StopRequest, "pending", lambda _: signal.SIGTERM)
        assert train_on(checkpoint={"every_minutes": 0, "every_steps": 1, "keep": 1}) == 128 + signal.SIGTERM
    assert _names(folder) == ["step-00000003", "step-00000004"]
    capsys.readouterr()
    assert train_on(checkpoint={"every_minutes": 0, "every_steps": 1, "keep": 2}) == 0
    assert _step_taken(capsys.readouterr().out) == 3
    assert _names(folder) == ["step-00000005", "step-00000006"]
    assert Checkpoints(folder / "checkpoints", ALONE, 1).choose(print).name == "step-00000006"


def test_a_kill_while_a_checkpoint_replaces_that_of_its_step_loses_neither(run, capsys):
    """The one that is there is deleted in part, the whole one not yet renamed."""
    folder, train_on = run
    place = folder / "checkpoints"
    shutil.rmtree(place / "step-00000002")
    shutil.copytree(place / "step-00000004", place / "step-00000004.partial")
    (place / "step-00000004" / "rank-00000.pt").unlink()
    assert train_on() == 0
    assert _step_taken(capsys.readouterr().out) == 4


def test_foreign_things_are_neither_resumed_from_nor_counted_nor_pruned(run, capsys):
    folder, train_on = run
    place = folder / "checkpoints"
    shutil.copytree(place / "step-00000004", place / "step-00000099.bak")
    shutil.copytree(place / "step-00000004", place / "step-99")
    (place / "step-abc.partial").mkdir()
    (place / "step-00000050").touch()
    assert train_on(checkpoint={"every_minutes": 0, "every_steps": 1, "keep": 2}) == 0
    out = capsys.readouterr().out
    assert _step_taken(out) == 4
    assert out.count("left alone") == 1
    assert "also holds step-00000050, step-00000099.bak, step-99 and 1 more, which no run has written" in out
    own = ["step-00000005", "step-00000006"]
    assert _names(folder) == sorted([*own, "step-00000050", "step-00000099.bak", "step-99", "step-abc.partial"])


def test_an_unreadable_folder_is_one_line(run, monkeypatch):
    folder, train_on = run
    place = folder / "checkpoints"
    listdir = os.listdir

    def denied(path="."):
        if Path(path) == place:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(UserError, match=r"checkpoints: the checkpoints cannot be read: Permission denied"):
        train_on()


def _reseal(path: Path, **changes) -> None:
    """Make the manifest fit what is there, as one who plants something would."""
    manifest = json.loads((path / MANIFEST).read_text()) | changes
    del manifest["sha256"]
    for name in manifest["files"]:
        content = (path / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / MANIFEST).write_text(json.dumps({**manifest, "sha256": checkpoints._digest(manifest)}))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_planted_pickles_are_refused_in_every_file(tmp_path, trained, stage):
    engine = {"engine": {"zero_stage": stage}}
    folder, proof = tmp_path / "run", tmp_path / "executed"
    assert run_one(_request(folder, **engine, task={"signal_at": 1}), trained[1]) == 128 + signal.SIGTERM
    path = folder / "checkpoints" / "step-00000002"
    names = [name for name in os.listdir(path) if name.endswith(".pt")]
    assert len(names) == (2 if stage == 0 else 3)
    for name in names:
        content = (path / name).read_bytes()
        for zipped in (True, False):
            if zipped:
                torch.save({"a": Planted(proof)}, path / name)
            else:
                (path / name).write_bytes(pickle.dumps(Planted(proof), protocol=2))
            _reseal(path)
            with pytest.raises(UserError) as refused:
                run_one(_request(folder, **engine), trained[1])
            assert not proof.exists(), name
            assert str(refused.value).startswith(f"{path / name}: it ") and "\n" not in str(refused.value)
        (path / name).write_bytes(content)
    _reseal(path)
    assert run_one(_request(folder, **engine), trained[1]) == 0


def test_numbers_of_a_recipe_are_loaded_again(trained, tmp_path, capsys):
    """A recipe's values have types of their own."""
    recipe = read_recipe(["--optim.lr", "1e-2", "--optim.clip", "5"])
    assert type(recipe.optim.lr) is not float
    optim = {field.name: getattr(recipe.optim, field.name) for field in dataclasses.fields(recipe.optim)}
    # The stub neither waits with its backbone nor tells its matrices from the rest.
    optim |= {"frozen_backbone_epochs": (0, 0), "rule": "adamw"}
    folder, stopped = tmp_path / "run", {"task": {"signal_at": 1}}
    assert run_one(_request(folder, optim=optim, **stopped), trained[1]) == 128 + signal.SIGTERM
    assert run_one(_request(folder, optim=optim), trained[1]) == 0
    assert _step_taken(capsys.readouterr().out) == 2


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    files = checkpoints._Files()
    files.save({"a": Fraction(1, 2)}, str(tmp_path / "a.pt"))
    assert files.error == f"{tmp_path}/a.pt: it would not be loaded again: fractions.Fraction is no plain data"


def test_states_of_the_generators_are_plain_and_come_back(tmp_path):
    random.gauss(0, 1), np.random.standard_normal(3)  # Both keep the second of a pair.
    device = torch.device("cpu")
    torch.save(rng_state(device), tmp_path / "rng.pt")

    def draw() -> list[float]:
        ours = [random.gauss(0, 1), random.random(), float(torch.rand(1))]
        return [*ours, *np.random.standard_normal(3), np.random.rand()]

    before = draw()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True), device)
    assert draw() == before
