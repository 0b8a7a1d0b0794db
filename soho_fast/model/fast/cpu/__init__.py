"""Speed on a CPU, put on a model from outside: `speed_up_on_cpu`.

The model is written as the paper says and knows nothing of this room. Modules that are faster here become instances of
a subclass; parameters, buffers and their names stay. The models of transformers' kind keep their class, by whose name
they are saved and found, and get a method of their own instead. Off the CPU, under ZeRO stage 3, with hooks on the
encoder or activation checkpointing, what would not hold takes the ordinary way call by call.
"""

from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ...base import SohoPreTrainedModel
from ...downstream import SohoDownstreamModel
from ...heads import TokenHead
from ...outputs import SohoForPreTrainingOutput
from ...soho import SohoForPreTraining
from .classifier import FastTokenHead, SharedTable
from .convolutions import speed_up_convolutions
from .packed_encoder import Reads, packed_forward

__all__ = ["speed_up_on_cpu"]

Model = TypeVar("Model", bound=SohoPreTrainedModel)


def speed_up_on_cpu(model: Model) -> Model:
    """Makes a SOHO model train and compute faster on a CPU, in place.

    Losses and gradients are the plain model's up to rounding; with dropout, up to what is drawn. The model can be
    copied, saved, loaded and trained as before. A second call changes nothing.

    - The Transformer runs without padding, and its last layer where a head reads (`packed_encoder.py`).
    - Word and code classifiers are cast by parts under autocast (`classifier.py`).
    - Convolutions have the layout and the form that are fastest; in inference BatchNorm is a part of them, and there
      are no masks where no image is padded (`convolutions.py`).

    Args:
        model: `SohoModel` or one of the models with heads.

    Returns:
        The same object.
    """
    base = model.base()
    speed_up_convolutions(base.visual_encoder)
    for module in model.modules():
        if isinstance(module, TokenHead):
            module.__class__ = FastTokenHead
    base.forward = partial(packed_forward, base)
    if isinstance(model, SohoForPreTraining):
        model.forward = partial(_pretraining_forward, model)
    elif isinstance(model, SohoDownstreamModel):
        # Nothing but [CLS] is read, which spares the last layer most of its work.
        model.first_hidden = partial(type(model).first_hidden, model, reads=Reads())
    return model


def _pretraining_forward(
    model: SohoForPreTraining, *, mlm_labels: Tensor | None = None, itm_labels: Tensor | None = None, **inputs
) -> SohoForPreTrainingOutput | tuple:
    """The model's forward, whose losses read [CLS], labelled words, and masked visual tokens of pairs that count."""
    table = SharedTable()
    input_ids = inputs.get("input_ids")
    if input_ids is not None and input_ids.dim() == 2:
        texts_P = input_ids[:, 0]
        all_count = itm_labels is None or model.config.losses_on == "all"
        inputs["reads"] = Reads(
            words_PS=None if mlm_labels is None else mlm_labels != -100,
            masked_P=torch.ones_like(texts_P, dtype=torch.bool) if all_count else itm_labels == 1,
            table=table,
        )
    if model.mlm_head.decoder.weight is model.get_input_embeddings().weight:
        model.mlm_head.words = table
    try:
        return type(model).forward(model, mlm_labels=mlm_labels, itm_labels=itm_labels, **inputs)
    finally:
        model.mlm_head.words = None
