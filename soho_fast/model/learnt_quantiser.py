"""A quantiser whose codes follow from parameters that the optimiser trains: all of `Quantiser` but the arithmetic.

B images, L tokens per image, C channels, K codes, one level of them.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .codebook.usage import CodeUsage
from .config import SohoConfig
from .distributed import all_reduce_sum_
from .normalization import finite_rows, is_recomputing


class LearntQuantiser(CodeUsage, ABC):
    """A subclass has `quantise` and `codebook_of`; here is what is alike in all: padding, types, and the usage.

    The usage is that of an optimiser step, between `begin_step` and `end_step`; without these calls each training
    forward is one. Tokens that are not finite are not counted.
    """

    near_features = False
    _gathered_K: Tensor | None

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.register_usage()
        self._forget_counts()
        self.register_load_state_dict_post_hook(LearntQuantiser._forget_counts)

    @abstractmethod
    def quantise(self, feat_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """f(v) (B, L, C) with its gradient, and the code of each feature, int64 (B, L), computed without autocast."""

    @abstractmethod
    def codebook_of(self, level: int) -> Tensor:
        """The vector of each code, (K, C), without gradient; `level` is 0."""

    def forward(
        self,
        feat_BLC: Tensor,
        valid_BL: Tensor,
        sample_key_B: Tensor | None = None,
        num_texts_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `Quantiser.__call__`; an image counts once, and nothing is drawn."""
        with torch.autocast(feat_BLC.device.type, enabled=False):
            embed_BLC, index_BL = self.quantise(feat_BLC)
        if self.training and not is_recomputing():
            self._gather(feat_BLC.detach(), valid_BL, index_BL)
            if not self._in_step:
                self.end_step(applied=True)
        return embed_BLC.to(feat_BLC.dtype), index_BL.masked_fill(~valid_BL, -1)

    @torch.no_grad()
    def codes_of(self, feat_BLC: Tensor) -> Tensor:
        """As `Quantiser.codes_of`."""
        with torch.autocast(feat_BLC.device.type, enabled=False):
            return self.quantise(feat_BLC)[1].unsqueeze(-1)

    @torch.no_grad()
    def distances(self, feat_BLC: Tensor, index_BLQ: Tensor) -> Tensor:
        """From the feature to the vector of its code."""
        return (feat_BLC.float() - self.codebook_of(0).float()[index_BLQ[..., 0]]).norm(dim=-1, keepdim=True)

    def reset(self) -> None:
        """No usage; parameters have initial values of their own."""
        self.reset_usage()
        self._forget_counts()

    def begin_step(self) -> None:
        """As `Quantiser.begin_step`."""
        self._in_step, self._gathered_K, self._counts_QK = True, None, None

    @torch.no_grad()
    def end_step(self, *, applied: bool) -> None:
        """Counts the step's codes on all ranks."""
        gathered_K, self._in_step, self._gathered_K = self._gathered_K, False, None
        if applied and gathered_K is not None:
            self._counts_QK = all_reduce_sum_(gathered_K)
            self.count(self._counts_QK)

    @torch.no_grad()
    def _gather(self, feat_BLC: Tensor, valid_BL: Tensor, index_BL: Tensor) -> None:
        usable_BL = valid_BL & finite_rows(feat_BLC)
        self.count_non_finite(valid_BL, usable_BL)
        counts_K = self.usage.new_zeros(self.num_codes)
        # Here the index is of all tokens: padding and what is not finite have a weight of 0.
        counts_K.index_add_(0, index_BL.flatten(), usable_BL.flatten().to(counts_K.dtype))
        self._gathered_K = counts_K if self._gathered_K is None else self._gathered_K + counts_K

    def _forget_counts(self, *_: object) -> None:
        self._in_step = False
        self._gathered_K = None
        self.forget_counts()
