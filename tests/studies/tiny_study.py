"""A study small enough to be made within seconds a run, and the command that makes it."""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TINY = {
    "title": "Tiny",
    "seeds": [0],
    "overrides": {
        "corpus": {"num_train": 40, "num_heldout": 24, "image_size": 48},
        "data.shorter_edge": 48,
        "data.longer_edge": 48,
        "log": {"tensorboard": False, "every_steps": 2},
        "checkpoint": {"every_steps": 2, "every_minutes": 0},
        "model.backbone": None,
        "model.config": {
            "backbone": "resnet10",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "num_codes": 8,
        },
        "batch": {"workers": 0, "global_batch_size": 4},
    },
    "conditions": {
        "none": {"overrides": {"model.config.use_dictionary": False}},
        "codes": {"about": "eight codes"},
        "again": {"about": "the same"},
    },
    "stages": {
        "pretraining": {
            "recipe": "mini",
            "overrides": {
                "epochs": 2,
                "model.bag_of_words_epochs": 0,
                "model.config.bag_of_words_weight": 0.0,
                "optim.frozen_backbone_epochs": [0, 1],
                "data.heldout_candidates": 4,
            },
            "codes": 8,
            "metrics": {"mlm_all": "masked words", "codes.lift": "lift (times)"},
        },
        "vqa": {
            "recipe": "mini_vqa",
            "after": "pretraining",
            "overrides": {
                "epochs": 100,
                "data.min_answer_count": 2,
                "data.measured_images": 4,
                "evaluation": {"at_end": False, "every_epochs": 0},
                "data.train_share": 0.5,
                "max_steps": 12,
            },
            "splits": {"val": {}},
            "metrics": {"val.vqa_score": "VQA score"},
        },
        "output": {
            "recipe": "mini_vqa",
            "after": "pretraining",
            "overrides": {
                "epochs": 100,
                "data.min_answer_count": 2,
                "data.measured_images": 4,
                "evaluation": {"at_end": False, "every_epochs": 0},
                "max_steps": 4,
                "model.use_dictionary_output": True,
            },
            "splits": {"val": {}},
            "metrics": {"val.vqa_score": "VQA score, codes' output"},
            "conditions": ["codes"],
        },
    },
    "composite": ["vqa/val.vqa_score"],
    "comparisons": [{"condition": "codes", "against": "none"}],
}


def command(*arguments):
    return [sys.executable, "-m", "soho_fast.studies", *map(str, arguments)]


def environment():
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def trained(job, command, arguments):
    """In the place of `one._call`: as a training, which refuses a folder of results without checkpoints."""
    training = Path(job.folder) / "training"
    if training.exists():
        return 2
    (training / "model").mkdir(parents=True)
    found = {"metrics": {"score": 0.5}, "step": 1, "training_seconds": 1.0, "images_per_second": 1.0}
    (training / "metrics.json").write_text(json.dumps({**found, "precision": "float32", "identity": "0", "data": {}}))
    return 0
