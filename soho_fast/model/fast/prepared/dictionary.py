"""The codebook of a prepared model, packed for lookups."""

from torch import Tensor

from soho_fast import ops

from .layers import Layout


class PackedCodes(Layout):
    """The lookup's own form of a codebook, made anew once that has changed.

    Args:
        num_levels: of the codebook, whose rows are those of one level after the other.
    """

    def __init__(self, num_levels: int = 1) -> None:
        self.num_levels = num_levels

    def __call__(self, codebook_QKC: Tensor) -> ops.PreparedCodebook:
        """What to look up in, in the codebook's place: (K, C), or (Q, K, C) for several levels."""
        return self.get(self._pack, codebook_QKC)

    def _pack(self, codebook_QKC: Tensor) -> ops.PreparedCodebook:
        if self.num_levels > 1:
            codebook_QKC = codebook_QKC.unflatten(0, (self.num_levels, -1))
        return ops.prepare_codebook(codebook_QKC)
