"""A tiny task and a script that trains it, so that the engine is tested without the model.

python tests/engine/stub_run.py '{"output": ..., "optim": {...}, ...}' [--stub.KEY VALUE ...]
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

IMAGE, WORDS, CLASSES = 12, 20, 5


class FloatBatchNorm(nn.BatchNorm2d):
    """BatchNorm in float32 whatever the module is cast to."""

    def forward(self, feat: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = self.running_mean, self.running_var, self.weight.float(), self.bias.float()
        return nn.functional.batch_norm(feat.float(), mean, var, weight, bias, self.training).to(feat.dtype)


class StubModel(nn.Module):
    """Convolution and BatchNorm as the backbone, an EMA codebook as a buffer, dropout, a tied embedding."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, 2), FloatBatchNorm(width), nn.ReLU())
        self.words = nn.Embedding(WORDS, width)
        self.mask_vector = nn.Parameter(torch.zeros(width))
        self.layer = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.words.weight
        self.never_used = nn.Linear(width, 2)
        self.register_buffer("codebook", torch.randn(8, width))
        self.checkpointing = False

        self.batch_norm_frozen = False

    def parameter_groups(self, *, exclude_from_decay: bool = False) -> list[dict]:
        groups = {}
        for name, param in self.named_parameters():
            key = ("backbone" if name.startswith("backbone") else "rest", param.ndim > 1 or not exclude_from_decay)
            groups.setdefault(key, []).append(param)
        return [{"kind": kind, "decay": decay, "params": params} for (kind, decay), params in groups.items()]

    def freeze_batch_norm(self, frozen: bool) -> None:
        self.batch_norm_frozen = frozen

    def train(self, mode: bool = True) -> "StubModel":
        super().train(mode)
        if self.batch_norm_frozen:
            self.backbone.eval()
        return self

    def freeze_backbone(self, frozen: bool) -> None:
        self.backbone.requires_grad_(not frozen)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        self.checkpointing = True

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        dtype = self.mask_vector.dtype
        feat_BC = self.backbone(pixel_values.to(dtype)).mean((2, 3))
        index_B = torch.cdist(feat_BC.detach().float(), self.codebook).argmin(1)
        if self.training:
            self._update(feat_BC.detach().float(), index_B)
        code_BC = self.codebook[index_B].to(dtype)
        hidden = (code_BC - feat_BC).detach() + feat_BC + self.words(input_ids).mean(1) + self.mask_vector
        if self.checkpointing and self.training:
            hidden = torch.utils.checkpoint.checkpoint(self.layer, hidden, use_reentrant=False)
        else:
            hidden = self.layer(hidden)
        logits = self.head(self.norm(hidden)).float()
        loss = nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, word_loss=loss.detach(), absent_loss=None, logits=logits)

    def _update(self, feat_BC: torch.Tensor, index_B: torch.Tensor) -> None:
        sums = torch.zeros(8, feat_BC.shape[1] + 1, dtype=torch.float64)
        sums.index_add_(0, index_B, torch.cat([feat_BC, torch.ones(len(feat_BC), 1)], 1).double())
        if dist.is_initialized():
            dist.all_reduce(sums)
        count, live = sums[:, -1:], sums[:, -1] > 0
        mean = (sums[:, :-1] / count.clamp_min(1)).float()
        self.codebook[live] = 0.9 * self.codebook[live] + 0.1 * mean[live]


class StubData:
    """Random pictures and words; a sample depends on its index and epoch alone."""

    def __init__(self, size: int, delay: float) -> None:
        self.size, self.delay, self.epoch = size, delay, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        time.sleep(self.delay)
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        label = index % WORDS
        pixels = torch.randn(3, IMAGE, IMAGE, generator=generator) + label / WORDS
        return pixels, torch.randint(WORDS, (4,), generator=generator), label


class StubTask:
    logged = ("word_loss", "absent_loss")

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {
            "width": 8, "dropout": 0.1, "size": 40, "delay": 0.0, "skip_each": 0, "kill_at": 0, "signal_at": 0,
            "signal": "SIGTERM", **options,
        }  # fmt: skip
        self.seen = 0

    def build_model(self) -> nn.Module:
        return StubModel(self.options["width"], self.options["dropout"])

    def identity(self) -> dict[str, Any]:
        return {"width": self.options["width"]}

    def training_data(self) -> StubData:
        return StubData(self.options["size"], self.options["delay"])

    def collate(self, samples: list) -> dict[str, Any]:
        pixels, words, labels = zip(*samples, strict=True)
        skipped = ["broken.jpg: truncated"] if self.options["skip_each"] else []
        return {
            "pixel_values": torch.stack(pixels), "input_ids": torch.stack(words), "labels": torch.tensor(labels),
            "skipped": skipped, "sample_ids": list(labels),
        }  # fmt: skip

    def evaluate(self, model: nn.Module, *, quick: bool) -> dict[str, float]:
        pixels, words, labels = zip(*[StubData(20, 0)[i] for i in range(20)], strict=True)
        assert not model.training
        inputs = (torch.stack(pixels), torch.stack(words), torch.tensor(labels))
        return {"loss": float(model(*inputs).loss), "random": float(torch.rand(()))}

    def table(self, measures: Mapping[str, float]):
        raise NotImplementedError

    def export(self, model: nn.Module, state_dict: Mapping[str, Any], folder: Path) -> None:
        folder.mkdir()
        torch.save(dict(state_dict), folder / "weights.pt")

    def next_commands(self, folder: Path) -> list[str]:
        return []


def main() -> int:
    from soho_fast.engine import processes as ranks
    from soho_fast.engine import trainer as training
    from soho_fast.engine.errors import UserError

    request = json.loads(sys.argv[-1])
    stub = request.pop("stub", {})
    settings = training.TrainSettings()
    for name, value in request.items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                setattr(getattr(settings, name), inner, inner_value)
        else:
            setattr(settings, name, value)
    processes = ranks.start_processes(threads=1)
    task = StubTask(stub)
    try:
        trainer = training.Trainer(task, settings, processes)
        at, number = task.options["kill_at"] or task.options["signal_at"], task.options["signal"]
        number = signal.SIGKILL if task.options["kill_at"] else getattr(signal, number)
        original = trainer._record

        def record(*arguments: Any) -> dict:
            if at and trainer.progress.step == at:
                os.kill(os.getpid(), number)
            return original(*arguments)

        trainer._record = record
        result = trainer.train()
    except UserError as error:
        if processes.is_main:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    codebook = trainer.engine.module.codebook
    print(json.dumps({"rank": processes.rank, "codebook": codebook.flatten().tolist()}), flush=True)
    if processes.is_main:
        print(json.dumps({"step": result.progress.step, "measures": result.measures}), flush=True)
    ranks.leave_processes()
    return 128 + result.signal_number if result.signal_number else 0


if __name__ == "__main__":
    sys.exit(main())
