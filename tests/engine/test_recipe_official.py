"""Recipe `official`: what it sets; on a few pictures, runs that go on after a stop, alone and on two processes."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from run_files import records
from safetensors.torch import load_file
from tiny_corpus import COLOURS, draw, write_karpathy, write_tokenizer

from soho_fast import train
from soho_fast.tasks.recipe import RECIPES, read_recipe

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "num_codes": 16,
}  # fmt: skip


def _flat(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}".lstrip(".")).items()}
    return {name: value}


def test_it_departs_from_paper_r18_in_what_the_release_does_otherwise():
    official, paper = (_flat(dataclasses.asdict(read_recipe(["--recipe", name]))) for name in ("official", "paper_r18"))
    apart = {name: official.get(name) for name in {**official, **paper} if official.get(name) != paper.get(name)}
    assert apart == {
        "data.antialias": False, "data.max_text_length": 16, "data.epoch": "caption_groups",
        "data.num_positive": 4, "data.num_negative": 0, "data.replace_probability": 0.5,
        "data.masking.random_special": True, "data.mvm_probability": 0.015,
        "model.preset": "official", "model.config.backbone": None, "model.config.num_hidden_layers": None,
        "model.config.dictionary_init": None,
        "optim.rule": "bert_adamw", "optim.backbone_weight_decay": 1e-4, "optim.frozen_backbone_epochs": (0.0, 0.0),
        "schedule.warmup_steps": 500,
        "batch.global_batch_size": 256, "batch.gradient_accumulation_steps": 2,
        "batch.group_by_aspect_ratio": "orientation",
    }  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Recipe official with a small model, on ten wide and eight high pictures with one to six captions each."""
    folder = tmp_path_factory.mktemp("official")
    names = list(COLOURS)
    counts = {name: 1 + number % 6 for number, name in enumerate(names)}

    def sentences(colour):
        return [f"there is a {colour}{' and a man' * number}" for number in range(counts[colour])]

    path = write_karpathy(folder, {"train": names[:10], "val": names[10:]}, sentences=sentences, size=(200, 130))
    for number in range(0, 10, 2):
        draw(folder / "train2014" / f"{number:04d}.jpg", names[number], (120, 190))
    tokenizer = write_tokenizer(folder / "tokenizer")
    content = yaml.safe_load((RECIPES / "official.yaml").read_text())
    source = {"annotations": str(path), "images": [str(folder)], "format": "karpathy"}
    content["data"] |= {
        "sources": [source | {"splits": ["train"]}], "heldout": [source | {"splits": ["val"]}],
        "tokenizer": str(tokenizer), "shorter_edge": 128, "longer_edge": 200, "mvm_probability": 0.5,
    }  # fmt: skip
    content["model"] = {"preset": "official", "config": SMALL}
    content["schedule"] |= {"warmup_steps": 4, "step_epochs": [2, 4]}
    content["batch"] |= {"global_batch_size": 8, "workers": 1}
    content |= {"max_steps": 6, "data_roots": {}}
    content["checkpoint"] = {"every_steps": 3, "every_minutes": 0, "keep": 0}
    content["log"], content["evaluation"] = {"every_steps": 1}, {"at_end": False}
    content["engine"]["zero_stage"] = 0
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _half(run: Path) -> Path:
    """A copy of a finished run as it was at its first checkpoint."""
    half = run.with_name(f"{run.name}-half")
    shutil.copytree(run, half)
    shutil.rmtree(half / "checkpoints" / "step-00000006")
    shutil.rmtree(half / "model")
    (half / "metrics.json").unlink()
    return half


def _records(run: Path) -> list[dict]:
    keys = ("step", "loss", "mlm_loss", "mvm_loss", "itm_loss", "perplexity", "active_codes", "lr", "grad_norm")
    return [{key: record.get(key) for key in keys} for record in records({"output": run})]


def _check_same(run: Path, half: Path) -> None:
    told = _records(run)
    assert [record["step"] for record in told] == [1, 2, 3, 4, 5, 6] and _records(half) == told
    through, resumed = (load_file(folder / "model" / "model.safetensors") for folder in (run, half))
    assert through.keys() == resumed.keys()
    assert [name for name in through if not torch.equal(through[name], resumed[name])] == []
    rates = [record["lr"]["rest"] / 1e-4 for record in told]
    assert rates[:4] == pytest.approx([1 / 3 + 2 / 3 * step / 4 for step in range(4)])
    assert any(record["mvm_loss"] > 0 for record in told)


def test_two_processes_go_on_where_they_were_bit_for_bit(recipe, launch, tmp_path):
    run = tmp_path / "run"
    arguments = ["--recipe", str(recipe), "--batch.gradient_accumulation_steps", "2", "--output"]
    done = launch(script=Path(train.__file__), arguments=[*arguments, str(run)], processes=2)
    assert done.code == 0, done.text
    half = _half(run)
    done = launch(script=Path(train.__file__), arguments=[*arguments, str(half)], processes=2)
    assert done.code == 0 and "step 3 of 6" in done.text, done.text
    _check_same(run, half)
