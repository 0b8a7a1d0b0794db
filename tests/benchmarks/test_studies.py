"""Studies: files are read strictly, missing runs are made, rows are kept, and statistics are those known by hand."""

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.studies.__main__ import main
from benchmarks.studies.comparing import compare, difference_of, holm, logit, sign_flip_p
from benchmarks.studies.report import report
from benchmarks.studies.running import Runner
from benchmarks.studies.study import read_rows, read_study, runs_of
from soho_fast.common.errors import UserError
from soho_fast.data.mini import build_corpus

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
COMMAND = [sys.executable, "-m", "benchmarks.studies"]
DATA = ("coco", "visual_genome", "flickr30k", "vqa", "nlvr2", "snli_ve")

# Conditions that differ in a learning rate; recipes without a corpus to build.
SMALL = {
    "title": "Small",
    "seeds": [0, 1],
    "overrides": {"corpus": "", "data_roots.corpus": "nowhere"},
    "conditions": {"one": {"about": "as it is"}, "other": {"overrides": {"optim.lr": 0.5}}},
    "stages": {
        "first": {"recipe": "mini", "metrics": {"score": "score", "loss": "loss (nats)"}},
        "second": {
            "recipe": "mini_vqa",
            "after": "first",
            "splits": {"val": {}},
            "metrics": {"val.score": "score, second"},
        },
    },
    "composite": ["first/score", "second/val.score"],
    "comparisons": [["other", "one"]],
}

# Stands before the command, as a launcher does, and leaves what a training or an evaluation would.
LAUNCHER = """
import json, os, pathlib, signal, sys, time
program, arguments = pathlib.Path(sys.argv[1]).stem, dict(zip(sys.argv[2::2], sys.argv[3::2]))
into = pathlib.Path(arguments["--output" if program == "train" else "--into"])
into.mkdir(parents=True, exist_ok=True)
notes = pathlib.Path(os.environ["NOTES"])
with open(notes / "commands", "a") as file:
    file.write(json.dumps([program, sys.argv[2:]]) + "\\n")
how = os.environ.get("HOW", "")
if how == "fails" and arguments.get("--optim.lr") == "0.5":
    print("error: no such luck")
    sys.exit(2)
if how == "is killed" and not (notes / "killed").exists():
    (notes / "killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)
if how == "waits" and not (notes / "stopped").exists():
    signal.signal(signal.SIGTERM, lambda *_: ((notes / "stopped").touch(), sys.exit(143)))
    (notes / "waiting").touch()
    time.sleep(60)
if program == "train":
    (into / "checkpoints").mkdir()
    (into / "model").mkdir()
about = {"step": 3, "training_seconds": 1.0, "images_per_second": 2.0, "precision": "float32", "identity": "i"}
about |= {"program": {"commit": "c0ffee"}, "data": {}, "metrics": {"score": 0.5 + int(arguments.get("--seed", 0)) / 10}}
(into / "metrics.json").write_text(json.dumps(about))
"""


@pytest.fixture()
def small(tmp_path, monkeypatch):
    """`small(...)`: the arguments of a command for `SMALL`, whose runs only leave their results."""
    study, launcher = tmp_path / "small.yaml", tmp_path / "launcher.py"
    study.write_text(yaml.safe_dump(SMALL, sort_keys=False))
    launcher.write_text(LAUNCHER)
    monkeypatch.setenv("NOTES", str(tmp_path))
    into = ["--into", str(tmp_path / "runs")]
    return lambda *more: [str(study), *into, "--launcher", f"{sys.executable} {launcher}", *more]


def commands(folder: Path) -> list[tuple[str, list[str]]]:
    return [json.loads(line) for line in (folder / "commands").read_text().splitlines()]


def rows_in(folder: Path) -> list[dict]:
    return read_rows([folder / "runs/results.jsonl"])


def test_every_run_has_its_row_and_is_made_once(small, tmp_path, capsys):
    assert main(small("--list")) == 0
    assert "8 of 8 runs are left" in capsys.readouterr().out
    assert main(small("--optim.beta2=0.9")) == 0
    assert "8 of 8 rows are there, 0 of them of other settings" in capsys.readouterr().out
    rows = rows_in(tmp_path)
    assert {(row["condition"], row["seed"], row["stage"]) for row in rows} == {
        *product(("one", "other"), (0, 1), ("first", "second"))
    }
    assert {row["commit"] for row in rows} == {"c0ffee"} and {row["study"] for row in rows} == {"small"}
    assert {row["metrics"]["val.score"] for row in rows if row["stage"] == "second"} == {0.5}
    made = commands(tmp_path)
    assert Counter(program for program, _ in made) == {"train": 8, "evaluate": 4}
    (tuned,) = (words for _, words in made if words[:2] == ["--recipe", "mini_vqa"] and "0.5" in words and "1" in words)
    given = dict(zip(tuned[::2], tuned[1::2], strict=True))
    model = Path(given["--model.pretrained"])
    assert model.is_dir() and "other-seed-1-first" in str(model) and not (model.parent / "checkpoints").exists()
    assert given["--optim.beta2"] == "0.9" and given["--seed"] == "1" and given["--optim.lr"] == "0.5"
    assert main(small("--optim.beta2", "0.9")) == 0
    # Where things lie, and how a run is carried out, does not make other runs.
    assert main(small("--optim.beta2", "0.9", "--data_roots.corpus", "elsewhere")) == 0
    assert len(commands(tmp_path)) == len(made)
    # Rows of elsewhere count; other settings do not.
    results = ["--results", str(tmp_path / "runs/results.jsonl"), "--into", str(tmp_path / "new")]
    capsys.readouterr()
    assert main(small("--optim.beta2", "0.9", *results, "--list")) == 0
    assert main(small("--optim.beta2", "0.8", *results, "--list", "--seeds", "1", "--conditions", "one")) == 0
    said = capsys.readouterr().out
    assert "0 of 8 runs are left" in said and "2 of 2 runs are left" in said


def test_a_run_that_fails_is_told_and_the_others_go_on(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOW", "fails")
    assert main(small()) == 1
    said = capsys.readouterr().out
    assert "other, seed 0, first: failed: soho train ended with code 2: error: no such luck" in said
    assert "other, seed 0, second: left out, first is not done" in said
    assert {row["condition"] for row in rows_in(tmp_path)} == {"one"} and "4 of 8 rows are there" in said
    monkeypatch.delenv("HOW")
    assert main(small()) == 0
    assert len(rows_in(tmp_path)) == 8


def test_ctrl_c_stops_the_run_and_the_same_command_goes_on(small, tmp_path, monkeypatch):
    monkeypatch.setenv("HOW", "waits")
    with subprocess.Popen([*COMMAND, *small("--seeds", "0")], cwd=ROOT, stderr=subprocess.PIPE, text=True) as study:
        while not (tmp_path / "waiting").exists():
            assert study.poll() is None, study.stderr.read()
            time.sleep(0.05)
        study.send_signal(signal.SIGINT)
        said = study.communicate(timeout=60)[1]
    assert study.returncode == 130 and said == "\nstopped; the same command goes on from here\n"
    assert (tmp_path / "stopped").exists() and len(commands(tmp_path)) == 1
    assert main(small("--seeds", "0")) == 0
    assert len(rows_in(tmp_path)) == 4


def test_two_commands_on_one_folder_divide_the_runs(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOW", "waits")
    with subprocess.Popen([*COMMAND, *small("--seeds", "0")], cwd=ROOT) as other:
        while not (tmp_path / "waiting").exists():
            time.sleep(0.05)
        monkeypatch.delenv("HOW")
        assert main(small("--seeds", "0")) == 0
        said = capsys.readouterr().out
        other.send_signal(signal.SIGTERM)
        assert other.wait(60) == 143
    assert "one, seed 0, first: left out, another command is at it" in said
    assert "one, seed 0, second: left out, first is not done" in said
    assert {row["condition"] for row in rows_in(tmp_path)} == {"other"}


def changed(**changes):
    return {**SMALL, **changes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(contions={}), "there is no field contions; did you mean conditions?"),
        (changed(seeds=["many"]), "seeds"),
        (changed(conditions={"one": {"launcher": "x"}}), "there is no field conditions.one.launcher"),
        (changed(comparisons=[["one", "none"]]), "comparisons: expected one of one, other, got 'none'"),
        (changed(composite=["first/loss"]), "expected one of first/score, second/val.score, got 'first/loss'"),
        (
            changed(stages={"first": {"recipe": "mini", "after": "second"}}),
            "stages.first.after: expected one of (none), got 'second'",
        ),
        (changed(stages={"first": {"recipe": "minni"}}, composite=[]), "there is no recipe 'minni'"),
        (changed(overrides={"optim.lrr": 1}), "one, seed 1, first: "),
        (
            changed(stages={"first": {"recipe": "mini_vqa", "splits": {"vall": {}}}}, composite=[]),
            "splits: expected one of train, val",
        ),
    ],
)
def test_mistakes_are_refused_before_the_first_run(content, words, tmp_path, capsys):
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(content))
    assert main([str(tmp_path / "made.yaml"), "--into", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said
    assert not list(tmp_path.glob("runs/*"))


def test_table_7_has_the_papers_runs_and_each_recipe_its_own_data(tmp_path):
    name, study = read_study("table7")
    runs = runs_of(study, {f"data_roots.{root}": f"/data/{root}" for root in DATA})
    assert name == "table7" and len(runs) == 5 * 8 * 5 == len({run.digest for run in runs})
    Runner(name, [run for run in runs if run.condition == "k1024"], tmp_path).check()
    roots = {run.stage: {word for word in run.fields if word.startswith("--data_roots.")} for run in runs}
    assert roots["nlvr2"] == {"--data_roots.nlvr2"} and roots["vqa"] == {"--data_roots.vqa", "--data_roots.coco"}
    assert {run.start.stage for run in runs if run.start} == {"pretraining"}
    assert all((run.condition, run.seed) == (run.start.condition, run.start.seed) for run in runs if run.start)
    assert len(study.composite) == 5 and ("k2048", "none") in study.comparisons
    codes = {run.condition: run.fields for run in runs}
    assert "--model.config.num_codes" in codes["k1024"] and "--model.config.num_codes" not in codes["k2048"]


def test_rows_that_are_kept_parse_and_give_the_pages_figures():
    """Of all studies, also of those whose file is not here any more."""
    paths = [*RESULTS.glob("studies-*.jsonl"), RESULTS / "longer-rows.jsonl"]
    counts = {path.stem: len(read_rows([path])) for path in paths}
    assert counts["studies-dictionary"] == 274 and counts["longer-rows"] == 18 and len(counts) == 9
    _, study = read_study("demo")
    rows = read_rows([RESULTS / "studies-demo.jsonl"])
    declared, _ = compare(study, {(row["condition"], row["seed"], row["stage"]): row for row in rows})
    gate, alone, targets = declared
    page = " ".join((ROOT / "docs/studies.md").read_text().split())
    assert (
        f"is {-gate.mean:.3f} logits lower (p = {gate.p:.2f}), with codes alone {-alone.mean:.2f} (p = {alone.p:.2f}, "
        f"adjusted {alone.adjusted:.2f}), with codes as targets alone {targets.mean:.3f} higher (p = {targets.p:.2f})"
    ) in page
    assert {each.verdict for each in declared} == {"undecided"}
    text = report("demo", study, runs_of(study, {}), rows)
    assert "24 of 24 rows are there, 24 of them of other settings" in text and "12 rows are of commit 5784669d." in text


def test_p_is_the_share_of_signs_that_give_as_much():
    values = np.random.default_rng(0).normal(0.8, 1.0, 7)
    means = [np.mean(values * signs) for signs in product((1, -1), repeat=7)]
    assert sign_flip_p(values) == np.mean([abs(mean) >= values.mean() - 1e-12 for mean in means])
    around = [np.mean((values - 0.5) * signs) for signs in product((1, -1), repeat=7)]
    assert sign_flip_p(values, 0.5, "less") == np.mean([mean <= values.mean() - 0.5 + 1e-12 for mean in around])
    # The least that six and twelve seeds can give: the observed way and its opposite.
    assert sign_flip_p(np.arange(1.0, 7.0)) == 2 / 64 and sign_flip_p(np.arange(1.0, 13.0)) == 2 / 4096
    assert sign_flip_p([1.0, -1.0, 2.0, -2.0]) == 1.0


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([0.02]) == [0.02] and holm([]) == []


def difference(values, margin=0.0):
    return difference_of("score", ("a", "b"), dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0), margin)


def test_the_interval_is_students():
    found = difference([1.0, 2.0, 3.0, 4.0, 5.0])
    # t of four degrees of freedom at 97.5 %: 2.776; the deviation is the root of 2.5.
    half = 2.776 * math.sqrt(2.5 / 5)
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3 - half, 3 + half), abs=1e-3)
    assert found.p == 2 / 32 and found.verdict == "too few seeds"


def test_equivalence_needs_differences_well_within_the_margin():
    noise = np.random.default_rng(1).normal(0, 0.02, 12)
    within, beyond, none = difference(noise, 0.05), difference(noise + 0.05, 0.05), difference(noise * 20, 0.05)
    for each in (within, beyond, none):
        each.adjusted = each.p
    assert within.verdict == "equivalent" and within.p_equivalent == pytest.approx(1 / 4096)
    assert beyond.verdict == "higher" and beyond.p_equivalent > 0.05
    assert none.verdict == "undecided" and none.p_equivalent > 0.05
    small = difference(np.abs(noise) / 10 + 0.001, 0.05)
    small.adjusted = small.p
    assert small.verdict == "higher, equivalent"
    assert math.isnan(difference(noise).p_equivalent)


def test_the_composite_is_the_mean_logit_of_its_shares(tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    _, study = read_study(str(tmp_path / "small.yaml"))
    shares = {"one": (0.5, 0.8), "other": (0.6, 1.0)}
    cells = {}
    for condition, seed in product(shares, (0, 1)):
        for stage, metric, share in zip(("first", "second"), ("score", "val.score"), shares[condition], strict=True):
            cells[condition, seed, stage] = {"metrics": {metric: share}}
    (declared,), explored = compare(study, cells)
    before = (math.log(0.5 / 0.5) + math.log(0.8 / 0.2)) / 2
    assert declared.base == pytest.approx(before)
    # A share of 1 counts as 0.999.
    assert declared.mean == pytest.approx((math.log(0.6 / 0.4) + math.log(0.999 / 0.001)) / 2 - before)
    assert logit(0.0) == pytest.approx(-logit(1.0)) and logit(0.3) == pytest.approx(math.log(3 / 7))
    assert [each.label for each in explored] == ["score", "score, second"], "no row has the loss"
    del cells["other", 1, "second"]
    (declared,), explored = compare(study, cells)
    assert list(declared.by_seed) == [0] and [len(each.by_seed) for each in explored] == [2, 1]


def test_other_data_within_a_seed_are_told():
    _, study = read_study("demo")
    runs = [run for run in runs_of(study, {}) if run.condition in ("none", "gate") and run.seed < 2]
    rows = [
        {"study": "demo", "condition": run.condition, "seed": run.seed, "stage": run.stage, "digest": run.digest}
        | {"commit": "c0ffee", "metrics": {"mlm_content": 0.5}, "data": {"training data": f"seed {run.seed}"}}
        for run in runs
    ]
    words = "Rows of the same stage and seed are of different data"
    assert words not in report("demo", study, runs, rows)
    rows[-1]["data"] = {"training data": "another"}
    assert words in report("demo", study, runs, rows)


TINY = {
    "title": "Tiny",
    "overrides": {
        "data.shorter_edge": 48, "data.longer_edge": 48, "model.backbone": None, "model.config.backbone": "resnet10",
        "model.config.hidden_size": 32, "model.config.num_hidden_layers": 1, "model.config.num_attention_heads": 2,
        "model.config.intermediate_size": 64, "model.config.num_codes": 8, "batch.workers": 0,
        "batch.global_batch_size": 4,
    },
    "conditions": {"codes": {"about": "eight codes"}},
    "stages": {
        "pretraining": {
            "recipe": "mini",
            "overrides": {"max_steps": 8, "model.bag_of_words_epochs": 0, "optim.frozen_backbone_epochs": [0, 0.5]},
            "metrics": {"mlm_all": "masked words"},
        },
        "vqa": {
            "recipe": "mini_vqa",
            "after": "pretraining",
            "overrides": {"data.min_answer_count": 2, "max_steps": 4, "evaluation.at_end": False},
            "splits": {"val": {}},
            "metrics": {"val.vqa_score": "VQA score"},
        },
    },
}  # fmt: skip


def test_real_runs(tmp_path, capsys):
    """Trained, fine-tuned and evaluated by the commands themselves."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    corpus = build_corpus(tmp_path / "corpus", num_train=40, num_heldout=24, progress=False)
    into = ["--into", str(tmp_path / "runs"), "--data_roots.corpus", str(corpus)]
    assert main([str(tmp_path / "tiny.yaml"), *into]) == 0, capsys.readouterr().out
    one, tuned = rows_in(tmp_path)
    assert (one["step"], tuned["step"]) == (8, 4) and 0 <= one["metrics"]["mlm_all"] <= 1
    assert tuned["metrics"]["val.num_examples"] > 0 and one["commit"] and one["identity"] and one["data"]


def test_what_was_killed_before_its_row_was_written_is_not_trained_again(small, tmp_path):
    assert main(small("--conditions", "one", "--seeds", "0")) == 0
    before, made = rows_in(tmp_path), commands(tmp_path)
    for path in (tmp_path / "runs").glob("*/row.json"):
        path.unlink()
    assert main(small("--conditions", "one", "--seeds", "0")) == 0
    assert rows_in(tmp_path) == before and commands(tmp_path) == made


@pytest.mark.parametrize("text", ["{", "[]", '{"study": "s"}', "3"])
def test_what_is_no_row_is_refused_with_its_file(text, tmp_path):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"rows\.jsonl: expected a study's row on each line"):
        read_rows([tmp_path / "rows.jsonl"])
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        read_rows([tmp_path / "missing.jsonl"])
