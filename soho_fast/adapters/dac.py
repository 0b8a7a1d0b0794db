"""Exact lookups under the quantiser of Descript's `dac`.

Letters: B sequences, T steps in time, N features, C channels.
"""

from torch import Tensor, nn
from torch.nn import functional

from soho_fast.adapters import swapping
from soho_fast.adapters.swapping import Accelerated, needs

with needs(__name__, "descript-audio-codec>=1"):
    from dac.nn import quantize


class VectorQuantize(Accelerated, quantize.VectorQuantize):
    """`decode_latents((B, C, T)) -> codes (B, C, T), index int64 (B, T)`, by cosine."""

    original = quantize.VectorQuantize
    codebook_at = "codebook.weight"
    replaces = ("decode_latents",)
    metric = "cosine"
    codebook: nn.Embedding

    def decode_latents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        feat_BTC = latents.transpose(1, 2)
        index_BT = self.nearest_code(feat_BTC.flatten(0, 1), self.codebook.weight).view(feat_BTC.shape[:2])
        return functional.embedding(index_BT, self.codebook.weight).transpose(1, 2), index_BT


def find(model: nn.Module) -> tuple[list[swapping.Found], list[str]]:
    """As `swapping.find`."""
    return swapping.find(model, swapping.by_original(VectorQuantize))
