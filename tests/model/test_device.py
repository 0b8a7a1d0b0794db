"""A training step on an accelerator, seen without one: all tensors on its device, and nobody waits for it.

The models run on torch's `meta` device: shapes without values, where what is kept for the CPU alone does not run. Two
things a GPU would show are caught by the operator: tensors of two devices in one call, and a question to the device
whose answer the CPU waits for. A real kernel behind either is not run here.
"""

import traceback
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import soho_fast
from soho_fast.model import (
    SohoForImageTextRetrieval,
    SohoForPreTraining,
    SohoForQuestionAnswering,
    SohoForVisualEntailment,
    SohoForVisualReasoning,
)

PACKAGE = Path(soho_fast.__file__).parent
NUM_TEXTS, NUM_IMAGES = 8, 4


def asker() -> str:
    """The file of the package that the current call comes from."""
    files = [Path(frame.filename) for frame in traceback.extract_stack()]
    return next((file.name for file in reversed(files) if PACKAGE in file.parents), "no file of the package")


class Watch(TorchDispatchMode):
    """Notes the files that wait for the device, and refuses tensors of two devices in one call."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        assert len(devices) < 2 or func is torch.ops.aten._to_copy.default, f"{func}: {devices}, in {asker()}"
        if func is torch.ops.aten._local_scalar_dense.default:
            self.waits.append(asker())
            return 1
        if func is torch.ops.aten.nonzero.default:
            self.waits.append(asker())
            return tensors[0].new_empty(tensors[0].numel() // 2, tensors[0].dim(), dtype=torch.int64)
        if func is torch.ops.aten.index.Tensor and tensors[1].dtype == torch.bool:
            self.waits.append(asker())
            return tensors[0].new_empty(tensors[1].numel() // 2, *tensors[0].shape[tensors[1].dim() :])
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch):
    # It knows no meta device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def two_each():
    return torch.arange(NUM_IMAGES).repeat_interleave(NUM_TEXTS // NUM_IMAGES)


CASES = {
    SohoForPreTraining: lambda: {
        "image_index": two_each(),
        "mlm_labels": torch.full((NUM_TEXTS, 7), 3),
        "mlm_positions": torch.arange(NUM_TEXTS * 7),
        "itm_labels": torch.ones(NUM_TEXTS, dtype=torch.int64),
        "mask_uniform": torch.rand(NUM_IMAGES, dtype=torch.float64),
    },
    SohoForQuestionAnswering: lambda: {"image_index": two_each(), "answer_scores": torch.rand(NUM_TEXTS, 2)},
    SohoForVisualEntailment: lambda: {"image_index": two_each(), "labels": torch.arange(NUM_TEXTS) % 3},
    SohoForVisualReasoning: lambda: {
        "image_index": torch.stack([two_each(), two_each().flip(0)], dim=1),
        "labels": torch.arange(NUM_TEXTS) % 2,
    },
    SohoForImageTextRetrieval: lambda: {"own_image": two_each()},
}


def step(model, keywords):
    """A training step but for its optimiser; the files that waited."""
    torch.manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(NUM_IMAGES, 3, 96, 64),
        "pixel_mask": torch.ones(NUM_IMAGES, 96, 64, dtype=torch.bool),
        "input_ids": torch.randint(5, 60, (NUM_TEXTS, 7)),
        "attention_mask": torch.ones(NUM_TEXTS, 7, dtype=torch.int64),
        **keywords,
    }
    with Watch() as watch:
        model.begin_step()
        model(**{name: tensor.to("meta") for name, tensor in inputs.items()}).loss.backward()
        model.end_step(applied=True)
    return watch.waits


@pytest.mark.parametrize(("kind", "released"), [*((kind, False) for kind in CASES), (SohoForPreTraining, True)])
def test_a_training_step_stays_on_the_device(tiny_config, tiny_official, kind, released):
    options = {"dictionary_batch_norm": True, "bag_of_words_weight": 0.1, "contrastive_weight": 0.3}
    model = tiny_official() if released else kind(tiny_config(**options, code_reset_threshold=0.02))
    # As after the first step, which asks once what a checkpoint held.
    some, valid = torch.randn(1, 12, 16), torch.ones(1, 12, dtype=torch.bool)
    base = model.train().base()
    base.visual_dictionary(some if released else base.feature_norm(some, valid), valid)
    masked = {"mask_pairs": torch.arange(NUM_TEXTS) % 3 == 0} if released else {}
    waits = step(model.to("meta"), CASES[kind]() | masked)
    # The classifier of codes runs on masked tokens alone, whose number the CPU has to know and the lookup decides.
    assert waits == (["heads.py"] if kind is SohoForPreTraining else [])


def test_what_it_catches():
    with Watch() as watch, pytest.raises(AssertionError, match="add"):
        torch.ones(3) + torch.ones(3, device="meta")
    with watch:
        (torch.ones(3, device="meta") > 0).any().item()
    assert len(watch.waits) == 1
