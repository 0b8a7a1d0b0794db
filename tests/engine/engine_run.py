"""Tiny tasks and a script that trains them one after another, alone or under DeepSpeed's launcher.

python tests/engine/engine_run.py '[{"output": ..., "optim": {...}, "task": {"soho": true, "dropout": 0}}, ...]'
"""

import copy
import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
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

    def parameter_groups(self) -> list[dict]:
        groups = {}
        for name, param in self.named_parameters():
            groups.setdefault("backbone" if name.startswith("backbone") else "rest", []).append(param)
        return [{"kind": kind, "params": params} for kind, params in groups.items()]

    def freeze_batch_norm(self, frozen: bool) -> None:
        self.batch_norm_frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> "StubModel":
        super().train(mode)
        if self.batch_norm_frozen:
            self.backbone.eval()
        return self

    def freeze_backbone(self, frozen: bool) -> None:
        self.backbone.requires_grad_(not frozen)

    def begin_step(self) -> None:
        pass

    def end_step(self, *, applied: bool) -> None:
        pass

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None) -> None:
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
    samples_together = None

    def __init__(self, options: Mapping[str, Any]) -> None:
        defaults = {
            "width": 8, "dropout": 0.1, "size": 40, "delay": 0.0, "seconds_a_step": None, "skip_each": 0,
            "skip_always": 0, "pixels": 64, "signal": "SIGTERM", "selection": None, "reported": False,
            "lost_after": None, "poison": None, "config": {}, "cacheable": False, "signal_in_pass": None,
            "bag_of_words_epochs": 0.0, "mvm_from_epoch": 0.0, "mask_pairs": False,
        }  # fmt: skip
        self.options = {**defaults, **options}
        self.selection = self.options["selection"]
        self.epoch, self.passed, self.num_steps = 0.0, 0, 0
        self.num_warned = 0

    @property
    def identity(self) -> Any:
        from soho_fast.engine.changes import TaskIdentity

        return TaskIdentity((), (), ("labels",), lambda: {"model.width": self.options["width"], "labels": 1})

    def build_model(self, device: torch.device) -> nn.Module:
        assert device.type == "cpu"
        model = StubModel(self.options["width"], self.options["dropout"])
        if self.options["poison"] == "start":
            model.norm.weight.data[0] = torch.nan
        return model

    def training_data(self) -> StubData:
        return StubData(self.options["size"], self.options["delay"])

    def before_step(self, model: nn.Module, epoch: float) -> None:
        assert model.training and epoch >= self.epoch
        self.epoch = epoch

    def figures(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        self.num_steps += 1
        return {"steps": torch.tensor(self.num_steps)}

    def _steps_lost(self) -> int:
        begin = self.options["lost_after"]
        return 0 if begin is None else max(0, self.num_steps - begin)

    def is_sound(self, model: nn.Module) -> bool:
        return not self._steps_lost()

    def lost(self, model: nn.Module) -> str:
        return "for 4 steps all was lost" if self._steps_lost() >= 4 else ""

    def non_finite(self, model: nn.Module) -> list[str]:
        return []

    def warnings(self, model: nn.Module) -> list[str]:
        self.num_warned += 1
        return ["it goes wrong; do something"] if self.options["reported"] and self.num_warned == 3 else []

    def phase(self, epoch: float) -> str:
        return "the first epoch" if epoch < 1 and self.options["reported"] else ""

    def collate(self, samples: list) -> dict[str, Any]:
        pixels, words, labels = zip(*samples, strict=True)
        skipped = [f"corrupt-{label}.jpg: truncated" for label in list(labels)[: self.options["skip_each"]]]
        skipped += ["always.jpg: truncated"] * self.options["skip_always"]
        return {
            "pixel_values": torch.stack(pixels), "input_ids": torch.stack(words), "labels": torch.tensor(labels),
            "skipped": skipped, "sample_ids": list(labels),
        }  # fmt: skip

    def on_device(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return batch

    def evaluate(self, model: nn.Module, *, quick: bool, processes: Any, progress: Any) -> dict[str, float]:
        pixels, words, labels = zip(*[StubData(20, 0)[i] for i in range(20)], strict=True)
        assert not model.training
        inputs = (torch.stack(pixels), torch.stack(words), torch.tensor(labels))
        return {"loss": float(model(*inputs).loss), "random": float(torch.rand(()))}

    def export(self, model: nn.Module, state_dict: Mapping[str, Any], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(dict(state_dict), folder / "weights.pt")


class SohoTask(StubTask):
    """The real model, tiny, on random pictures and words; numbers of texts, masks and labels vary between images."""

    logged = (
        "mlm_loss", "mvm_loss", "itm_loss", "bag_of_words_loss", "contrastive_loss", "commitment_loss", "perplexity",
        "active_codes",
    )  # fmt: skip

    def build_model(self, device: torch.device) -> nn.Module:
        from soho_fast.model import SohoConfig, SohoForPreTraining
        from soho_fast.model.fast.cpu import speed_up_on_cpu

        torch.manual_seed(0)
        config = {
            "backbone": "resnet10", "visual_pool": 1, "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 16,
            "num_codes": 16, "hidden_dropout_prob": self.options["dropout"],
            "attention_probs_dropout_prob": self.options["dropout"], "dictionary_init": "data",
            "dictionary_batch_norm": True, "code_reset_threshold": 0.1,
        }  # fmt: skip
        model = SohoForPreTraining(SohoConfig.from_preset("paper", **{**config, **self.options["config"]}))
        speed_up_on_cpu(model)
        return model

    def training_data(self) -> "SohoData":
        data = SohoData(*(self.options[name] for name in ("size", "delay", "pixels", "mask_pairs")))
        if self.options["cacheable"]:
            data.images = SohoImages(data)
        return data

    def before_step(self, model: nn.Module, epoch: float) -> None:
        super().before_step(model, epoch)
        model.bag_of_words_only = epoch < self.options["bag_of_words_epochs"]
        model.masks_visual_tokens = epoch >= self.options["mvm_from_epoch"]

    def caches_features(self, model: nn.Module) -> bool:
        return True

    def collate_images(self, samples: list) -> dict[str, Any]:
        return {name: torch.cat([sample[name] for sample in samples]) for name in ("pixel_values", "pixel_mask")}

    def image_features(self, model: nn.Module, images: Mapping[str, Any]) -> list[torch.Tensor]:
        self.passed += len(images["pixel_values"])
        if self.options["signal_in_pass"] == self.passed:
            os.kill(os.getpid(), signal.SIGTERM)
        return list(model.soho.visual_encoder.backbone_output(*images.values())[0])

    def collate_features(self, features: list[torch.Tensor]) -> dict[str, Any]:
        return {"backbone_features": torch.stack(features)}

    def collate(self, samples: list) -> dict[str, Any]:
        counts = torch.tensor([len(sample["input_ids"]) for sample in samples])
        batch = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
        return batch | {
            "image_index": torch.repeat_interleave(torch.arange(len(samples)), counts), "skipped": [],
            "sample_ids": list(range(len(samples))),
        }  # fmt: skip

    def figures(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        from soho_fast.tasks.pretraining import PretrainingTask

        return PretrainingTask.figures(self, model)

    def non_finite(self, model: nn.Module) -> list[str]:
        num = model.take_num_non_finite()
        return [f"visual tokens ({num})"] if num else []

    def evaluate(self, model: nn.Module, *, quick: bool, processes: Any, progress: Any) -> dict[str, float]:
        batch = self.collate([SohoData(4, 0, self.options["pixels"])[index] for index in range(4)])
        del batch["skipped"], batch["sample_ids"]
        return {"loss": float(model(**batch).loss)}

    def export(self, model: nn.Module, state_dict: Mapping[str, Any], folder: Path) -> None:
        model.save_pretrained(folder, state_dict=dict(state_dict))


class SohoData(StubData):
    def __init__(self, size: int, delay: float, pixels: int, mask_pairs: bool = False) -> None:
        super().__init__(size, delay)
        self.pixels, self.mask_pairs = pixels, mask_pairs
        self.images: SohoImages | None = None
        self.cached = False

    def without_pixels(self, corrupt: Mapping[int, str]) -> "SohoData":
        assert not corrupt
        data = copy.copy(self)
        data.images, data.cached = None, True
        return data

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = SohoSample(self._sample(index))
        sample.image_keys = [index]
        if self.images is not None:
            sample |= self.images[index]
        elif self.cached:
            del sample["pixel_values"], sample["pixel_mask"]
        return sample

    def _sample(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.delay)
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        texts, length = 2 + index % 3, 8
        ids = torch.randint(5, 50, (texts, length), generator=generator)
        positive = (torch.arange(texts) < 1 + index % 2).long()
        labelled = (torch.rand(texts, length, generator=generator) < 0.3) & positive.bool().unsqueeze(1)
        sample = {
            "pixel_values": torch.randn(1, 3, self.pixels, self.pixels, generator=generator) + index % 7,
            "pixel_mask": torch.ones(1, self.pixels, self.pixels, dtype=torch.int64),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mlm_labels": torch.where(labelled, ids, -100),
            "itm_labels": positive,
            "mask_uniform": torch.rand(1, dtype=torch.float64, generator=generator),
        }
        if self.mask_pairs:
            sample["mask_pairs"] = torch.rand(texts, generator=generator) < 0.5
        return sample


class SohoSample(dict):
    """A sample with what the engine reads of it."""

    corrupt = None


class SohoImages(StubData):
    """Pictures that are the same in each epoch."""

    def __init__(self, data: SohoData) -> None:
        super().__init__(data.size, data.delay)
        self.pixels = data.pixels

    def __getitem__(self, index: int) -> SohoSample:
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randn(1, 3, self.pixels, self.pixels, generator=generator) + index % 7
        sample = SohoSample(pixel_values=pixels, pixel_mask=torch.ones(1, self.pixels, self.pixels, dtype=torch.int64))
        sample.image_keys = [index]
        return sample


def partition_small_weights(config_of: Callable[..., dict]) -> Callable[..., dict]:
    """DeepSpeed's configuration with a threshold that lets ZeRO 3 take apart the weights of these tiny models too."""

    def config(*arguments: Any, **options: Any) -> dict:
        values = config_of(*arguments, **options)
        if values["zero_optimization"]["stage"] == 3:
            values["zero_optimization"]["stage3_param_persistence_threshold"] = 1000
        return values

    return config


def poison(engine: Any, what: str) -> None:
    """Put a NaN or Inf into what a run trains by, as a divergence does; or send this process a signal, or raise."""
    module = engine.module
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
        return
    if what == "error":
        raise KeyError("of this rank alone")
    last = list(module.parameters())[-1]
    if what == "weights":
        getattr(last, "ds_tensor", last).data.view(-1)[0] = torch.nan
    elif what == "moments":
        moments = [state["exp_avg"] for state in engine.basic_optimizer.state.values() if "exp_avg" in state]
        moments[-1].view(-1)[0] = torch.inf
    elif what == "statistics":
        next(b for name, b in module.named_buffers() if name.endswith("running_var"))[0] = torch.nan
    elif what == "gradients":
        dict(module.named_parameters())["norm.weight"].register_hook(lambda gradient: gradient * torch.nan)
    else:
        assert what == "pixels"

        def blind(_: nn.Module, arguments: tuple, inputs: dict) -> tuple[tuple, dict]:
            inputs["pixel_values"][0] = torch.nan
            return arguments, inputs

        module.register_forward_pre_hook(blind, with_kwargs=True)


def steps_of_parts(engine: Any) -> dict[str, list[int]]:
    """Of each part of a model with phases how many steps Adam has counted of its parameters, each number once."""
    from soho_fast.engine.resharding import fragments_of, tensors_of

    found: dict[str, set[int]] = {}
    tensors, state = tensors_of(engine), engine.basic_optimizer.state
    for fragment in fragments_of(engine) if hasattr(engine.module, "part_of") else ():
        of_tensor = state.get(tensors[fragment.tensor], {})
        # SGD, the backbone's rule, counts none.
        if "momentum_buffer" not in of_tensor and ".backbone." not in fragment.name:
            found.setdefault(engine.module.part_of(fragment.name), set()).add(int(of_tensor.get("step", 0)))
    return {part: sorted(steps) for part, steps in found.items()}


def run_one(request: dict[str, Any], processes: Any) -> int:
    from soho_fast.engine import distributed
    from soho_fast.engine import step as step_module
    from soho_fast.engine import trainer as training
    from soho_fast.engine.distributed import deepspeed_config
    from soho_fast.engine.resume import ResumePoint
    from soho_fast.engine.settings import TrainSettings

    step_module.deepspeed_config = partition_small_weights(deepspeed_config)
    distributed.LOSS_SCALE_POWER = request.get("engine", {}).pop("loss_scale_power", 16)
    options, settings = request.pop("task", {}), TrainSettings()
    for name, value in request.items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                assert hasattr(getattr(settings, name), inner), inner
                setattr(getattr(settings, name), inner, inner_value)
        else:
            assert hasattr(settings, name), name
            setattr(settings, name, value)
    task = (SohoTask if options.get("soho") else StubTask)(options)
    run = training.Run(task, ResumePoint(task, settings, processes))
    seconds = task.options["seconds_a_step"]
    training.time = SimpleNamespace(monotonic=lambda: seconds * run.progress.step) if seconds else time
    count = run._count_skipped

    def at_each_step(*arguments: Any) -> None:
        step = run.progress.step
        if step == task.options.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == task.options.get("signal_at"):
            os.kill(os.getpid(), getattr(signal, task.options["signal"]))
        if step == task.options.get("small_files_at") and processes.rank == processes.world - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        if task.options["poison"] and task.options["poison"][1:] == [step, processes.rank]:
            poison(run.step.engine, task.options["poison"][0])
        count(*arguments)

    run._count_skipped = at_each_step
    result = run.train()
    buffers = dict(run.step.engine.module.named_buffers())
    codebook = next(buffer for name, buffer in buffers.items() if name.endswith("codebook"))
    line = (
        json.dumps(
            {
                "rank": processes.rank,
                "output": settings.output,
                "step": result.progress.step,
                "signal": result.signal_number,
                "metrics": result.metrics,
                "codebook": hashlib.sha256(codebook.numpy().tobytes()).hexdigest(),
                "codebook_type": str(codebook.dtype),
                "skipped_steps": run.step.engine.skipped_steps,
                "steps_of_parts": steps_of_parts(run.step.engine),
            }
        )
        + "\n"
    )
    # One write, so that the ranks' lines do not mix.
    sys.stdout.write(line)
    sys.stdout.flush()
    return 128 + result.signal_number if result.signal_number else 0


def main() -> int:
    from soho_fast.common.errors import UserError
    from soho_fast.engine.distributed import leave_processes, start_processes
    from soho_fast.engine.watchdog import run_command

    requests = json.loads(sys.argv[-1])
    code = 0
    with run_command("the same command continues from the newest checkpoint") as command:
        processes = start_processes(timeout=requests[0].get("engine", {}).get("timeout_seconds", 0))
        for request in requests:
            if request.pop("fails", False):
                try:
                    run_one(request, processes)
                except UserError as error:
                    sys.stdout.write(json.dumps({"rank": processes.rank, "error": str(error)}) + "\n")
                    sys.stdout.flush()
            else:
                code = run_one(request, processes) or code
        leave_processes()
    return command.code or code


if __name__ == "__main__":
    sys.exit(main())
