"""Several processes, ZeRO stages and precisions against one process in float32."""

import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import torch

SOHO = {"soho": True, "dropout": 0.0}
SOHO_CASES = ((0, "float32"), (2, "bf16"), (3, "fp16"))
STILL = {"freeze_batch_norm": True, "precision": "float32"}


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
    """Ten steps of ZeRO 0-3 in float32, bf16 and fp16 on two processes; then the last five again from checkpoints.

    All twelve on the stub, and three on the model (a CPU emulates fp16 and bf16 convolutions slowly). Where
    the backbone goes is read from the stub: with so few pixels the model's BatchNorm leaves its gradients to rounding.
    """

    def make(stage: int, precision: str, task: dict, name: str = "", **changes) -> dict:
        return request_for(
            name or f"zero{stage}-{precision}-{'soho' if task else 'stub'}",
            task={"dropout": 0.0, **task},
            checkpoint={"every_steps": 5, "keep": 0},
            optim={"frozen_backbone_epochs": (0, 0.2), "lr": 1e-3, **changes},
            batch={"images_per_step": 4, "accumulation": 1 if task else 2},
            engine={"zero_stage": stage, "precision": precision, "emulate_precision": True, "loss_scale_power": 8},
        )

    stub = {key: make(*key, {}) for key in itertools.product((0, 1, 2, 3), ("float32", "bf16", "fp16"))}
    soho = {key: make(*key, SOHO | {"pixels": 32}) for key in SOHO_CASES}
    untrained = make(0, "float32", {}, "untrained", lr=0.0, backbone_lr=0.0)
    done = launch(*stub.values(), *soho.values(), untrained, processes=2)
    assert done.code == 0, done.text
    results = done.results()
    assert len(results) == 2 * (len(stub) + len(soho) + 1)
    assert {result["codebook_type"] for result in results} == {"torch.float32"}
    start, end = backbone(untrained), backbone(stub[0, "float32"])
    for runs in (stub, soho):
        reference = losses(runs[0, "float32"])
        for (stage, precision), request in runs.items():
            what, exact, values = f"ZeRO {stage} {precision}", precision == "float32", losses(request)
            assert len({result["codebook"] for result in results if result["output"] == request["output"]}) == 1, what
            assert len(values) == 10 and all(map(math.isfinite, values)), what
            np.testing.assert_allclose(values, reference, rtol=1e-4 if exact else 0.03, err_msg=what)
            if runs is soho:
                continue
            # The losses hardly feel a backbone that SGD does not move (a loss scale taken out, never put in). Exported
            # weights are rounded to the precision, more than ten steps move them; along the movement that cancels.
            moved, expected = backbone(request) - start, end - start
            share = float((moved * expected).sum() / expected.square().sum())
            assert abs(share - 1) < (1e-3 if exact else 0.5), f"{what}: the backbone moved {share} of its way"

    again = [stub[key] for key in itertools.product((1, 2, 3), ("float32", "bf16", "fp16"))] + [soho[3, "fp16"]]
    uninterrupted = [losses(request) for request in again]
    for request in again:
        shutil.rmtree(Path(request["output"]) / "checkpoints" / "step-00000010")
    done = launch(*again, processes=2)
    assert done.code == 0, done.text
    assert done.text.count("resumed from") == len(again)
    for request, before in zip(again, uninterrupted, strict=True):
        assert losses(request) == before, request["output"]


def backbone(request: dict) -> torch.Tensor:
    """The stub's convolution, as exported."""
    return torch.load(Path(request["output"]) / "model" / "weights.pt")["backbone.0.weight"].float()
