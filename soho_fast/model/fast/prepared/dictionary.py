"""The codebook of a prepared model, packed for lookups."""

from functools import partial

from torch import Tensor

from soho_fast import ops

from .layers import Layout


class PackedCodes(Layout):
    """The lookup's own form of a codebook, made again once that has changed."""

    def __call__(self, codebook_QKC: Tensor, num_levels: int) -> ops.PreparedCodebook:
        """What to look up in, in the place of a codebook whose rows are those of one level after the other."""
        return self.get(partial(_pack, num_levels), codebook_QKC, about=num_levels)


def _pack(num_levels: int, codebook_QKC: Tensor) -> ops.PreparedCodebook:
    return ops.prepare_codebook(codebook_QKC.unflatten(0, (num_levels, -1)) if num_levels > 1 else codebook_QKC)
