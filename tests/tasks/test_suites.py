"""`soho suite`: the scores are those of the pipeline, in a table beside chance."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_corpus import write_tokenizer
from tiny_tasks import SMALL

from soho_fast.ask.pipeline import SohoPipeline
from soho_fast.common.checksums import sha256_of
from soho_fast.common.versions import program
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.text import load_tokenizer
from soho_fast.model import SohoConfig, SohoForPreTraining, SohoForQuestionAnswering
from soho_fast.tasks.evaluation.suites import load_image
from soho_fast.tasks.suites import main, read_suite

TEXTS = ["a red man is there", "there is a blue woman"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pre-trained model, and two suites about images of noise."""
    folder = tmp_path_factory.mktemp("suites")
    tokenizer = load_tokenizer(write_tokenizer(folder / "tokenizer"))
    processor = SohoProcessor(SohoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}), tokenizer)
    torch.manual_seed(0)
    config = SohoConfig.from_preset(**SMALL, vocab_size=len(tokenizer))
    for name, model in (("model", SohoForPreTraining(config)), ("answering", SohoForQuestionAnswering(config))):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    for number in range(3):
        patches = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((90, 60 + 9 * number)).save(folder / f"{number}.png")
    pair = {"image_0": "0", "image_1": "1", "caption_0": TEXTS[0], "caption_1": TEXTS[1]}
    (folder / "examples.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps({**pair, "image_1": "2"}) + "\n")
    box = {"bbox_x": 70, "bbox_y": 5, "bbox_w": 40, "bbox_h": 30}  # beyond the right edge
    case = {"image_path": "0.png", "true_caption": TEXTS[0], "false_caption": TEXTS[1], "relation_name": "is", **box}
    other = {**case, "bbox_x": 0, "relation_name": "there"}
    (folder / "relation.json").write_text(json.dumps([case, other, case]))
    return folder


def suite(folder, capsys, name, file, *more, code=0, model="model"):
    images = ["--images", str(folder), "--workers", "0", "--batch_size", "2"]
    assert main([name, str(folder / model), str(folder / file), *images, *more]) == code
    return capsys.readouterr()


def test_scores_are_those_of_the_pipeline(folder, capsys, tmp_path):
    results = tmp_path / "results.jsonl"
    said = suite(folder, capsys, "winoground", "examples.jsonl", "--results", str(results)).out
    assert "winoground: 2 examples" in said and "16.7 %" in said and "% of the words [UNK]" in said
    soho = SohoPipeline.from_pretrained(folder / "model")
    for line in map(json.loads, results.read_text().splitlines()):
        for name, log_odds in zip(line["images"], line["log_odds"], strict=True):
            score_of = {row["text"]: row["score"] for row in soho.rank(folder / name, TEXTS)}
            # The images' tokens are kept in half precision.
            assert torch.tensor(log_odds).sigmoid().tolist() == pytest.approx([score_of[t] for t in TEXTS], abs=2e-3)
    assert len({score for row in line["log_odds"] for score in row}) == 4


def test_results_say_of_which_model_files_and_images_they_are(folder, capsys, tmp_path):
    def about_of(at, edited=""):
        shutil.copytree(folder, at)
        if edited:
            file = at / edited
            file.write_bytes(file.read_bytes() + b"\n")
        results = at / "results.jsonl"
        found = suite(at, capsys, "winoground", "examples.jsonl", "--json", "--results", str(results)).out
        about = json.loads((at / "results.jsonl.about.json").read_text())
        assert about.pop("results") == sha256_of(results)
        assert about == json.loads(found)["about"] and about["program"] == program()
        about["files"] = list(about["files"].values())
        return about

    plain = about_of(tmp_path / "plain")
    assert plain["suite"] == "winoground" and plain["images"].startswith("3 images, ")
    assert about_of(tmp_path / "again") == plain
    for edited, changed in (("examples.jsonl", "files"), ("2.png", "images"), ("model/config.json", "model")):
        other = about_of(tmp_path / changed, edited=edited)
        assert [name for name in plain if plain[name] != other[name]] == [changed]


def test_an_image_is_cropped_to_its_box(folder, capsys):
    records = read_suite("aro_relation", folder / "relation.json", folder)
    processor = SohoImageProcessor(size={"shortest_edge": 30, "longest_edge": 40})
    cropped = np.asarray(Image.open(folder / "0.png").crop((70, 5, 110, 35)))
    loaded = load_image(processor, records[0].images[0], records[0].box)
    assert loaded.permute(1, 2, 0).numpy().tolist() == cropped.tolist()
    assert (cropped[:, 20:] == 0).all()
    found = json.loads(suite(folder, capsys, "aro_relation", "relation.json", "--json").out)
    assert found["examples"] == 3 and set(found["groups"]) == {"is", "there"} and found["chance"] == {"accuracy": 0.5}
    assert found["mean"]["accuracy"] == sum(each["accuracy"] for each in found["groups"].values()) / 2


def test_texts_of_the_same_tokens_tie(folder, capsys, tmp_path):
    ends = enumerate(["there", "there and a man", "a woman", "red", "blue", "there and there"])
    unknown = {"caption": "a zebra is", "negative_caption": "a okapi is"}
    cases = {
        str(number): {"filename": f"{number % 3}.png", **{key: f"{text} {end}" for key, text in unknown.items()}}
        for number, end in ends
    }
    (folder / "add_att.json").write_text(json.dumps(cases))
    results = tmp_path / "results.jsonl"
    found = suite(folder, capsys, "sugarcrepe", "add_att.json", "--json", "--results", str(results)).out
    assert json.loads(found)["all"] == {"accuracy": 0.0}
    for ((caption, foil),) in (json.loads(line)["log_odds"] for line in results.read_text().splitlines()):
        assert caption == foil


@pytest.mark.parametrize(
    ("more", "model", "words"),
    [
        (["--batch_size", "0"], "model", "batch_size: expected at least 1, got 0"),
        (["--results", "gone/results.jsonl"], "model", "results: gone/results.jsonl can't be written"),
        ([], "answering", "SohoForQuestionAnswering"),
        ([], "gone", "there is no such file or folder"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, more, model, words):
    said = suite(folder, capsys, "winoground", "examples.jsonl", *more, code=2, model=model).err
    assert words in said and said.startswith("error: ") and len(said.splitlines()) == 1, said


def test_a_corrupt_image_ends_it(folder, capsys, tmp_path):
    (tmp_path / "0.png").write_bytes(b"none")
    said = suite(folder, capsys, "aro_relation", "relation.json", "--images", str(tmp_path), code=2).err
    assert f"{tmp_path}/0.png: can't be decoded" in said
