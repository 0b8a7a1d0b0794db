"""The codebook of a prepared model, packed for lookups."""

from torch import Tensor

from soho_fast import ops

from .layers import Layout


class PackedCodes(Layout):
    """The lookup's own form of a codebook, made again once that has changed."""

    def __call__(self, codebook_QKC: Tensor, num_levels: int) -> ops.PreparedCodebook:
        """What to look up in, in the place of a codebook whose rows are those of one level after the other."""

        def pack(codes_QKC: Tensor) -> ops.PreparedCodebook:
            return ops.prepare_codebook(codes_QKC.unflatten(0, (num_levels, -1)) if num_levels > 1 else codes_QKC)

        return self.get(pack, codebook_QKC, about=num_levels)
