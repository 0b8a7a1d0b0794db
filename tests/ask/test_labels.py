"""`ask label`: labels in templates, scored by the ITM head."""

import json

import pytest
import torch
from tiny_corpus import draw

from soho_fast.ask.__main__ import main
from soho_fast.ask.pipeline import Prompts

LABELS = ["red", "blue", "man"]
TEMPLATES = ["there is a {}", "the {} is a {}"]


def test_prompts_follow_open_clips_rule():
    # texts = [template.format(c) for c in batch_classnames for template in templates]
    prompts = Prompts(LABELS, [TEMPLATES[0], "{}."])
    assert prompts == [template.format(label) for label in LABELS for template in (TEMPLATES[0], "{}.")]
    assert Prompts(["{0.x}", "b"], ["{}"]) == ["{0.x}", "b"]  # a label is no format


@pytest.mark.parametrize(
    ("labels", "templates", "words"),
    [
        (["red"], ["{}"], "labels: expected at least 2, got 1"),
        ("red,blue", ["{}"], "labels: expected a list of texts, got 'red,blue'"),
        (["red", " "], ["{}"], "labels: expected a list of texts"),
        (["red", "red"], ["{}"], "labels: 'red' comes twice"),
        (LABELS, [], "templates: expected at least 1, got 0"),
        (LABELS, ["{}", "a photo"], "templates: 'a photo' has no {}, the place of the label"),
    ],
)
def test_labels_and_templates_that_can_not_be_used(labels, templates, words):
    with pytest.raises(ValueError, match=words.replace("{", r"\{")):
        Prompts(labels, templates)


@pytest.mark.parametrize("kind", ["rank", "pretrained"])
def test_log_odds_are_averaged_over_the_templates(soho_of, images, kind):
    soho = soho_of(kind)
    filled = [template.replace("{}", label) for label in LABELS for template in TEMPLATES]
    score_of = {row["text"]: row["score"] for row in soho.rank(images[0], filled)}
    log_odds_LT = torch.tensor([score_of[text] for text in filled], dtype=torch.float64).logit().view(3, 2)
    expected = dict(zip(LABELS, log_odds_LT.mean(1).softmax(0).tolist(), strict=True))
    found = soho.label(images[0], LABELS, TEMPLATES)
    assert {row["label"]: row["score"] for row in found} == pytest.approx(expected, rel=1e-3)
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    assert sum(row["score"] for row in found) == pytest.approx(1)
    both = soho.label(list(images), LABELS, TEMPLATES, top_k=1)
    assert both[0] == [{**found[0], "score": pytest.approx(found[0]["score"], rel=1e-3)}]


@pytest.fixture
def label(folder_of, capsys):
    def label(folder, *more, code=0, kind="rank"):
        assert main(["label", str(folder_of(kind)), str(folder), *more]) == code
        return capsys.readouterr()

    return label


def test_every_image_of_a_folder(label, soho_of, image_folder):
    folder, names = image_folder
    (folder / "broken.png").write_bytes(b"none")
    (folder / "labels.txt").write_text("red\n\nblue\nman\n")
    (folder / "templates.txt").write_text("\n".join(TEMPLATES))
    said = label(folder, "--labels", str(folder / "labels.txt"), "--templates", str(folder / "templates.txt"), "--json")
    found = {line["image"]: line for line in map(json.loads, said.out.splitlines())}
    assert "can't be read" in found.pop(str(folder / "broken.png"))["error"]
    assert said.err == "1 of 11 images can't be used\n"
    assert set(found) == {str(folder / name) for name in names}
    for path, line in found.items():
        best = soho_of("rank").label(path, LABELS, TEMPLATES, top_k=1)
        assert line["answers"] == [{**best[0], "score": pytest.approx(best[0]["score"], abs=1e-3)}]


def test_folders_named_as_labels_give_the_accuracy(label, soho_of, tmp_path):
    for number, (name, colour) in enumerate([("red", "red"), ("red", "navy"), ("red", "white"), ("blue", "blue")]):
        draw(tmp_path / "images" / name / f"{number}.png", colour)
    said = label(tmp_path / "images", "--labels", "red, blue", "--templates", "a {}", "--top_k", "2").out
    *lines, last = said.splitlines()
    right = 0
    for line in lines:
        path, _, scores = line.partition(": ")
        best, other = scores.split(", ")
        assert float(best.split()[0]) + float(other.split()[0]) == pytest.approx(100, abs=0.2)
        right += best.endswith(f"  {path.split('/')[-2]}")
    assert len(lines) == 4
    assert last == (f"accuracy {25 * right:.1f} % of 4 images in folders named as their label; always 'red': 75.0 %")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone", "--labels", "red,blue"], "images: gone can't be read (there is no such file or folder)"),
        ([".", "--labels", "red,blue"], "images: . holds no image"),
        (["left.jpg", "--labels", "zebra,okapi"], "labels: 'zebra' and 'okapi' are the same tokens"),
        (["left.jpg", "--labels", "zebra,red", "--templates", "{}"], "text: 'zebra' holds no word that this model"),
        (["left.jpg", "--labels", "red"], "labels: expected at least 2, got 1"),
        (["left.jpg", "--labels", "red,blue", "--templates", "red"], "templates: 'red' has no {}"),
    ],
)
def test_mistakes_are_one_line(label, tmp_path, monkeypatch, arguments, words):
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "empty/../left.jpg")
    monkeypatch.chdir(tmp_path / "empty" if arguments[0] == "." else tmp_path)
    said = label(*arguments, code=2).err
    *before, last = said.splitlines()
    unknown = "this model does not know: 'photo', 'of', 'zebra', 'okapi'"
    assert words in last and before == ([unknown] if "okapi" in words else []), said
