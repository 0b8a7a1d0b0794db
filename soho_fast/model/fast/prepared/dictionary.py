"""The visual dictionary with its codebook packed for lookups."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from soho_fast import ops

from ...visual_dictionary import VisualDictionary


class PreparedDictionary(VisualDictionary):
    """`VisualDictionary` whose codes stand still: the lookup's own form of them is made once."""

    def forward(
        self,
        feat_BLC: Tensor,
        valid_BL: Tensor,
        sample_key_B: Tensor | None = None,
        num_texts_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `VisualDictionary.forward` in evaluation mode."""
        if feat_BLC.shape[-1] != self.num_channels:
            raise ValueError(f"feat_BLC: expected {self.num_channels} channels, got shape {tuple(feat_BLC.shape)}")
        if self.packed is None:
            self.packed = ops.prepare_codebook(self.codebook)
        with torch.autocast(feat_BLC.device.type, enabled=False):
            index_BL = ops.codebook_lookup(feat_BLC, self.packed)
            embed_BLC = ops.straight_through(feat_BLC, self.codebook, index_BL)
        return embed_BLC, index_BL.masked_fill(~valid_BL, -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "packed": None}


def prepare_dictionary(dictionary: VisualDictionary) -> None:
    """In place."""
    dictionary.packed = None
    dictionary.__class__ = PreparedDictionary
