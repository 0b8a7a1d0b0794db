"""Retrieval as the engine and the evaluation use it, on a tiny corpus in COCO's and in Flickr30K's format."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_tasks
import torch
from tiny_corpus import draw, write_karpathy
from tiny_tasks import NAMES

from soho_fast.common.errors import CorruptImageError, UserError
from soho_fast.engine.batches import plan_batches
from soho_fast.model.values import ModelChanges
from soho_fast.tasks.evaluation.metrics.recall import retrieval_recall
from soho_fast.tasks.evaluation.sharing import Sharing
from soho_fast.tasks.recipe import read_recipe
from soho_fast.tasks.retrieval import RetrievalTask
from soho_fast.tasks.settings import DownstreamModel, RetrievalData, RetrievalSplit

SMALL = {
    **tiny_tasks.SMALL, "contrastive_weight": 0.5, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def six_captions(colour):
    return [f"a {colour}", f"the {colour}", f"There is a {colour}.", f"{colour}", f"and {colour}", f"{colour} {colour}"]


@pytest.fixture
def make(tmp_path, tokenizer_dir):
    def build(*, coco=True, config=None, of_task=None, **options):
        splits = {"train": NAMES[:6], "val": NAMES[6:9], "test": NAMES[9:]}
        path = str(write_karpathy(tmp_path, splits, coco=coco, sentences=six_captions))
        sources = {name: RetrievalSplit(path, [str(tmp_path)], [name]) for name in splits}
        small = {"tokenizer": str(tokenizer_dir), "shorter_edge": 32, "longer_edge": 64}
        data = RetrievalData(**{"splits": sources, **small, **options})
        said = []
        model = DownstreamModel(config=ModelChanges(**{**SMALL, **(config or {})}))
        task = RetrievalTask(data, 3, model, say=said.append)
        vars(task).update({"image_batch": 2, **(of_task or {})})
        return task, said

    return build


def build_model(task):
    torch.manual_seed(0)
    return task.build_model().eval()


@pytest.mark.parametrize("coco", [True, False])
def test_a_training_step_scores_all_pairs(make, coco):
    task, said = make(coco=coco, epoch="images")
    data = task.training_data()
    told = "training on 6 images with 36 captions: 6 samples an epoch, each an image with one of its captions"
    assert said[-1] == f"{told}; vocabulary of 31"
    assert said[0].endswith("6 images, 36 captions (train 6)")
    samples = [data[index] for index in range(4)]
    batch = task.collate(samples)
    assert batch["own_image"].tolist() == [0, 1, 2, 3] and batch["skipped"] == []
    inputs = {key: value for key, value in batch.items() if key not in ("skipped", "sample_ids")}
    model = build_model(task).train()
    output = model(**task.on_device(inputs))
    output.loss.backward()
    assert output.itm_logits.shape == (16, 2)
    assert all(getattr(output, name).numel() == 1 for name in task.logged)
    texts = {tuple(data[0].texts_ids[0].tolist()) for epoch in range(40) if data.set_epoch(epoch) is None}
    assert len(texts) == 6, "every caption comes up, in training all six"
    data.set_epoch(0)
    assert data[2].texts_ids[0].tolist() == samples[2].texts_ids[0].tolist(), "the same epoch draws the same"


def test_an_epoch_of_captions_holds_each_once_and_two_of_an_image_share_it(make):
    task, said = make()
    data = task.training_data()
    assert len(data) == 36 and "6 images with 36 captions: 36 samples an epoch" in said[-1]
    samples = [data[index] for index in range(36)]
    assert len({tuple(sample.texts_ids[0].tolist()) for sample in samples}) == 36
    # Two captions of image 1, one of image 4 and one of image 0.
    batch = task.collate([samples[index] for index in (7, 24, 8, 0)])
    assert batch["own_image"].tolist() == [0, 1, 0, 2] and len(batch["pixel_values"]) == 3


def test_evaluation_takes_five_captions_and_every_pair(make, tmp_path):
    task, _ = make(folds=3)
    model = build_model(task)
    result = task.evaluate_split(model, "test", Sharing(keep_in=tmp_path / "partial"))
    metrics = result.metrics
    assert (metrics["num_images"], metrics["num_texts"], metrics["passes"]) == (3, 15, 45)
    assert result.scores_IT.shape == (3, 15) and result.texts[0] == f"a {NAMES[9]}" and result.texts[5] == "a navy"
    recall = retrieval_recall(result.scores_IT, torch.arange(3).repeat_interleave(5))
    assert metrics["image_to_text_r1"] == recall.image_to_text[1]
    assert metrics["text_to_image_r1"] == recall.text_to_image[1]
    assert metrics["mean_r1"] == pytest.approx((recall.image_to_text[1] + recall.text_to_image[1]) / 2)
    assert metrics["chance_text_to_image_r1"] == pytest.approx(1 / 3)
    assert metrics["folds_text_to_image_r1"] == 1.0, "a fold of one image holds only its own texts"
    assert metrics["pairs_a_second"] > 0
    rows = {row[0]: row[1:] for row in task.table(metrics).rows}
    assert rows["text to image R@1"][1] == "33.3 %" and "text to image R@1, mean of 3 folds" in rows
    files = result.write(tmp_path)
    assert not (tmp_path / "partial").exists()
    lines = [json.loads(line) for line in (tmp_path / files[0]).read_text().splitlines()]
    assert [len(line["best"]) for line in lines] == [10, 10, 10]
    assert lines[0]["best"][0][1] == pytest.approx(float(result.scores_IT[0].max()), abs=1e-5)


def test_folds_are_of_whole_splits_and_refused_before_the_work(make, tmp_path):
    task, _ = make(folds=3, of_task={"quick_images": 2})
    model = build_model(task)
    assert not any("folds" in name for name in task.evaluate(model, quick=True))
    assert "folds_text_to_image_r1" in task.evaluate_split(model, "val", Sharing()).metrics
    (tmp_path / "val2014/0010.jpg").write_bytes(b"not opened")
    task, _ = make(folds=2)
    with pytest.raises(ValueError, match=r"data\.folds: the 3 images of test do not divide into 2 equal folds"):
        task.evaluate_split(model, "test", Sharing())


def test_two_stages_without_images_to_choose_by_are_refused_before_the_work(make):
    task, _ = make(scoring="both", validate="")
    Path(str(task.records("test")[0].image)).write_bytes(b"not opened")
    with pytest.raises(ValueError, match=r"^data\.validate: expected one of train, val, test, got ''"):
        task.evaluate_split(build_model(task), "test", Sharing())


def test_scores_of_other_texts_are_not_used(make, tmp_path):
    task, _ = make()
    model, steps = build_model(task), []
    sharing = Sharing(keep_in=tmp_path / "kept", progress=lambda *done: steps.append(done))
    task.evaluate_split(model, "test", sharing)
    task.evaluate_split(model, "test", sharing)
    assert len(steps) == 2
    record = task.records("test")[0]
    task.records("test")[0] = replace(record, captions=("navy", *record.captions[1:]))
    task.evaluate_split(model, "test", sharing)
    assert len(steps) == 4


def test_two_stages_beside_every_pair(make):
    task, _ = make(scoring="both", of_task={"max_loss": 1.0})
    model = build_model(task)
    metrics = task.evaluate_split(model, "test", Sharing()).metrics
    assert metrics["two_stages_k"] == 1 == metrics["two_stages_k_on_validate"], "any loss is allowed"
    assert 3 + 15 + 15 <= metrics["two_stages_passes"] <= 3 + 15 + 15 + 3
    table = task.table(metrics)
    assert table.columns == ["metric", "every pair", "two stages", "chance"] and "k = 1" in table.title
    assert all(len(row) == 4 for row in table.rows)
    strict, _ = make(scoring="two_stages", of_task={"max_loss": 0.0})
    only = strict.evaluate_split(model, "test", Sharing()).metrics
    assert "passes" not in only and "two_stages_image_to_text_r1" in only
    assert strict.table(only).columns == ["metric", "two stages", "chance"]
    without, _ = make(scoring="two_stages", config={"contrastive_weight": 0.0})
    with pytest.raises(ValueError, match="contrastive_weight: this model has no contrastive head"):
        without.evaluate_split(build_model(without), "test", Sharing())


@pytest.mark.parametrize("name", ["retrieval_coco", "retrieval_flickr", "retrieval_coco_two_stages"])
def test_the_papers_recipes_have_24_pairs_in_a_forward_on_any_number_of_processes(name):
    recipe = read_recipe(["--recipe", name])
    together = recipe.make_task(print).samples_together
    assert plan_batches(recipe.batch, 1000, 1, 0, together).micro_batch_size == 24
    with pytest.raises(UserError, match=r"data\.aligned_pairs: 24 .* give --batch\.global_batch_size 192, or"):
        plan_batches(recipe.batch, 1000, 8, 0, together)
    recipe = read_recipe(["--recipe", name, "--batch.global_batch_size", "192"])
    assert plan_batches(recipe.batch, 1000, 8, 0, together).micro_batch_size == 24


def test_quick_measures_are_of_the_first_images(make):
    task, _ = make(of_task={"quick_images": 2, "training_k": 1000})
    model = build_model(task)
    full, quick = task.evaluate(model), task.evaluate(model, quick=True)
    assert full["chance_text_to_image_r1"] == pytest.approx(1 / 3)
    assert quick["chance_text_to_image_r1"] == pytest.approx(1 / 2)
    assert task.evaluate_split(model, "val", Sharing()).metrics["mean_r1"] == full["mean_r1"], "k took all"
    assert task.table(quick).title == "retrieval: 2 images, 10 texts"
    assert task.evaluate(model, quick=True)["num_images"] == 2


def test_without_a_contrastive_head_every_pair_of_some_images_is_scored_while_training(make):
    task, said = make(of_task={"training_images": 2}, config={"contrastive_weight": 0.0})
    model = build_model(task)
    some = task.evaluate(model)
    assert (some["num_images"], some["num_texts"]) == (2, 10)
    assert said[-1] == "val: every pair of its first 2 images of 3 is scored while training"
    task.training_images = 0
    assert task.evaluate(model)["num_images"] == 3
    with_head, _ = make(of_task={"training_images": 2})
    assert with_head.evaluate(build_model(with_head))["num_images"] == 3, "two stages need no subset"
    assert task.evaluate_split(model, "val", Sharing()).metrics["num_images"] == 3


def test_loader_processes_change_no_measure(make, tmp_path):
    task, _ = make(scoring="both", of_task={"max_loss": 1.0})
    model = build_model(task)
    timed = ("seconds", "pairs_a_second")
    alone = task.evaluate_split(model, "test", Sharing())
    task.workers = 2
    helped = task.evaluate_split(model, "test", Sharing())
    assert torch.equal(helped.scores_IT, alone.scores_IT)
    same = [name for name in alone.metrics if not name.endswith(timed)]
    assert {name: helped.metrics[name] for name in same} == {name: alone.metrics[name] for name in same}
    (tmp_path / "val2014/0010.jpg").write_bytes(b"no image")
    told = []
    for task.workers in (0, 2):
        with pytest.raises(CorruptImageError) as corrupt:
            task.evaluate_split(model, "test", Sharing())
        told.append(str(corrupt.value))
    assert told[0] == told[1] and "0010.jpg: can't be decoded" in told[0], told
    assert not multiprocessing.active_children()


def test_starts_from_the_matching_head_and_loads_again(make, tmp_path):
    task, said = make()
    source = build_model(task)
    from soho_fast.model import SohoConfig, SohoForPreTraining

    pretrained = SohoForPreTraining(SohoConfig.from_dict({**source.config.to_dict(), "contrastive_weight": 0.0}))
    pretrained.save_pretrained(tmp_path / "pretrained")
    task.processor.save_pretrained(tmp_path / "pretrained")
    task.model.pretrained, task.data.tokenizer = str(tmp_path / "pretrained"), None
    model = task.build_model()
    assert torch.equal(model.itm_head.classifier.weight, pretrained.itm_head.classifier.weight)
    zero_shot = task.load_model(str(tmp_path / "pretrained"))
    assert "zero-shot" in said[-1] and zero_shot.config.use_dictionary_output is False
    assert torch.equal(zero_shot.itm_head.classifier.weight, pretrained.itm_head.classifier.weight)
    assert task.build_model() is not None
    assert "initial values kept: contrastive_head." in "\n".join(said)
    task.export(model, model.state_dict(), tmp_path / "tuned")
    again = task.load_model(str(tmp_path / "tuned"))
    assert torch.equal(again.contrastive_head.log_scale, model.contrastive_head.log_scale)
    metrics = task.evaluate_split(again, "test", Sharing()).metrics
    assert metrics["mean_r1"] == task.evaluate_split(model.eval(), "test", Sharing()).metrics["mean_r1"]


def test_a_corrupt_image_is_skipped_in_training_and_refused_in_evaluation(make, tmp_path):
    task, _ = make(epoch="images")
    data = task.training_data()
    (tmp_path / "train2014/0001.jpg").write_bytes(b"no image")
    batch = task.collate([data[index] for index in range(3)])
    assert len(batch["skipped"]) == 1 and "0001.jpg" in batch["skipped"][0] and batch["own_image"].tolist() == [0, 1]
    (tmp_path / "val2014/0010.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptImageError, match=r"0010\.jpg.*every image must be scored"):
        task.evaluate_split(build_model(task), "test", Sharing())
    draw(tmp_path / "val2014/0010.jpg")
    task.evaluate_split(build_model(task), "test", Sharing())


@pytest.mark.parametrize("texts", [["a man"], ["a man", "a man"]])
def test_captions_that_are_all_alike_are_refused(make, tmp_path, texts):
    task, _ = make()
    write_karpathy(tmp_path, {"train": NAMES[:4], "val": NAMES[4:6]}, sentences=lambda colour: texts)
    with pytest.raises(
        ValueError,
        match=r"data\.train: expected at least 2 images with different captions, got 4 of which all .* 'a man'",
    ):
        task.training_data()
