"""The explorer of a model and the data sets of its recipe: pre-training and what is fine-tuned from it."""

import dataclasses
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from tiny_corpus import COLOURS, draw, write_karpathy, write_tokenizer
from tiny_tasks import SMALL, make_task

from soho_fast.common.versions import write_run_of
from soho_fast.explore.__main__ import main
from soho_fast.explore.attention import SeeingPipeline
from soho_fast.explore.bundle import Bundle
from soho_fast.model.values import ModelChanges
from soho_fast.tasks.pretraining import PretrainingTask, read_sources
from soho_fast.tasks.retrieval import RetrievalTask
from soho_fast.tasks.settings import (
    CaptionSource,
    DownstreamModel,
    PretrainingData,
    PretrainingModel,
    RetrievalData,
    RetrievalSplit,
)

NAMES = list(COLOURS)
SIZES = {"shorter_edge": 32, "longer_edge": 64}


def write_run(folder, task, step=None):
    """A run as training leaves it, but for its log: recipe.yaml and model/, of that step."""
    torch.manual_seed(0)
    model = task.build_model().eval()
    with torch.no_grad():
        for weight in model.parameters():  # So that the words matter to what is guessed.
            weight.mul_(5.0 if weight.dim() == 2 else 1.0)
        # Codes that features of flat colours are near to.
        if model.base().visual_dictionary is not None:
            model.base().visual_dictionary.codebook.mul_(0.3)
        if (task.model.config.num_levels or 1) > 1:  # They are zero before training.
            model.base().visual_dictionary.codebook.normal_(std=0.3)
    (folder / "model").mkdir(parents=True)
    if step is not None:
        write_run_of(folder / "model", step, "0123456789abcdef")
    task.export(model, model.state_dict(), folder / "model")
    values = {"task": task.name, "data": dataclasses.asdict(task.data), "model": dataclasses.asdict(task.model)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False))
    return model


def pretraining_task(folder, tokenizer, config=SMALL):
    path = str(write_karpathy(folder, {"train": NAMES[:8], "val": NAMES[8:]}))
    for number in range(0, 8, 2):  # Two shapes, so that batches are padded.
        draw(folder / f"train2014/{number:04d}.jpg", NAMES[number], (40, 72))
    data = PretrainingData(
        sources=[CaptionSource(path, [str(folder)], splits=["train"])],
        heldout=[CaptionSource(path, [str(folder)], splits=["val"])],
        tokenizer=str(tokenizer),
        **SIZES,
    )
    return PretrainingTask(data, 3, PretrainingModel(config=ModelChanges(**config)), say=lambda line: None)


@pytest.fixture(scope="module")
def run(built_run):
    """(folder of a run of pre-training, its model in evaluation mode, the task, its images by name)."""
    records = [*read_sources(built_run[2].data, "sources", str), *built_run[2].heldout_records]
    return *built_run, {record.image.name: record.image for record in records}


@pytest.fixture(scope="module")
def built(run):
    return Bundle(run[0] / "explorer")


def test_codes_are_those_that_the_model_gives(run, built):
    _, model, task, refs = run
    assert built.meta["num_images"] == built.meta["num_shown"] == 12
    assert [source["num_images"] for source in built.meta["sources"]] == [8, 4]
    processor = task.processor.image_processor
    grids = set()
    for picture in range(12):
        entry = built.image(picture)
        pixels = processor.load(refs[entry["name"]])
        with torch.no_grad():
            visual = model.encode_images(**processor.collate([pixels]))
        rows, columns = -(-pixels.shape[1] // 32), -(-pixels.shape[2] // 32)
        width = -(-pixels.shape[2] // 32)
        index = visual.index.view(-1, width)[:rows, :columns]
        assert entry["index"] == index.flatten().tolist() and (entry["rows"], entry["columns"]) == (rows, columns)
        assert entry["patches_high"] == pytest.approx(pixels.shape[1] / 32)
        assert entry["patches_wide"] == pytest.approx(pixels.shape[2] / 32)
        grids.add((rows, columns))
        assert len(entry["captions"]) == 2 and entry["source"] == int(picture >= 8)
    assert len(grids) == 2, "batches were padded"


def test_distances_are_those_of_the_features(run, built):
    _, model, task, refs = run
    codes = model.base().visual_dictionary.codebook
    seen = 0
    for code in range(built.meta["num_codes"]):
        for picture, row, column, distance, *_ in built.code(code)["nearest"]:
            pixels = task.processor.image_processor.load(refs[built.image(picture)["name"]])
            with torch.no_grad():
                batch = task.processor.image_processor.collate([pixels])
                features, mask = model.base().encode_features(**batch)
            feature = features[0].view(*mask.shape[1:], -1)[row, column]
            assert distance == pytest.approx(float((feature - codes[code]).double().norm()), rel=1e-4)
            seen += 1
    assert seen >= 12


def test_codes_of_both_levels_are_those_that_the_model_gives(tmp_path):
    config = {**SMALL, "num_levels": 2, "dictionary_init": "data"}
    task = pretraining_task(tmp_path / "data", write_tokenizer(tmp_path / "tokenizer"), config)
    model = write_run(tmp_path / "run", task)
    assert main(["build", str(tmp_path / "run")]) == 0
    bundle = Bundle(tmp_path / "run/explorer")
    pairs, processor = [], task.processor.image_processor
    for picture in map(bundle.image, range(12)):
        pixels = processor.decode((tmp_path / "data" / picture["name"]).read_bytes())
        with torch.no_grad():
            features, _ = model.base().encode_features(**processor.collate([pixels]))
        codes_LQ = model.base().visual_dictionary.codes_of(features)[0]
        assert picture["index"] == [*codes_LQ[:, 0].tolist(), *(8 + codes_LQ[:, 1]).tolist()]
        pairs += map(tuple, codes_LQ.tolist())
    found = [(code, entry["code"] - 8, entry["tokens"]) for code in range(8) for entry in bundle.code(code)["next"]]
    assert sorted(found) == sorted((*pair, count) for pair, count in Counter(pairs).items())
    assert bundle.meta["num_levels"] == 2 and len(found) > len({code for code, *_ in found}) > 1
    assert SeeingPipeline.from_pretrained(tmp_path / "run").weights() == bundle.meta["weights"], "patches name codes"


def test_nothing_tells_where_it_was_built(run, built):
    for path in (built.folder / "data").iterdir():
        assert str(run[0].parent) not in path.read_text(), path.name


def test_the_guesses_are_the_models_own(run, built):
    """Alone in its batch a picture gives the same guesses, at the same patches, as among others."""
    _, model, task, refs = run
    processor = task.processor
    for entry in map(built.image, range(12)):
        pixels = processor.image_processor.load(refs[entry["name"]])
        with torch.no_grad():
            visual = model.encode_images(**processor.image_processor.collate([pixels]))
            labels = sorted(set(visual.index[visual.valid].tolist()))
            uniform = torch.tensor([(labels.index(entry["masked"]["code"]) + 0.5) / len(labels)], dtype=torch.float64)
            text = processor.tokenizer([entry["captions"][0]], return_tensors="pt", return_token_type_ids=False)
            output = model(visual_tokens=visual, mask_uniform=uniform, **text)
        share_MK = output.mvm_logits.softmax(-1)
        for patch, share_K in zip(entry["masked"]["patches"], share_MK, strict=True):
            best = sorted(share_K.tolist(), reverse=True)[:5]
            np.testing.assert_allclose([share for _, share in patch["guesses"]], best, rtol=6e-3)
            np.testing.assert_allclose([share_K[code] for code, _ in patch["guesses"]], best, rtol=6e-3)


def test_splits_are_chosen(run, tmp_path):
    assert main(["build", str(run[0]), "--split", "heldout", "--into", str(tmp_path / "x"), "--licence", "CC0"]) == 0
    bundle = Bundle(tmp_path / "x")
    assert bundle.meta["sources"] == [{"name": "coco, held out", "num_images": 4}]
    assert [entry["licence"] for entry in bundle.meta["licences"]] == ["CC0"]
    assert bundle.image(0)["licences"] == [0]
    assert main(["build", str(run[0] / "model"), "--into", str(tmp_path / "x"), "--images", "5"]) == 0
    assert Bundle(tmp_path / "x").meta["num_images"] == 5, "a second one takes the place of the first"


def test_licences_beside_the_images_are_told_and_a_corrupt_image_is_left_out(tmp_path, capsys):
    task = pretraining_task(tmp_path / "data", write_tokenizer(tmp_path / "tokenizer"))
    write_run(tmp_path / "run", task)
    entries = [{"what": "training pictures", "credit": "Ada", "licence": "CC-BY-4.0", "images": ["train2014/*"]}]
    (tmp_path / "data/licences.json").write_text(json.dumps(entries))
    (tmp_path / "data/train2014/0003.jpg").write_bytes(b"<svg/>")
    assert main(["build", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.count("left out:") == 1 and "train2014/0003.jpg" in said
    bundle = Bundle(tmp_path / "run/explorer")
    assert bundle.meta["num_images"] == 11
    assert "train2014/0003.jpg" not in {bundle.image(n)["name"] for n in range(11)}
    told = [[bundle.meta["licences"][n]["licence"] for n in bundle.image(p)["licences"]] for p in range(11)]
    assert told == [["CC-BY-4.0"]] * 7 + [["unknown"]] * 4
    (tmp_path / "data/licences.json").write_text("{}")
    assert main(["build", str(tmp_path / "run"), "--into", str(tmp_path / "other")]) == 2


def retrieval_task(folder, tokenizer):
    path = str(write_karpathy(folder, {"train": NAMES[:6], "val": NAMES[6:]}))
    splits = {split: RetrievalSplit(path, [str(folder)], [split]) for split in ("train", "val")}
    data = RetrievalData(splits=splits, tokenizer=str(tokenizer), **SIZES)
    return RetrievalTask(data, 3, DownstreamModel(config=ModelChanges(**SMALL)), say=lambda line: None)


@pytest.mark.parametrize(
    ("name", "sources", "num_images", "text"),
    [
        ("vqa", ["train", "val", "test"], 14, "is there a green"),
        ("nlvr2", ["train", "dev"], 14, "there is a red"),
        ("snli_ve", ["train", "val"], 9, "a red"),
        ("retrieval", ["train", "val"], 12, "There is a red."),
    ],
)
def test_fine_tuned_models(tmp_path, tokenizer_dir, name, sources, num_images, text):
    """They read the dictionary's input by default: codes are looked up all the same."""
    if name == "retrieval":
        task = retrieval_task(tmp_path / "data", tokenizer_dir)
    else:
        task, _ = make_task(name, tmp_path / "data", tokenizer_dir)
    model = write_run(tmp_path / "run", task)
    assert not model.config.use_dictionary_output
    assert main(["build", str(tmp_path / "run")]) == 0
    bundle = Bundle(tmp_path / "run/explorer")
    assert [source["name"] for source in bundle.meta["sources"]] == sources
    assert bundle.meta["num_images"] == num_images and bundle.meta["has_captions"]
    assert all(bundle.image(n)["masked"] is None for n in range(num_images))
    assert text in [caption for n in range(num_images) for caption in bundle.image(n)["captions"]]
    assert all(None not in bundle.image(n)["index"] for n in range(num_images))


MISTAKES = [
    (
        "build nowhere/run",
        "recipe: nowhere/run is no folder of a run, whose recipe.yaml would say what the data are; give --recipe NAME",
    ),
    ("build run --images many", "images: invalid int value: 'many'"),
    ("build run --split validation", "split: expected some of training, heldout, got 'validation'"),
    ("build run --checkpoint best", "model: run has no best model; there is: last"),
    ("build run/model --checkpoint last", "checkpoint: run/model is no run"),
    ("build run --data.shorter_edg 3", "did you mean --data.shorter_edge?"),
    (
        "build run --data_roots.pictures elsewhere",
        "data_roots.pictures: nothing in recipe run/recipe.yaml names {pictures}; a run's recipe has whole paths: "
        "where its data have moved, give --recipe NAME",
    ),
    ("build run --into full", "into: full is not empty and holds no explorer, so it is not overwritten"),
    (
        "build alone",
        "recipe: alone is no folder of a run, whose recipe.yaml would say what the data are; give --recipe NAME",
    ),
    ("build unfinished", "model: unfinished is a run without a model yet"),
    ("build", "the following arguments are required: RUN_OR_MODEL"),
    ("bild run", "invalid choice: 'bild' (choose from "),
    ("", "arguments are required"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, a model alone, a run without a model, and a folder that holds something."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_run(folder / "run", pretraining_task(folder / "data", write_tokenizer(folder / "tokenizer")))
    shutil.copytree(folder / "run/model", folder / "alone")
    with (folder / "run/recipe.yaml").open("a") as file:
        file.write("data_roots: {pictures: data}\n")
    (folder / "unfinished").mkdir()
    shutil.copy(folder / "run/recipe.yaml", folder / "unfinished")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("all I have")
    return folder


@pytest.mark.parametrize(("command", "told"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_mistakes_are_told_in_a_line(place, monkeypatch, capsys, command, told):
    monkeypatch.chdir(place)
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and error.startswith("error: "), error
    assert not (place / "run/explorer").exists()


def test_a_model_without_a_dictionary_is_refused(tmp_path, tokenizer_dir, capsys):
    config = {**SMALL, "dictionary": "none"}
    task = pretraining_task(tmp_path / "data", tokenizer_dir, config)
    write_run(tmp_path / "run", task)
    assert main(["build", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "run/model has no visual dictionary (dictionary: none): there are no codes to show" in error
    assert not (tmp_path / "run/explorer").exists()


def test_images_that_were_moved_are_named_by_a_recipe(tmp_path, monkeypatch, capsys):
    """The run's own recipe has the old paths; one with roots takes the new ones."""
    task = pretraining_task(tmp_path / "data", write_tokenizer(tmp_path / "tokenizer"))
    write_run(tmp_path / "run", task)
    values = json.dumps(yaml.safe_load((tmp_path / "run/recipe.yaml").read_text()))
    (tmp_path / "named.yaml").write_text(values.replace(str(tmp_path / "data"), "{pictures}"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/train2014").rename("apart")
    assert main(["build", "run"]) == 2 and not (tmp_path / "run/explorer").exists()
    assert "8 of 8 images are not in" in capsys.readouterr().err
    (tmp_path / "apart").rename("data/train2014")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert main(["build", "run"]) == 2
    assert main(["build", "run", "--recipe", "named.yaml", "--data_roots.pictures", "elsewhere"]) == 0
    assert Bundle(tmp_path / "run/explorer").meta["num_images"] == 12
