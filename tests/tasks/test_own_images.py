"""One's own images, one JSON line each, through the tasks that take them; and what a task says of texts."""

import re
from pathlib import Path

import pytest
import yaml
from tiny_corpus import COLOURS, write_images

from soho_fast.data.readers import records
from soho_fast.tasks.pretraining import PretrainingTask
from soho_fast.tasks.question_answering import QuestionAnsweringTask
from soho_fast.tasks.recipe import RECIPES, load_recipe
from soho_fast.tasks.retrieval import RetrievalTask
from soho_fast.tasks.settings import (
    CaptionSource,
    PretrainingData,
    QuestionAnsweringData,
    RetrievalData,
    RetrievalSplit,
    VqaSplit,
)

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"shorter_edge": 32, "longer_edge": 64}


@pytest.fixture
def own(tmp_path, tokenizer_dir, monkeypatch):
    """(annotation file, keywords of all three tasks' data); of few images two are held out at least."""
    monkeypatch.setattr(records, "_HELD_OUT_SHARE", 0.4)
    return str(write_images(tmp_path)), {"tokenizer": str(tokenizer_dir), **SIZES}


def pretraining(path, common, **changes):
    said = []
    sets = {
        name: [CaptionSource(path, format="json_lines", splits=[split])]
        for name, split in (("sources", "train"), ("heldout", "val"))
    }
    return PretrainingTask(PretrainingData(**{**sets, **common, **changes}), say=said.append), said


def test_pretraining_needs_no_more_than_the_file(own):
    task, said = pretraining(*own)
    train, val = len(task.training_data()), len(task.heldout_records)
    assert train + val == len(COLOURS) and val >= 2
    assert said == [
        f"sources: images: {train} images, {2 * train} captions (train {train})",
        f"heldout: images: {val} images, {2 * val} captions (val {val})",
        f"training on {train} images with {2 * train} captions: {train} samples an epoch, each an image with 2 "
        f"positive and 2 negative texts; vocabulary of {len(task.processor.tokenizer)}",
    ]
    assert len(task.training_data()[0].texts_ids) == 4


def test_retrieval_and_questions_take_the_same_file(own):
    path, common = own
    options = {"format": "json_lines"}
    splits = {name: RetrievalSplit(path, splits=[name], **options) for name in ("train", "val")}
    retrieval = RetrievalTask(RetrievalData(splits=splits, **common), say=lambda line: None)
    asked = {name: VqaSplit(path, splits=[name], **options) for name in ("train", "val")}
    data = QuestionAnsweringData(splits=asked, min_answer_count=1, **common)
    questions = QuestionAnsweringTask(data, say=lambda line: None)
    assert len(retrieval.training_data()) == 2 * len(questions.training_data()) >= 8
    assert set(questions.answers) <= set(COLOURS), "in lower case, as they are compared"
    asked = questions.records("val")
    right = [record.answers.most_common for record in asked]
    assert questions.metrics(right, asked)["vqa_score"] == 1.0
    assert questions.metrics(["plaid"] * len(asked), asked)["vqa_score"] == 0.0


def test_a_recipe_for_retrieval_is_made_as_the_page_says(own, tmp_path):
    path, common = own
    (block,) = re.findall(r"```yaml\n(data_roots:.*?)```", (ROOT / "docs/own_data.md").read_text(), flags=re.DOTALL)
    recipe, said = yaml.safe_load((RECIPES / "mini_retrieval.yaml").read_text()), yaml.safe_load(block)
    recipe = {**recipe, **said, "data": {**recipe["data"], **said["data"]}}
    del recipe["corpus"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "tokenizer").symlink_to(common["tokenizer"])
    read = load_recipe(
        ["--recipe", str(tmp_path / "recipe.yaml"), "--data_roots.images", str(Path(path).parent)], with_files=True
    )
    task = read.make_task(lambda line: None)
    assert 0 < len(task.records("val")) < len(task.records("train")) < len(COLOURS)


def test_fields_of_other_formats_are_refused(own):
    path, common = own
    with pytest.raises(ValueError, match="annotations: only for format vqa, this is json_lines; leave it out"):
        QuestionAnsweringTask(
            QuestionAnsweringData(splits={"train": VqaSplit(path, annotations=path, format="json_lines")}, **common)
        ).records("train")
    with pytest.raises(ValueError, match="splits: only for format json_lines, this is vqa"):
        QuestionAnsweringTask(
            QuestionAnsweringData(splits={"train": VqaSplit(path, splits=["train"])}, **common)
        ).records("train")


@pytest.mark.parametrize("quick", [True, False])
def test_an_evaluation_says_that_nothing_is_learnt(own, monkeypatch, quick):
    task, said = pretraining(*own)
    metrics = {"num_images": 30, "mlm_content": 0.0, "mlm_content_shuffled": 0.0, "itm": 0.5, "itm_majority": 0.5}
    monkeypatch.setattr("soho_fast.tasks.pretraining.evaluate_pretraining", lambda *_, **__: metrics)
    monkeypatch.setattr("soho_fast.tasks.pretraining.measure_foils", lambda *_: {})
    assert task.evaluate(None, quick=quick) == metrics
    assert said[-1].startswith("warning: nothing is learnt of held-out images yet: masked content words 0.0% (")
    assert ("take more images" in said[-1] and "--model.pretrained FOLDER" in said[-1]) == (not quick)
    monkeypatch.setitem(metrics, "itm", 0.9)
    task.evaluate(None, quick=quick)
    assert sum("nothing is learnt" in line for line in said) == 1
