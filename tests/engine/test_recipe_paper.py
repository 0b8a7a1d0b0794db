"""Recipe `paper` at full size: ResNet-101, 12 layers, 2,048 codes, 30,522 words, an image of 600 x 1000."""

import json
import math
import shutil
from pathlib import Path

import torch
from tiny_corpus import draw, write_karpathy, write_tokenizer

from soho_fast import train
from soho_fast.engine.trainer import seed_everything
from soho_fast.model import SohoForPreTraining

EDGES = (1000, 600)


def write_data_roots(folder: Path) -> list[str]:
    """Both data sets in their published formats, and the arguments that name them and replace the downloads."""
    write_karpathy(folder / "coco", {"train": ["red"], "restval": ["green"], "val": ["blue", "yellow"]}, size=EDGES)
    genome = folder / "genome"
    draw(genome / "VG_100K" / "1.jpg", "cyan", EDGES)
    (genome / "VG_100K_2").mkdir()
    image = {"image_id": 1, "url": "https://host/VG_100K/1.jpg", "coco_id": None, "width": 1000, "height": 600}
    (genome / "image_data.json").write_text(json.dumps([image]))
    (genome / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": [{"phrase": "a cyan"}]}]))
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
        "--engine.precision", "float32", "--engine.threads", "2", "--log.every_steps", "1",
        "--evaluation.at_end", "false",
    ]  # fmt: skip
    try:
        done = launch(script=Path(train.__file__), arguments=arguments)
        assert done.code == 0, done.text
        assert "recipe paper: 155.8 M parameters, 1 steps of 1 images" in done.text, done.text
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
    assert 0 < changed_K.sum() == record["live_codes"], "codes with members move, all others keep their bits"
    for name in (
        "soho.visual_encoder.projection.weight", "soho.mask_token", "soho.encoder.layer.0.attention.self.query.weight",
        "soho.encoder.layer.11.output.dense.weight", "soho.text_embeddings.word_embeddings.weight",
    ):  # fmt: skip
        assert name in moved
