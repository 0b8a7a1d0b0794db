"""Recipe `paper` at full size: ResNet-101, 12 layers, 2,048 codes, 30,522 words, an image of 600 x 1000;
`paper_r18` on small images."""

import json
import math
import shutil
from pathlib import Path

import torch
from tiny_corpus import draw, write_karpathy, write_tokenizer

from soho_fast import train
from soho_fast.engine.checkpoint import seed_everything
from soho_fast.model import SohoForPreTraining

EDGES = (1000, 600)


def write_data_roots(folder: Path) -> list[str]:
    """Both data sets in their published formats, and the arguments that name them and replace the downloads."""
    write_karpathy(folder / "coco", {"train": ["red"], "restval": ["green"], "val": ["blue", "yellow"]}, size=EDGES)
    genome = folder / "genome"
    draw(genome / "VG_100K" / "1.jpg", "cyan", EDGES)
    (genome / "VG_100K_2").mkdir()
    images = [
        {"image_id": 1, "url": "https://host/VG_100K/1.jpg", "coco_id": None, "flickr_id": 77},
        {"image_id": 2, "url": "https://host/VG_100K/2.jpg", "coco_id": 1002, "flickr_id": None},
        {"image_id": 3, "url": "https://host/VG_100K_2/3.jpg", "coco_id": None, "flickr_id": 1},
    ]
    draw(genome / "VG_100K_2" / "3.jpg", "magenta", EDGES)
    (genome / "image_data.json").write_text(json.dumps(images))
    region = {"phrase": "a cyan", "width": 900, "height": 500}
    regions = [{"id": number, "regions": [region]} for number in (1, 2, 3)]
    (genome / "region_descriptions.json").write_text(json.dumps(regions))
    tokenizer = write_tokenizer(folder / "tokenizer", size=30_522)
    return [
        "--data_roots.coco", str(folder / "coco"), "--data_roots.visual_genome", str(genome),
        "--data.tokenizer", str(tokenizer), "--model.text_encoder", "null", "--model.backbone", "null",
    ]  # fmt: skip


def test_one_step_at_full_size(launch, tmp_path):
    """One step of one image with its four texts: everything but the frozen backbone moves."""
    run = tmp_path / "run"
    arguments = [
        "--recipe", "paper", *write_data_roots(tmp_path), "--output", str(run), "--max_steps", "1",
        "--batch.global_batch_size", "1", "--batch.gradient_accumulation_steps", "1", "--batch.workers", "0",
        "--engine.precision", "float32", "--log.every_steps", "1",
        "--evaluation.at_end", "false",
    ]  # fmt: skip
    try:
        done = launch(script=Path(train.__file__), arguments=arguments)
        assert done.code == 0, done.text
        assert "recipe paper: 155.8 M parameters, 1 steps of 1 images" in done.text, done.text
        assert "visual_genome: 2 images, 2 captions" in done.text, "one is in COCO's val"
        assert "visual_genome: exclude_held_out_of names no file of Flickr30K" in done.text
        records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        (record,) = [record for record in records if record["kind"] == "train"]
        trained = SohoForPreTraining.from_pretrained(run / "model")
    finally:
        shutil.rmtree(run, ignore_errors=True)  # 2.6 GB
    config = trained.config
    assert (config.backbone, config.num_hidden_layers, config.num_codes) == ("resnet101", 12, 2048)
    # Nothing is learnt yet, so each head is about as good as a draw among its choices (MVM asks for one code here).
    for name, choices, spread in (("mlm_loss", 30_522, 1), ("mvm_loss", 2048, 2), ("itm_loss", 2, 1)):
        assert abs(record[name] - math.log(choices)) < spread, record
    assert math.isfinite(record["grad_norm"]) and record["skipped_steps"] == 0
    assert record["lr"] == {"backbone": 0.0, "rest": 1e-4 / 3}

    seed_everything(0)
    start, end = SohoForPreTraining(config).state_dict(), trained.state_dict()
    moved = {name for name, value in end.items() if not torch.equal(value, start[name])}
    assert not [name for name in moved if name.startswith("soho.visual_encoder.backbone.")]
    codebook = "soho.visual_dictionary.codebook"
    changed_K = (end[codebook] != start[codebook]).any(1)
    assert changed_K.all() and 0 < record["active_codes"] <= 160, "drawn from the features; an image has 160 tokens"
    for name in (
        "soho.visual_encoder.projection.weight", "soho.mask_token", "soho.encoder.layer.0.attention.self.query.weight",
        "soho.encoder.layer.11.output.dense.weight", "soho.text_embeddings.word_embeddings.weight",
    ):  # fmt: skip
        assert name in moved


def test_a_step_of_the_ablations_size(launch, tmp_path):
    """ResNet-18 and 3 layers, two micro-batches of one image; Flickr30K's held-out images left out."""
    run, flickr = tmp_path / "run", tmp_path / "flickr"
    write_karpathy(flickr, {"train": ["red"], "test": ["green"]}, coco=False)
    arguments = [
        "--recipe", "paper_r18", *write_data_roots(tmp_path), "--data_roots.flickr30k", str(flickr),
        "--data.tokenizer", str(write_tokenizer(tmp_path / "few")), "--data.shorter_edge", "64",
        "--data.longer_edge", "128", "--evaluation.at_end", "false",
        "--output", str(run), "--max_steps", "1", "--batch.global_batch_size", "2", "--batch.workers", "0",
        "--batch.gradient_accumulation_steps", "2", "--log.every_steps", "1", "--evaluation.every_epochs", "0",
    ]  # fmt: skip
    try:
        done = launch(script=Path(train.__file__), arguments=arguments)
        assert done.code == 0, done.text
        assert "recipe paper_r18: " in done.text and "1 steps of 2 images" in done.text, done.text
        assert "visual_genome: 1 images, 1 captions" in done.text and "is not set" not in done.text
        assert "visual_genome: 2 images left out: held out in COCO or Flickr30K" in done.text
        trained = SohoForPreTraining.from_pretrained(run / "model")
    finally:
        shutil.rmtree(run, ignore_errors=True)
    config = trained.config
    assert (config.backbone, config.num_hidden_layers, config.num_codes) == ("resnet18", 3, 2048)
    assert (trained.soho.visual_dictionary.step, trained.soho.visual_dictionary.age.max()) == (1, 1)
