"""Published training runs beside what a plan takes for them: the same count of kernels, on the same cards."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import resnet50
from transformers import BertConfig, BertForPreTraining

from soho_fast.plan.cards import CARDS
from soho_fast.plan.fake import Meter, StepCost, fake_model, kernels_of_gpu
from soho_fast.plan.roofline import kernel_seconds

SAMPLES = 64
_EXAMPLES = "NVIDIA DeepLearningExamples"
_IMAGENET, _EPOCHS = 1_281_167, 35


@dataclass(frozen=True)
class Run:
    """A training run on GPUs of one machine, in 16 bits.

    Args:
        model: "ResNet-50" or "BERT-Large".
        card: A name of `CARDS`.
        rate: Samples a second of each GPU.
        source: Where that is said.
        fitted: Whether the card's efficiency comes from this run.
    """

    model: str
    card: str
    rate: float
    source: str
    fitted: bool = True

    def planned(self, cost: StepCost) -> float:
        """Samples a second of a GPU by the plan; `cost` is that of `SAMPLES`."""
        seconds = kernel_seconds(cost, CARDS[self.card])
        return SAMPLES / sum(sum(part.values()) for part in seconds.values())


RUNS = [
    Run("ResNet-50", "v100", 10_723 / 8, f"{_EXAMPLES}, MXNet 20.12, 8 x V100"),
    Run("ResNet-50", "a100", 90 * _IMAGENET / (1.14 * 3600) / 8, f"{_EXAMPLES}, MXNet 22.10, 8 x A100"),
    Run("ResNet-50", "h100", _EPOCHS * _IMAGENET / (13.466 * 60) / 8, f"MLPerf 3.0, 8 x H100, if {_EPOCHS} epochs"),
    Run("BERT-Large", "v100", 1_746 / 8, f"{_EXAMPLES}, PyTorch 21.11, 8 x V100, 128 tokens"),
    Run("BERT-Large", "a100", 4_591 / 8, f"{_EXAMPLES}, PyTorch 21.11, 8 x A100, 128 tokens"),
    Run("ResNet-50", "v100", 8_056 / 8, f"{_EXAMPLES}, PyTorch 21.03, 8 x V100", fitted=False),
    Run("ResNet-50", "a100", 16_621 / 8, f"{_EXAMPLES}, PyTorch 21.03, 8 x A100", fitted=False),
    Run("BERT-Large", "v100", 1_305.6 / 8, f"{_EXAMPLES}, PyTorch 19.07, 8 x V100, 128 tokens", fitted=False),
]


def resnet_cost() -> StepCost:
    """ResNet-50 v1.5 on images of 224 x 224."""
    mode = FakeTensorMode()
    model = fake_model(resnet50, torch.float16, mode)
    with mode, Meter([], SimpleNamespace(now=lambda: "backbone"), 0) as meter:
        images = torch.empty(SAMPLES, 3, 224, 224, dtype=torch.float16)
        F.cross_entropy(model(images).float(), torch.empty(SAMPLES, dtype=torch.int64)).backward()
    return StepCost(kernels=meter.take())


def bert_cost(tokens: int = 128, masked: int = 20) -> StepCost:
    """BERT-Large on sequences of which some tokens are predicted; its classifier of pairs is left out."""
    size = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    mode = FakeTensorMode()
    model = fake_model(lambda: BertForPreTraining(BertConfig(**size, attn_implementation="sdpa")), torch.float16, mode)
    with mode, Meter([], SimpleNamespace(now=lambda: "Transformer"), 0) as meter, kernels_of_gpu():
        hidden = model.bert(torch.empty(SAMPLES, tokens, dtype=torch.int64)).last_hidden_state
        logits = model.cls.predictions(hidden[:, :masked])
        F.cross_entropy(logits.flatten(0, 1).float(), torch.empty(SAMPLES * masked, dtype=torch.int64)).backward()
    return StepCost(kernels=meter.take())


def costs() -> dict[str, StepCost]:
    """Of the models of `RUNS`."""
    return {"ResNet-50": resnet_cost(), "BERT-Large": bert_cost()}


def as_markdown(costs: dict[str, StepCost]) -> str:
    """A table of all runs."""
    lines = ["| | samples/s of a GPU | MFU | plan | plan / published |", "|---|---|---|---|---|"]
    for run in RUNS:
        cost, peak = costs[run.model], CARDS[run.card].peak["fp16"]
        mfu = run.rate * sum(number * kernel.operations for kernel, number in cost.kernels.items()) / SAMPLES / peak
        what = f"{run.model}: {run.source}{'' if run.fitted else ' (not fitted)'}"
        planned = run.planned(cost)
        lines.append(f"| {what} | {run.rate:,.0f} | {mfu:.0%} | {planned:,.0f} | {planned / run.rate:.2f} |")
    return "\n".join(lines)
