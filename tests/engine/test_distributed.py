"""Several processes, ZeRO stages and precisions against one process in float32."""

import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

SOHO = {"soho": True, "dropout": 0.0}
STILL = {"freeze_batch_norm": True}


def test_two_processes_train_as_one(launch, request_for, losses):
    """20 steps at one global batch: equal losses to float32 rounding, and one codebook, bit for bit, on both ranks."""
    one = request_for("one", max_steps=20, task=SOHO, engine=STILL)
    two = request_for("two", max_steps=20, task=SOHO, engine=STILL)
    alone, both = launch(one), launch(two, processes=2)
    assert alone.code == 0, alone.text
    assert both.code == 0, both.text
    ranks = both.results()
    assert [rank["step"] for rank in ranks] == [20, 20]
    assert len({rank["codebook"] for rank in ranks}) == 1
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-5)
    assert losses(one)[0] - losses(one)[-1] > 0.5


def test_zero_stages_and_precisions_train_alike(launch, request_for, losses):
    """Ten steps of ZeRO 0-3 in float32, bf16 and fp16 on two processes; then the last five again from checkpoints."""

    def make(stage: int, precision: str, name: str | None = None, **changes) -> dict:
        return request_for(
            name or f"zero{stage}-{precision}",
            task=SOHO | {"pixels": 32},
            checkpoint={"every_steps": 5, "keep": 0},
            optim={"frozen_backbone_epochs": 0.2, "lr": 1e-3, **changes},
            batch={"images_per_step": 4},
            engine={"zero_stage": stage, "precision": precision, "emulate_precision": True, "loss_scale_power": 8},
        )

    matrix = {key: make(*key) for key in itertools.product((0, 1, 2, 3), ("float32", "bf16", "fp16"))}
    untrained = make(0, "float32", "untrained", lr=0.0, backbone_lr=0.0)
    done = launch(*matrix.values(), untrained, processes=2)
    assert done.code == 0, done.text
    results = done.results()
    assert len(results) == 26
    assert {result["codebook_type"] for result in results} == {"torch.float32"}
    for request in matrix.values():
        assert len({result["codebook"] for result in results if result["output"] == request["output"]}) == 1

    reference = losses(matrix[0, "float32"])
    start, end = backbone(untrained), backbone(matrix[0, "float32"])
    for (stage, precision), request in matrix.items():
        values, what = losses(request), f"ZeRO {stage} {precision}"
        assert len(values) == 10
        assert all(map(math.isfinite, values)), what
        np.testing.assert_allclose(values, reference, rtol=1e-4 if precision == "float32" else 0.03, err_msg=what)
        # The losses hardly feel a backbone that SGD does not move (a loss scale taken out that was never put in).
        astray = (backbone(request) - end).norm() / (end - start).norm()
        assert astray < (1e-3 if precision == "float32" else 0.3), f"{what}: the backbone went elsewhere, {astray}"

    again = [matrix[key] for key in ((1, "float32"), (2, "bf16"), (3, "float32"), (3, "fp16"))]
    uninterrupted = [losses(request) for request in again]
    for request in again:
        shutil.rmtree(Path(request["output"]) / "checkpoints" / "step-00000010")
    done = launch(*again, processes=2)
    assert done.code == 0, done.text
    assert done.text.count("resumed from") == len(again)
    assert [losses(request) for request in again] == uninterrupted


def backbone(request: dict) -> torch.Tensor:
    """The first convolution of a run's exported model."""
    weights = load_file(Path(request["output"]) / "model" / "model.safetensors")
    return weights["soho.visual_encoder.backbone.conv1.weight"].float()
