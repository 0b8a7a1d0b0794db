"""Fine-tuning and evaluating by command: the best and the last model, one process and two, killed and gone on."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from soho_fast import evaluate, train
from soho_fast.ask import __main__ as ask
from soho_fast.common.processes import Processes
from soho_fast.data.mini import build_corpus
from soho_fast.engine import distributed
from soho_fast.tasks.recipe import RECIPES, Recipe, find_recipe, read_recipe, with_data_roots

SMALL = {
    "corpus": "{corpus}",
    "model": {
        "config": {
            "backbone": "resnet10", "visual_pool": 1, "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 64, "num_codes": 16,
        }
    },
    "batch": {"global_batch_size": 8, "workers": 0},
    "evaluation": {"every_epochs": 0.5},
    "log": {"every_steps": 1},
    "max_steps": 4,
}  # fmt: skip

# Kills the process when the second part of its share is on disk.
KILLED = """
import os, signal, sys
from soho_fast import evaluate
from soho_fast.tasks.evaluation.sharing import PartialResults
save, saved = PartialResults.save, []
def save_and_die(self, number, result):
    save(self, number, result)
    saved.append(number)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
PartialResults.save = save_and_die
sys.exit(evaluate.main(sys.argv[1:]))
"""


@pytest.fixture
def small_vqa(tmp_path) -> Path:
    """Recipe mini_vqa, made small, all in this test's folder."""
    recipe = yaml.safe_load((RECIPES / "mini_vqa.yaml").read_text())
    corpus = build_corpus(tmp_path / "corpus", num_train=40, num_heldout=12)
    small = {"shorter_edge": 64, "longer_edge": 64, "min_answer_count": 2}
    recipe |= {**SMALL, "data": {**recipe["data"], **small}, "data_roots": {"corpus": str(corpus)}}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output": str(tmp_path / "run")}, sort_keys=False))
    return path


def test_fine_tune_then_evaluate_however_started(launch, small_vqa, tmp_path, capsys):
    done = launch(script=Path(train.__file__), arguments=["--recipe", str(small_vqa)], processes=2, by_launcher=True)
    assert done.code == 0, done.text
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["metrics"]["vqa_score"] for line in lines if line["kind"] == "evaluation"}
    best = max(scores, key=scores.get)
    assert metrics["best"] == {"step": best, "vqa_score": scores[best]}
    assert "majority" in done.text and f"best/ (step {best})" in done.text, done.text
    assert f"soho evaluate --run {run} --split test" in done.text

    script = Path(evaluate.__file__)
    arguments = ["--run", str(run), "--into", str(tmp_path / "whole")]
    done = launch(script=script, arguments=arguments)
    assert done.code == 0 and "split val, checkpoint best" in done.text, done.text
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert (whole["checkpoint"], whole["step"], whole["identity"]) == ("best", best, metrics["identity"])
    assert "gone on to" not in done.text, "the best of a run that has ended, whichever step it is of"
    assert (whole["images_trained_on"], whole["images_missing"], metrics["images_missing"]) == (0, {}, {})
    assert whole["metrics"]["vqa_score"] == pytest.approx(scores[best], abs=1e-9)
    assert not (tmp_path / "whole" / "partial").exists()

    killer = tmp_path / "killer.py"
    killer.write_text(KILLED)
    arguments = ["--run", str(run), "--into", str(tmp_path / "killed")]
    assert launch(script=killer, arguments=arguments).code == -9
    kept = tmp_path / "killed" / "partial"
    assert sorted(path.name for path in kept.glob("part-*")) == ["part-000000.pt", "part-000001.pt"]
    done = launch(script=script, arguments=arguments, processes=2)
    assert done.code == 0 and "2 process(es)" in done.text, done.text
    predictions = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("whole", "killed")]
    assert predictions[0] == predictions[1] and len(predictions[0].splitlines()) == 6 * 4

    done = launch(script=script, arguments=["--run", str(run), "--prepare", "float32"])
    assert done.code == 0 and "prepared in float32" in done.text, done.text
    prepared = run / "evaluation" / "val-best-float32"  # beside those of the model as it is, not in their place
    assert json.loads((prepared / "metrics.json").read_text())["prepared"] == "float32" and whole["prepared"] is None
    assert (prepared / "predictions.jsonl").read_text().count("\n") == predictions[0].count("\n")

    done = launch(script=script, arguments=["--run", str(run), "--split", "test", "--checkpoint", "last"])
    assert done.code == 0 and "no published answers" in done.text, done.text
    assert json.loads((run / "evaluation/test-last/metrics.json").read_text())["step"] == metrics["step"]
    submission = json.loads((run / "evaluation/test-last/submission.json").read_text())
    assert len(submission) == 6 * 4 and set(submission[0]) == {"question_id", "answer"}

    done = launch(script=script, arguments=["--run", str(run), "--split", "train"])
    count = json.loads((run / "evaluation/train-best/metrics.json").read_text())["images_trained_on"]
    assert done.code == 0 and count >= 30, done.text
    assert f"{count} images of train are trained on too; its metrics say little" in done.text, done.text

    done = launch(script=script, arguments=["--run", str(run), "--split", "tset"])
    assert done.code == 2 and "Traceback" not in done.text, done.text
    errors = [line for line in done.text.splitlines() if line.startswith("error: ")]
    assert errors == ["error: split: expected one of train, val, test-dev, test, got 'tset'; did you mean test?"]

    weights = run / "best" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert ask.main(["answer", str(run), str(run / "metrics.json"), "what is this?"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {run / 'best'}: model.safetensors has changed since the model was written")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "{tmp}/run"], "run is a run without a model yet: best/ and model/ come at its end"),
        (["--recipe", "mini_vqa"], "checkpoint: without --run, expected the folder or hub name of a model"),
        (["--run", "{tmp}/run", "--data.sharter_edge", "3"], "data.sharter_edge"),
        (
            ["--recipe", "mini", "--corpus", "", "--checkpoint", "{tmp}"],
            "checkpoint: no model could be loaded from",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    # A process group of this process would stay for the tests that follow.
    monkeypatch.setattr(distributed, "start_processes", lambda **_: Processes())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("task: vqa\n")
    assert evaluate.main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0], lines


def test_a_full_disk_is_one_line(capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "predictions.jsonl")

    class Task:
        default_split = "val"
        name = "vqa"

        def load_model(self, folder):
            return torch.nn.Linear(1, 1)

        def speed_up(self, model, device):
            assert device.type == "cpu"

        def evaluate_split(self, *_, **__):
            return SimpleNamespace(write=full, metrics={})

        def num_trained_on(self, split, data, seed):
            # As it was trained, not as it is evaluated.
            assert (data.max_text_length, data.texts_per_image, seed) == (17, 1, 7)
            return 0

        def num_missing(self):
            return {}

    monkeypatch.setattr(Recipe, "make_task", lambda self, say: Task())
    monkeypatch.setattr(distributed, "start_processes", lambda **_: Processes())
    (tmp_path / "best").mkdir()
    (tmp_path / "recipe.yaml").write_text("task: vqa\nseed: 7\ndata:\n  max_text_length: 17\n")
    assert evaluate.main(["--run", str(tmp_path), "--data.texts_per_image", "2", "--seed", "8"]) == 2
    said = "predictions.jsonl: No space left on device; with room again the same command goes on where this one was"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_the_papers_values():
    """Section 4.2 and the appendix: 18 epochs with a tenth of the rate at 12 and 16; SNLI-VE 6 epochs, at 4."""
    for name, epochs, steps, batch in (
        ("vqa", 18, [12, 16], 256), ("nlvr2", 18, [12, 16], 128), ("snli_ve", 6, [4], 128),
    ):  # fmt: skip
        recipe = read_recipe(["--recipe", name])
        assert (recipe.task, recipe.epochs, recipe.batch.global_batch_size) == (name, epochs, batch)
        assert (recipe.schedule.decay, recipe.schedule.step_epochs, recipe.schedule.step_factor) == ("step", steps, 0.1)
        optim = recipe.optim
        assert (optim.lr, optim.weight_decay, optim.backbone_rule, optim.backbone_lr) == (1e-4, 1e-2, "sgd", 1e-2)
        assert (recipe.data.shorter_edge, recipe.data.longer_edge, recipe.data.texts_per_image) == (600, 1000, 1)
        assert not recipe.model.use_dictionary_output
        assert all(f"data_roots.{root}" in text_of(name) for root in recipe.data_roots)
    vqa = read_recipe(["--recipe", "vqa"])
    assert (vqa.data.train, vqa.data.min_answer_count) == (["train", "val"], 9)


def text_of(name: str) -> str:
    """A recipe's text, whose first lines say how to start it."""
    return find_recipe(name).read_text()


def test_a_package_is_a_data_root(tmp_path, monkeypatch):
    recipe = read_recipe(["--recipe", "easy_vqa", "--data_roots.easy_vqa", "package:soho_fast/data"])
    assert Path(with_data_roots(recipe).data.splits["test"].questions) == RECIPES.parent / "data/test/questions.json"
    recipe = read_recipe(["--recipe", "easy_vqa", "--data_roots.easy_vqa", "package:not_there/data"])
    with pytest.raises(
        ValueError, match=r"data_roots\.easy_vqa: there is no Python package not_there; install it \(pip inst"
    ):
        with_data_roots(recipe)
