"""What the engine asks of a task. The engine knows neither images nor texts: only this."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from soho_fast.common.processes import Processes
from soho_fast.engine.changes import TaskIdentity


class Task(Protocol):
    """A model, its training data and its metrics."""

    logged: tuple[str, ...]
    """Names of scalars that the line of progress shows beside the loss; the output's are logged where they are not
    None."""

    selection: str | None
    """Name of the metric by which the best model is chosen, larger is better; None keeps only the last."""

    samples_together: tuple[str, int] | None
    """Where what is learnt depends on how many samples one forward holds: the recipe's field that says it, and the
    number; None where any number will do."""

    identity: TaskIdentity
    """What of the task is compared when a run is resumed."""

    def build_model(self, device: torch.device) -> nn.Module:
        """The model on the CPU in float32, initialised from torch's global generator (seeded alike on all ranks), with
        what makes training faster on `device`, where it will be put.

        Its forward takes the batch's keywords and returns an object whose `loss` is a scalar and whose names listed in
        `logged` are scalars, None or not there. `parameter_groups()` lists dicts with `params` and `kind`
        ("backbone" or another name). `freeze_backbone(bool)`, `freeze_batch_norm(bool)` (both must outlast `train()`)
        and `activation_checkpointing_enable(...)` are called when the recipe asks for them. Around each optimiser step
        come `begin_step()` and `end_step(applied=...)`, not applied where the optimiser left it out (an overflow in
        fp16): what the model moves by no gradient moves there, once for all micro-batches. The parameters that
        `begin_step` reads it lists as `read_by_begin_step`: ZeRO 3 gathers them.

        A model that has phases, of which some leave parameters without a gradient, also gives its groups a `part`, a
        name, and has `waiting_parts`: those that do not take part in the next step. They are not decayed, and neither
        moments, nor counts of steps, nor an average of the weights begin; without this, ZeRO and several processes
        train what waits by gradients of zero.

        A model whose loss is a mean over labels may have `survey(micro_batches)`. It is called after `begin_step()`
        where a step has several micro-batches, without gradients, with the keywords of all of them: an iterable with a
        length, to be gone through as often as need be, each time in the random state of the forward. The loss of a step
        is the mean of what the forwards of all micro-batches and ranks give.
        """

    def training_data(self) -> Any:
        """`len(data)` samples, `data.set_epoch(epoch)`, `data[index]`: one sample, the same on any rank and worker.

        Where it has `data.group_keys(progress)`, float64 (samples,), samples of close keys share micro-batches, or (as
        the recipe asks) only those of positive keys or only the others; `progress` is called with what is read of how
        much.

        A sample that can't be used says why in its attribute `corrupt`, a text; otherwise that is None or not there.
        Where it has `data.images`, samples share images, and as many as there are images can be corrupt.
        """

    def collate(self, samples: list[Any]) -> Mapping[str, Any]:
        """The model's keywords, as `on_device` takes them; beside them "skipped", one message for each unreadable
        image."""

    def on_device(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `collate` gave and is on the device now, as the model takes it: for what is better computed there than
        by the loader processes."""

    def before_step(self, model: nn.Module, epoch: float) -> None:
        """Called before each optimiser step with the epochs behind it: what the task changes as training goes on."""

    def figures(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        """After each optimiser step, scalars () to log beside the losses, on the model's device, the same on each
        rank."""

    def evaluate(
        self, model: nn.Module, *, quick: bool, processes: Processes, progress: Callable[[int, int], None]
    ) -> dict[str, float]:
        """Metrics on held-out data of a model in evaluation mode, no gradients.

        All ranks make the call and may share the work; those of rank 0 count. Under ZeRO 3, where all ranks must run
        the model alike, `processes` stands for one process. `progress` is called with what is done of how much.
        """

    def non_finite(self, model: nn.Module) -> list[str]:
        """What the model met in training since the last call that was Inf or NaN and may show in no loss, in words."""

    def is_sound(self, model: nn.Module) -> bool:
        """Whether nothing says that the run loses what it has learnt, as its next checkpoint notes; the same on all
        ranks."""

    def lost(self, model: nn.Module) -> str:
        """Where it is lost for so long that the run is to end: what is seen. Otherwise empty; the same on all ranks."""

    def warnings(self, model: nn.Module) -> list[str]:
        """What goes wrong in training and no loss shows, each thing once: "what; what to do". Called on rank 0 whenever
        the log gets a record of training."""

    def phase(self, epoch: float) -> str:
        """What is trained otherwise than in most of the run, after so many epochs; empty where nothing is."""

    def export(self, model: nn.Module, state_dict: Mapping[str, Any], folder: Path) -> None:
        """Write a loadable model into a folder: weights (safetensors), config, processor."""


@runtime_checkable
class FeatureCacheTask(Task, Protocol):
    """What is asked beside of a task whose backbone's features may be cached while it is frozen.

    Its `training_data()` then has `data.images`, samples of one image each, and `data.without_pixels(corrupt)`, the
    same samples without their images; `corrupt` says by number which images are corrupt and why. Samples have the
    numbers of theirs in the attribute `image_keys`.
    """

    def caches_features(self, model: nn.Module) -> bool:
        """Whether an image's features depend on that image alone while the backbone is frozen."""

    def collate_images(self, samples: list[Any]) -> Mapping[str, Any]:
        """Samples of `data.images`, of which some may be corrupt, to what `image_features` takes after `on_device`."""

    def image_features(self, model: nn.Module, images: Mapping[str, Any]) -> list[torch.Tensor]:
        """The backbone's features of each image."""

    def collate_features(self, features: list[torch.Tensor]) -> Mapping[str, Any]:
        """The features of a batch's images, each once and in the order in which samples name them first, as keywords of
        the model in the place of the images."""
