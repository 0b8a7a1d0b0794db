"""Settings are what was trained: a change is listed and refused, or recorded; what is finished is left as it is."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_files import events, records

from soho_fast import train
from soho_fast.common.versions import read_run_of
from soho_fast.engine import checkpoint
from soho_fast.engine.changes import all_fields, digest_of, settings_identity
from soho_fast.tasks.recipe import read_recipe


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of the last change and bytes of every file."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def error_of(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


def test_a_finished_run_is_left_as_it_is(again, small_recipe, tmp_path):
    """The same command says so; another setting is refused, however it is given; an extended run goes on."""
    command, run = ["--recipe", str(small_recipe)], tmp_path / "run"
    code, text = again(*command)
    assert code == 0, text
    before, corpus = contents(run), contents(tmp_path / "corpus")
    shutil.copytree(tmp_path / "corpus", tmp_path / "moved")
    harmless = ["--log.every_steps", "2", "--batch.workers", "0", "--checkpoint.keep", "1"]
    for options in ([], harmless, ["--data_roots.corpus", str(tmp_path / "moved")]):
        code, text = again(*command, *options)
        assert code == 0 and "nothing is left to do" in text and "ITM, balanced pairs" in text, text
        assert "parameters" not in text, "the model was built"
    code, text = again(*command, "--model.config.backbone_stride", "16")
    assert code == 2 and "model.config.backbone_stride: trained with 32, now 16" in error_of(text), text
    for way in ("Give the same values", "another --output", "--resume changed"):
        assert way in error_of(text), text
    code, text = again(*command, "--optim.lr", "3e-4", "--resume", "changed")
    assert code == 2 and "no step is left" in error_of(text), text
    size = ["--model.config.hidden_size", "64", "--max_steps", "4"]
    code, text = again(*command, *size, "--resume", "changed")
    assert code == 2 and "model.config.hidden_size: trained with 32, now 64" in error_of(text), text
    assert "does not fit the changed settings (" in error_of(text), text
    code, text = again("--recipe", "mini_vqa", "--output", str(run))
    assert code == 2 and "this run has other settings: task: trained with pretraining, now vqa." in error_of(text)
    assert contents(run) == before and contents(tmp_path / "corpus") == corpus

    longer = [*command, "--max_steps", "5", "--optim.lr", "3e-4"]
    code, text = again(*longer, "--resume", "changed")
    assert code == 0 and "settings changed: max_steps 3 -> 5, optim.lr 0.0016 -> 0.0003" in text, text
    code, text = again(*longer)
    assert code == 0 and "nothing is left to do" in text, text
    assert (3, "settings changed: max_steps 3 -> 5, optim.lr 0.0016 -> 0.0003") in events({"output": run})
    rates = {record["step"]: record["lr"]["rest"] for record in records({"output": run})}
    # The warm-up of 50 steps begins at a tenth.
    assert rates[3] == pytest.approx(0.0016 * (0.1 + 0.9 * 2 / 50))
    assert rates[4] == pytest.approx(0.0003 * (0.1 + 0.9 * 3 / 50)), "the checkpoint's rate went over the new one"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["optim"]["lr"], recipe["max_steps"], recipe["resume"]) == (0.0003, 5, "auto")
    assert json.loads((run / "metrics.json").read_text())["step"] == 5

    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    code, text = again(*longer)
    assert code == 2 and "holds the results of a run (model, metrics.json)" in error_of(text), text
    assert contents(run) == before

    # As where it died between its first evaluation and its first checkpoint.
    shutil.rmtree(run / "model")
    (run / "metrics.json").unlink()
    (run / "best").mkdir()
    code, text = again(*longer)
    assert code == 0 and json.loads((run / "metrics.json").read_text())["step"] == 5, text


def test_changed_data_are_told_and_an_unfinished_end_is_made_up_for(again, small_recipe, tmp_path):
    command, run = ["--recipe", str(small_recipe), "--corpus", ""], tmp_path / "run"
    assert again("--recipe", str(small_recipe), "--evaluation.at_end", "false")[0] == 0
    trained = contents(run)
    assert json.loads(trained["metrics.json"][1])["metrics"] is None
    assert "nothing is left to do" in again(*command, "--evaluation.at_end", "false")[1]
    assert contents(run) == trained
    # As where it was killed before its end was measured and exported.
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "model")
    code, text = again(*command)
    assert code == 0 and "ITM, balanced pairs" in text, text
    measured = contents(run)
    assert measured["model/model.safetensors"][1] == trained["model/model.safetensors"][1]
    assert json.loads(measured["metrics.json"][1])["metrics"]["num_images"] == 12
    kept = [name for name in trained if name.startswith("checkpoints/") or name == "recipe.yaml"]
    assert len(kept) > 3 and all(measured[name] == trained[name] for name in kept), "nothing was trained"
    assert "nothing is left to do" in again(*command)[1] and contents(run) == measured
    # Killed after it was measured: it is measured again, and told once.
    (run / "metrics.json").unlink()
    assert again(*command)[0] == 0
    lines = (run / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines].count("evaluation") == 1
    measured = contents(run)

    annotations = tmp_path / "corpus" / "dataset_coco.json"
    content = json.loads(before := annotations.read_text())
    next(image for image in content["images"] if image["split"] == "train")["sentences"][0]["raw"] = "something else"
    annotations.write_text(json.dumps(content))
    code, text = again(*command)
    assert code == 2 and "training data: trained with 40 records, " in error_of(text), text
    assert "held-out data" not in error_of(text) and contents(run) == measured
    annotations.write_text(before)
    assert again(*command)[0] == 0
    for image in annotations.parent.rglob("*.jpg"):
        image.write_bytes(image.read_bytes()[:-1] + b"x")
    code, text = again(*command)
    assert code == 2 and "training images: trained with 40 images, " in error_of(text), text
    assert "held-out images: trained with 12 images, " in error_of(text) and contents(run) == measured


def test_another_version_goes_on_and_says_so(launch, request_for):
    """A patch level is no reason to refuse it, but whoever compares its figures has to know; more is a change."""
    half = request_for("run", task={"kill_at": 6}, checkpoint={"every_steps": 4}, max_steps=8)
    assert launch(half).code < 0
    path = Path(half["output"]) / "checkpoints/step-00000004/checkpoint.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    now = manifest["identity"]["program.torch"]
    patch = ".".join([*now.split(".")[:2], "99"])
    for before in ("1.0", patch):
        manifest["identity"]["program.torch"] = before
        path.write_text(json.dumps({**manifest, "sha256": checkpoint._digest(manifest)}))
        done = launch({**half, "task": {}})
        if before != patch:
            assert done.code == 2 and f"program.torch: trained with 1.0, now {now}" in done.text, done.text
    assert done.code == 0, done.text
    assert f"another version: program.torch {patch} -> {now}" in done.text.splitlines()
    assert (4, f"another version: program.torch {patch} -> {now}") in events(half)
    about = read_run_of(Path(half["output"]) / "model")
    last = json.loads((path.parents[1] / "step-00000008/checkpoint.json").read_text())
    assert (about["step"], about["identity"]) == (8, digest_of(last["identity"])), "a model says what it is of"


def test_a_half_done_run_keeps_its_schedule(launch, request_for):
    """Stopped in the middle; the schedule, and so every setting, must be the same, or the change is asked for."""
    every = {"checkpoint": {"every_steps": 4}, "max_steps": 8}
    linear = {"schedule": {"decay": "linear", "end_factor": 0.5}}
    stopped = request_for("run", task={"kill_at": 6}, **every)
    changed = request_for("run", **every, **linear, resume="changed")
    run = Path(stopped["output"])
    assert launch(stopped).code < 0
    before = contents(run)
    done = launch(
        {**changed, "resume": "auto", "fails": True},
        request_for("run", **every, **linear, resume="changed", batch={"global_batch_size": 4}, fails=True),
    )
    assert done.code == 0 and contents(run) == before, done.text
    for words in (
        "schedule.decay: trained with step, now linear; schedule.end_factor: trained with 0, now 0.5. Give the same",
        "batch.global_batch_size cannot change within a run",
    ):
        assert words in done.text, done.text
    # Killed before it was saved, it is asked again; then the change is the run's own.
    killed = {**changed, "task": {"kill_at": 6}}
    assert launch({**killed, "checkpoint": {"every_steps": 0}}).code < 0
    done = launch({**changed, "resume": "auto", "fails": True}, changed, {**changed, "resume": "auto"})
    assert done.code == 0, done.text
    assert events(stopped) == [
        (4, "resumed"),
        (4, "settings changed: schedule.decay step -> linear, schedule.end_factor 0 -> 0.5"),
        (8, "resumed"),
    ]


def test_every_stage_goes_on_with_the_new_values(launch, request_for, losses):
    """DeepSpeed's state brings the optimiser's values along, ZeRO 1 and 2 the largest gradient norm too."""
    values = {
        "lr": 3e-3, "weight_decay": 0.5, "beta2": 0.7, "eps": 1e-3, "backbone_lr": 1.0,
        "backbone_weight_decay": 0.1, "clip": 1e-2,
    }  # fmt: skip

    def make(stage: int, **changes) -> dict:
        return request_for(f"zero{stage}", task={"dropout": 0.0}, engine={"zero_stage": stage}, **changes)

    stages = range(4)
    first = [make(stage, max_steps=4) for stage in stages]
    done = launch(*first, *[make(stage, max_steps=8, optim=values, resume="changed") for stage in stages])
    assert done.code == 0, done.text
    for request in first[1:]:
        np.testing.assert_allclose(losses(request), losses(first[0]), rtol=1e-5, err_msg=request["output"])
    rates = records(first[0])[-1]["lr"]
    assert rates["backbone"] / rates["rest"] == pytest.approx(1.0 / 3e-3), "of the checkpoint they were others"


@pytest.mark.parametrize("recipe", ["mini", "mini_vqa", "mini_retrieval", "paper"])
def test_what_is_not_compared_is_this_and_no_more(recipe):
    """Every field of a recipe but these: where files lie (their contents are compared), and how it is run."""
    settings = read_recipe(["--recipe", recipe])
    task = settings.make_task(print)
    everything = all_fields(settings)
    left_out = set(everything) - set(settings_identity(settings, task.identity.not_compared))
    parts = {name.partition(".")[0] for name in left_out}
    assert parts == {
        "output", "resume", "checkpoint", "log", "evaluation", "batch", "engine", "data_roots", "corpus",
        "data", "model",
    }  # fmt: skip
    read = ("data.sources.", "data.heldout.", "data.splits.")
    assert {
        name for name in left_out if name.startswith(("batch", "engine", "corpus", "data.", "model"))
        and not name.startswith(read)
    } <= {
        "batch.workers", "batch.corrupt_images", "engine.timeout_seconds",
        "engine.activation_checkpointing",
        "engine.feature_cache_gb", "corpus",
        "data.tokenizer", "data.missing_images", "model.pretrained",
        "model.text_encoder", "model.backbone",
    }  # fmt: skip


OWN_LOSS = """
import torch
from torch import nn


class Mean(nn.Module):
    def forward(self, outputs, batch):
        import own_factor

        return own_factor.FACTOR * torch.zeros(())
"""


def in_folder(folder: Path) -> Path:
    """A script that trains in another folder, of each rank its own where it has one."""
    script = folder / "trains.py"
    script.write_text(
        "import os, runpy\n"
        f"folder = {str(folder)!r} + '/of_rank_' + os.environ['RANK']\n"
        "os.chdir(folder if os.path.isdir(folder) else os.path.dirname(folder))\n"
        f"runpy.run_path({train.__file__!r}, run_name='__main__')\n"
    )
    return script


def test_own_code_is_of_the_run_with_what_it_imports_beside_it(launch, small_recipe, tmp_path):
    (tmp_path / "own_loss.py").write_text(OWN_LOSS)
    (tmp_path / "own_factor.py").write_text("FACTOR = 1\n")
    losses = json.dumps({"own": {"path": "own_loss:Mean"}})
    command = ["--recipe", str(small_recipe), "--model.losses", losses]
    script = in_folder(tmp_path)
    assert launch(script=script, arguments=command).code == 0
    about = read_run_of(tmp_path / "run/model")
    assert about["program"].keys() >= {"code.own_loss", "code.own_factor", "pillow", "tokenizers", "torchvision"}
    longer = [*command, "--max_steps", "4"]
    (tmp_path / "own_factor.py").write_text("FACTOR = 2\n")
    done = launch(script=script, arguments=command)
    assert done.code == 2, done.text
    pattern = r"program\.code\.own_factor: trained with own_factor\.py \w{12}, now own_factor\.py \w{12}\."
    assert re.search(pattern, error_of(done.text)) and "own_loss" not in error_of(done.text), done.text
    done = launch(script=script, arguments=[*longer, "--resume", "changed"])
    assert done.code == 0 and "settings changed: max_steps 3 -> 4, program.code.own_factor own_factor.py " in done.text

    (tmp_path / "of_rank_1").mkdir()
    (tmp_path / "of_rank_1/own_loss.py").write_text(OWN_LOSS)
    (tmp_path / "of_rank_1/own_factor.py").write_text("FACTOR = 3\n")
    done = launch(script=script, arguments=[*command, "--output", str(tmp_path / "two")], processes=2)
    assert done.code == 2 and "rank 1 has code.own_factor own_factor.py " in error_of(done.text), done.text
