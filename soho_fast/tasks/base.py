"""What every task has, as the engine's `Task` asks it: what it learns from (`learning.py`), what it weighs
(`weighing.py`), and here how it is judged."""

import shlex
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from soho_fast.common.checksums import write_checksums
from soho_fast.common.processes import Processes
from soho_fast.model import SohoPreTrainedModel
from soho_fast.tasks.card import CARD, model_card
from soho_fast.tasks.evaluation.sharing import ReportProgress, Sharing
from soho_fast.tasks.weighing import WeighingTask


class BaseTask(WeighingTask):
    """How a task is judged, in training and after it.

    A task outside of this package whose settings are others than those of the task that it extends names their
    dataclasses as `data_type` and `model_type`.
    """

    example: ClassVar[str] = ""
    """What asks a model of `{run}`, of `soho ask`; empty where nothing there does."""
    selection: ClassVar[str | None]
    """The metric by which the best model is chosen, larger is better; None keeps only the last."""
    precision: str = "auto"
    """Type of the products when evaluating: `auto` takes bf16 on a GPU that has it, and float32 elsewhere."""
    image_batch: int = 32
    """Images (in NLVR2 pairs) encoded at a time when evaluating."""
    pair_batch: int = 256
    """Texts read with their images at a time when evaluating."""
    quick_images: int = 128
    """Held-out images (in NLVR2 pairs) of a quick evaluation."""

    @property
    @abstractmethod
    def default_split(self) -> str:
        """The split that is evaluated where none is named."""

    def evaluate(
        self,
        model: Any,
        *,
        quick: bool = False,
        processes: Processes | None = None,
        progress: ReportProgress | None = None,
    ) -> dict[str, float]:
        """Metrics of the split that is evaluated while training; quick: of its first images. Empty without one.

        Args:
            model: The model, in evaluation mode, on the device of `processes`.
            quick: For mid-training.
            processes: Who makes the call and may share the work; this process alone when None.
            progress: Called with what is done of how much.
        """
        metrics = self.metrics_while_training(model, Sharing(processes or Processes(), progress), quick=quick)
        if not quick:
            self._last_metrics = metrics
        return metrics

    @abstractmethod
    def metrics_while_training(self, model: Any, sharing: Sharing, *, quick: bool) -> dict[str, float]:
        """See `evaluate`."""

    @abstractmethod
    def evaluate_split(self, model: Any, split: str, sharing: Sharing) -> Any:
        """Metrics of a split: an object with `metrics`, and `write(folder)`, which returns the names of files and
        deletes what was kept on the way.

        Raises:
            CorruptImageError: an image can't be read: a published metric covers every example.
        """

    def figures(self, model: Any) -> Mapping[str, torch.Tensor]:
        """The forward's own are logged."""
        return {}

    def non_finite(self, model: SohoPreTrainedModel) -> list[str]:
        """Visual tokens with Inf or NaN: the lookup gives them code 0, and the loss stays finite."""
        return [f"visual tokens ({num})"] if (num := model.take_num_non_finite()) else []

    def is_sound(self, model: Any) -> bool:
        """Nothing is watched."""
        return True

    def lost(self, model: Any) -> str:
        """Nothing is watched."""
        return ""

    def warnings(self, model: Any) -> list[str]:
        """Nothing is watched."""
        return []

    def phase(self, epoch: float) -> str:
        """What is trained otherwise than in most of the run, after so many epochs; empty where nothing is."""
        return ""

    def export(self, model: SohoPreTrainedModel, state_dict: Mapping[str, Any], folder: Path) -> None:
        """Write a folder that the model's `from_pretrained` and `SohoProcessor.from_pretrained` load."""
        model.save_pretrained(folder, state_dict=dict(state_dict))
        self.processor.save_pretrained(folder)
        write_checksums(folder)
        # Without a checksum: who publishes the model completes it.
        (folder / CARD).write_text(model_card(self, model, self._last_metrics), encoding="utf-8")

    def at_chance(self, metrics: Mapping[str, float]) -> str:
        """That metrics are no better than chance, in words; empty where they are better, or where none were taken."""
        return ""

    def next_commands(self, folder: Path) -> list[str]:
        """Commands worth trying after the run."""
        run = shlex.quote(str(folder))
        asks = [f"soho ask {self.example.format(run=run)}"] if self.example else []
        return [*asks, f"tensorboard --logdir {run}"]
