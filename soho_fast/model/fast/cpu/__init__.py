"""Speed on a CPU: `speed_up_on_cpu` chooses it for a model.

The model is written as the paper says and calls what it has as its attributes: `SohoModel.transformer`,
`VisualEncoder.cnn` and `TokenHead.classify`, of which this package has those for a CPU. Parameters, buffers and their
names stay. Off the CPU, under ZeRO stage 3, with hooks on the encoder or activation checkpointing, what would not hold
takes the ordinary way call by call.
"""

from typing import TypeVar

from ...base import SohoPreTrainedModel
from ...heads import TokenHead
from .classifier import classify_on_cpu
from .convolutions import speed_up_convolutions
from .packed_encoder import PackedTransformer

__all__ = ["speed_up_on_cpu"]

Model = TypeVar("Model", bound=SohoPreTrainedModel)


def speed_up_on_cpu(model: Model) -> Model:
    """Makes a SOHO model train and compute faster on a CPU, in place.

    Losses and gradients are the plain model's up to rounding; with dropout, up to what is drawn. The model can be
    copied, saved, loaded and trained as before. A second call changes nothing, nor one of a prepared model.

    - The Transformer runs without padding, and its last layer where a head reads (`packed_encoder.py`).
    - Word and code classifiers are cast by parts under autocast (`classifier.py`).
    - Convolutions have the layout and the form that are fastest; in inference BatchNorm is a part of them, and there
      are no masks where no image is padded (`convolutions.py`).

    Args:
        model: `SohoModel` or one of the models with heads.

    Returns:
        The same object.
    """
    if model.prepared is not None:
        return model
    base = model.base()
    speed_up_convolutions(base.visual_encoder)
    for module in model.modules():
        if isinstance(module, TokenHead):
            module.classify = classify_on_cpu
    base.transformer = PackedTransformer()
    return model
