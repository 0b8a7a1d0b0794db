"""Speed on a GPU: `speed_up_on_gpu` chooses it for a model; see `cpu/` for the other device."""

from typing import TypeVar

import torch
from torch import Tensor

from ..backbones import Masks
from ..base import SohoPreTrainedModel
from ..visual_encoder import CnnBackend, VisualEncoder

__all__ = ["speed_up_on_gpu"]

Model = TypeVar("Model", bound=SohoPreTrainedModel)


class GpuCnn(CnnBackend):
    """The CNN with the channels last, the layout that a GPU's matrix units read.

    Otherwise cuDNN turns the features of each convolution in half precision round and back.
    """

    name = "gpu"

    def run(self, encoder: VisualEncoder, x: Tensor, masks: Masks) -> Tensor:
        """As `CnnBackend.run`."""
        return encoder.run_backbone(x.contiguous(memory_format=torch.channels_last), masks)


def speed_up_on_gpu(model: Model) -> Model:
    """Makes a SOHO model faster on a GPU, in place: features of the CNN have their channels last.

    Weights keep their layout, which ZeRO would undo; cuDNN turns them at each call, which is little beside features.

    Args:
        model: `SohoModel` or one of the models with heads.

    Returns:
        The same object.
    """
    if model.prepared is None:
        model.base().visual_encoder.cnn = GpuCnn()
    return model
