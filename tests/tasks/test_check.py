"""`soho check FOLDER`: what training would meet; the exit code says whether something must be mended."""

import json
import shutil
from types import SimpleNamespace

import pytest
import yaml
from tiny_corpus import COLOURS, draw, write_tokenizer
from tiny_datasets import write_as

from soho_fast.tasks.check import Findings, _read, main
from soho_fast.tasks.recipe import RECIPES, load_recipe


@pytest.fixture
def folder(tmp_path):
    """Twelve images, three of them held out, and a tokenizer of their words."""
    lines = [
        {"file": f"{colour}.jpg", "captions": [f"there is a {colour}"], "split": "val" if number < 3 else "train"}
        for number, colour in enumerate(COLOURS)
    ]
    for line in lines:
        draw(tmp_path / line["file"], line["file"].removesuffix(".jpg"))
    write(tmp_path, lines)
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path


def write(folder, lines):
    (folder / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(folder):
    return [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]


def run(folder, capsys, code=0, recipe="own"):
    assert main([str(folder), "--recipe", recipe]) == code
    said = capsys.readouterr().out.splitlines()
    assert bool([line for line in said if line.startswith("error: ")]) == bool(code)
    return said


def starting(said, kind):
    return [line.removeprefix(kind) for line in said if line.startswith(kind)]


def test_a_good_folder_is_ready(folder, capsys):
    said = run(folder, capsys)
    assert said[:2] == ["images: 9 images, 9 captions (train 9)", "images: 3 images, 3 captions (val 3)"]
    few, coarse = starting(said, "warning: ")
    assert few.startswith("9 images to train on")
    assert coarse.startswith('3 held-out images: metrics of so few are coarse; a "split" on every line')
    assert said[-2] == "training: 40 steps of 8 images, here about 1 minute, and then the evaluation"
    assert said[-1].endswith(f"ready; next: soho train --recipe own --data_roots.images {folder}")


def test_all_that_must_be_mended_is_told_at_once(folder, capsys):
    (folder / "navy.jpg").write_bytes((folder / "navy.jpg").read_bytes()[:300])
    (folder / "olive.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    shutil.copy(folder / "red.jpg", folder / "white.jpg")  # one is held out, the other trained on
    shutil.copy(folder / "black.jpg", folder / "grey.jpg")
    (folder / "brown.jpg").unlink()
    draw(folder / "more.png")
    shutil.rmtree(folder / "tokenizer")
    said = run(folder, capsys, code=1)
    missing, corrupt, shared, words = starting(said, "error: ")
    assert f"1 of 9 images are not in {folder}; first: brown.jpg" in missing
    assert corrupt.startswith("2 images can't be read: ") and f"{folder}/navy.jpg" in corrupt
    assert "it is HEIC; convert it to JPEG, or: pip install" in corrupt or "HEIF" in corrupt
    assert shared.startswith("1 images are both trained on and held out") and "white.jpg" in shared
    assert words == f"there is no tokenizer {folder}/tokenizer; make one: soho tokenizer {folder}/images.jsonl " + str(
        folder / "tokenizer"
    )
    warned = "\n".join(starting(said, "warning: "))
    assert f"1 images of {folder} are neither trained on nor held out: more.png" in warned
    assert "1 images come several times: " in warned and f"{folder}/black.jpg = {folder}/grey.jpg" in warned
    assert said[-1] == f"{folder}: 4 to mend before training" and not starting(said, "training: ")


def test_words_that_the_tokenizer_lacks_are_named(folder, capsys):
    lines = read(folder)
    for line in lines[3:7]:
        line["captions"] = ["a sheeting", "a zebra"]
    write(folder, lines)
    said = "\n".join(starting(run(folder, capsys), "warning: "))
    assert "2 of 13 words are no token of their own, but pieces or [UNK]: sheeting (4), zebra (4)" in said
    assert "the tokenizer does not fit these texts" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [{**line, "split": "train"} for line in lines], "split 'val' holds no image"),
        (lambda lines: [{**line, "caption": "a"} for line in lines], "line 1: unknown field 'caption'"),
        (lambda lines: [{**line, "captions": ["a red"]} for line in lines], "data.sources: "),
        (lambda lines: lines[:6], "batch.global_batch_size: 8 is more than the 3 training samples"),
        (lambda lines: lines[2:], "data.heldout: one image with captions"),
        (lambda lines: [{**line, "captions": [" "]} for line in lines], "no image with a caption was found"),
    ],
    ids=["split", "field", "alike", "batch", "lone", "empty"],
)
def test_what_training_refuses_is_an_error(folder, capsys, change, words):
    write(folder, change(read(folder)))
    assert words in starting(run(folder, capsys, code=1), "error: ")[0]


def test_what_training_meets_in_its_first_steps_is_an_error(folder, capsys, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise ConnectionError("torchvision could not download")

    monkeypatch.chdir(tmp_path)  # where the run would be
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    (full,) = starting(run(folder, capsys, code=1), "error: ")
    assert full.startswith("output: 0.00 GB are free for runs/own; a run takes 0.")
    monkeypatch.setattr("soho_fast.tasks.pretraining.evaluate_pretraining", fails)
    assert starting(run(folder, capsys, code=1), "error: ") == ["torchvision could not download"]
    monkeypatch.setattr("soho_fast.model.base.backbone_state", fails)
    assert starting(run(folder, capsys, code=1), "error: ") == ["torchvision could not download"]
    assert {path.suffix or path.name for path in tmp_path.iterdir()} == {".jpg", ".jsonl", "tokenizer"}


def test_a_folder_without_lines_and_none_at_all(folder, capsys):
    (folder / "images.jsonl").unlink()
    assert "images.jsonl does not exist; write it" in starting(run(folder, capsys, code=1), "error: ")[0]
    assert main([str(folder / "nowhere")]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err
    assert main([str(folder), "--recipe", "mini"]) == 2


@pytest.fixture
def recipe_with(tmp_path_factory):
    """Writes a copy of recipe own with other fields of `data`."""

    def write(**data):
        recipe = yaml.safe_load((RECIPES / "own.yaml").read_text())
        recipe["data"] |= data
        path = tmp_path_factory.mktemp("recipe") / "mine.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return str(path), recipe["data"]

    return write


def test_a_tokenizer_of_the_hub_is_not_called_missing(folder, capsys, recipe_with):
    recipe, _ = recipe_with(tokenizer="no-such-tokenizer")
    assert starting(run(folder, capsys, code=1, recipe=recipe), "error: ")[0].startswith("tokenizer: no-such-tokenizer")


def test_a_recipe_without_sources_is_refused(folder, capsys, recipe_with):
    assert main([str(folder), "--recipe", recipe_with(sources=[])[0]]) == 2
    assert "data.sources: empty; expected at least one" in capsys.readouterr().err


def test_images_of_every_source_are_named(folder, capsys, recipe_with):
    draw(folder / "more.png", "red")
    draw(folder / "unnamed.png", "blue")
    (folder / "coco.json").write_text(json.dumps({
        "images": [{"id": 9, "file_name": "more.png"}], "annotations": [{"image_id": 9, "caption": "there is a red"}],
    }))  # fmt: skip
    first = recipe_with()[1]["sources"][0]
    more = {"annotations": "{images}/coco.json", "images": ["{images}"], "format": "coco_captions"}
    for sources in ([first, more], [more, first]):
        said = "\n".join(run(folder, capsys, recipe=recipe_with(sources=sources)[0]))
        assert f"1 images of {folder} are neither trained on nor held out: unnamed.png" in said


def test_a_source_of_any_format_is_read_as_training_reads_it(folder, capsys, recipe_with, tmp_path_factory):
    first, held_out = recipe_with()[1]["sources"][0], recipe_with()[1]["heldout"]
    genome = {**{name: first[name] for name in ("annotations", "images")}, "format": "visual_genome"}
    said = run(folder, capsys, code=1, recipe=recipe_with(sources=[genome], heldout=held_out)[0])
    assert "image_data.json" in starting(said, "error: ")[0]
    rows = [
        ((folder / line["file"]).read_bytes(), line["captions"]) for line in read(folder) if line["split"] == "train"
    ]
    path = write_as(tmp_path_factory.mktemp("set"), "saved", rows)
    source = {"annotations": path, "format": "dataset"}
    recipe = load_recipe(["--recipe", recipe_with(sources=[source])[0], "--data_roots.images", str(folder)])
    assert len(_read(Findings(print), recipe, "sources")) == 9
    assert capsys.readouterr().out.endswith("saved: 9 images, 9 captions\n")
    shutil.rmtree(path)
    said = run(folder, capsys, code=1, recipe=recipe_with(sources=[source], heldout=held_out)[0])
    assert "saved: holds no data set; expected " in starting(said, "error: ")[0]
