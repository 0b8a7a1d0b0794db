"""The codebook of a prepared model, packed for lookups."""

from torch import Tensor

from soho_fast import ops

from .layers import Layout


class PackedCodes(Layout):
    """The lookup's own form of a codebook, made anew once that has changed."""

    def __call__(self, codebook_KC: Tensor) -> ops.PreparedCodebook:
        """What to look up in, in the codebook's place."""
        return self.get(ops.prepare_codebook, codebook_KC)
