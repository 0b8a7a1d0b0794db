"""Speed on a GPU, put on a model from outside: `speed_up_on_gpu`.

The model is written as the paper says and knows nothing of this file; see `cpu/` for the other device.
"""

from typing import TypeVar

import torch
from torch import Tensor

from ..backbones import Masks
from ..base import SohoPreTrainedModel
from ..official.visual_encoder import OfficialVisualEncoder
from ..visual_encoder import VisualEncoder

__all__ = ["speed_up_on_gpu"]

Model = TypeVar("Model", bound=SohoPreTrainedModel)


class ChannelsLastVisualEncoder(VisualEncoder):
    """`VisualEncoder` whose CNN runs with the channels last, the layout that a GPU's matrix units read.

    Otherwise cuDNN turns the features of each convolution in half precision round and back.
    """

    def run_backbone(self, x: Tensor, masks: Masks) -> Tensor:
        """As `VisualEncoder.run_backbone`."""
        return super().run_backbone(x.contiguous(memory_format=torch.channels_last), masks)


class ChannelsLastOfficialVisualEncoder(ChannelsLastVisualEncoder, OfficialVisualEncoder):
    """`OfficialVisualEncoder` with the channels last."""


def speed_up_on_gpu(model: Model) -> Model:
    """Makes a SOHO model faster on a GPU, in place: features of the CNN have their channels last.

    Weights keep their layout, which ZeRO would undo; cuDNN turns them at each call, which is little beside features.

    Args:
        model: `SohoModel` or one of the models with heads.

    Returns:
        The same object.
    """
    encoder = model.base().visual_encoder
    official = isinstance(encoder, OfficialVisualEncoder)
    encoder.__class__ = ChannelsLastOfficialVisualEncoder if official else ChannelsLastVisualEncoder
    return model
