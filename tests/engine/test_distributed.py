"""Several processes, ZeRO stages and precisions against one process in float32."""

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from engine_run import SohoTask
from safetensors.torch import load_file

SOHO = {"soho": True, "dropout": 0.0}
STILL = {"freeze_batch_norm": True}
# About ten times what was seen: relative difference of the losses, and of the way the backbone went.
RTOL = {"float32": 1e-6, "fp16": 2e-4, "bf16": 2e-3}
APART = {"float32": 1e-3, "fp16": 3e-3, "bf16": 1.5e-2}
TYPES = {"float32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def test_zero_stages_and_precisions_train_alike(launch, request_for, losses):
    """Six steps of the model under ZeRO 0-3 in float32, bf16 and fp16 on two processes.

    BatchNorm stands still: over one or two images it would leave the backbone's gradients to rounding. Before the
    dictionary there is none: scaled up by it, a token in bf16 may take another code.
    """

    def make(stage: int, precision: str) -> dict:
        return request_for(
            f"zero{stage}-{precision}",
            max_steps=6,
            task=SOHO | {"pixels": 32, "config": {"dictionary_batch_norm": False}},
            checkpoint={"every_steps": 6},
            optim={"frozen_backbone_epochs": (0, 0.2), "lr": 1e-3},
            batch={"global_batch_size": 4, "gradient_accumulation_steps": 2},
            engine=STILL | {"zero_stage": stage, "precision": precision, "loss_scale_power": 8},
        )

    pairs = [(0, "float32"), (0, "bf16"), (1, "fp16"), *itertools.product((2, 3), TYPES)]
    runs = {key: make(*key) for key in pairs}
    done = launch(*runs.values(), processes=2)
    assert done.code == 0, done.text
    results = done.results()
    assert len(results) == 2 * len(runs)
    assert {result["codebook_type"] for result in results} == {"torch.float32"}
    reference, way = losses(runs[0, "float32"]), way_of_backbone(runs[0, "float32"], torch.float32)
    for (stage, precision), request in runs.items():
        what, values = f"ZeRO {stage} {precision}", losses(request)
        assert len({result["codebook"] for result in results if result["output"] == request["output"]}) == 1, what
        assert len(values) == 6 and all(map(math.isfinite, values)), what
        np.testing.assert_allclose(values, reference, rtol=RTOL[precision], err_msg=what)
        # The losses hardly feel a backbone that SGD does not move (a loss scale taken out, never put in).
        held = torch.float32 if (stage, precision) == (0, "bf16") else TYPES[precision]
        apart = float((way_of_backbone(request, held) - way).norm() / way.norm())
        assert apart < APART[precision], f"{what}: the backbone went {apart} of its way elsewhere"


def way_of_backbone(request: dict, held: torch.dtype) -> torch.Tensor:
    """End minus start of the backbone's parameters, in one row; where the model holds half, those of the optimiser."""
    output = Path(request["output"])
    if held == torch.float32:
        end = load_file(output / "model" / "model.safetensors")
    else:
        end = get_fp32_state_dict_from_zero_checkpoint(output / "checkpoints", "step-00000006")
    start = dict(SohoTask(SOHO).build_model(torch.device("cpu")).named_parameters())
    names = [name for name in start if ".backbone." in name]
    ways = [end[name].double() - start[name].detach().to(held).double() for name in names]
    return torch.cat([way.flatten() for way in ways])
