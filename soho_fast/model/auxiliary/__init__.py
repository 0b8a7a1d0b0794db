"""What is not SOHO's: losses beside the paper's that the configuration switches on.

An aid is a module of the model with an attribute of its own, which is `None` where the aid's weight in the
configuration is 0. The model's forward asks all aids for their losses in one line; what an aid does besides stands in
its file.

P texts, S tokens.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import SohoConfig
from ..heads import LossSum
from ..inputs import Texts
from ..outputs import VisualTokens


class Aid(nn.Module):
    """A loss beside the paper's.

    Class attributes:
        attribute: the model's attribute, hence the prefix of the aid's tensors in a checkpoint.
        weight: the configuration's field that weighs the loss; above 0 the aid is there.
        tied_weights: names of the model's tensors that are others of its tensors, as in transformers.
    """

    attribute: ClassVar[str]
    weight: ClassVar[str]
    tied_weights: ClassVar[dict[str, str]] = {}

    def reset(self) -> None:
        """Initial values of the aid's own tensors; its submodules have those of their kinds."""

    def losses(self, model: nn.Module, visual: VisualTokens, captions: Texts) -> dict[str, LossSum]:
        """
        Args:
            model: the one that this is an aid of.
            visual: the images.
            captions: texts that describe their images. Texts without a real word are none.
        """
        raise NotImplementedError


class Aided:
    """A model, transformers' or of the same form, that may have aids."""

    def add_aids(self, config: SohoConfig, *kinds: type[Aid]) -> None:
        """Makes those of `kinds` that the configuration wants; before `post_init`."""
        self._aid_attributes = [kind.attribute for kind in kinds]
        for kind in kinds:
            wanted = bool(getattr(config, kind.weight))
            setattr(self, kind.attribute, kind(config) if wanted else None)
            if wanted and kind.tied_weights:
                self._tied_weights_keys = {**self._tied_weights_keys, **kind.tied_weights}

    def aids(self) -> list[Aid]:
        """Those that are there."""
        return [aid for name in self._aid_attributes if (aid := getattr(self, name)) is not None]

    def auxiliary_losses(self, visual: VisualTokens, captions: Texts) -> dict[str, LossSum]:
        """The losses of all aids by name; see `Aid.losses`."""
        return {name: loss for aid in self.aids() for name, loss in aid.losses(self, visual, captions).items()}


def captions_of(texts: Texts, mlm_labels_PS: Tensor | None, itm_labels_P: Tensor | None) -> Texts:
    """The texts of pre-training as they were before words were masked; unmatched ones are left without a word."""
    ids_PS, real_PS = texts.input_ids, texts.attention_mask
    if mlm_labels_PS is not None:
        ids_PS = torch.where(mlm_labels_PS != -100, mlm_labels_PS, ids_PS)
    if real_PS is None:
        real_PS = torch.ones_like(ids_PS)
    if itm_labels_P is not None:
        real_PS = real_PS * (itm_labels_P == 1).unsqueeze(1)
    return Texts(ids_PS, real_PS, texts.image_index)
