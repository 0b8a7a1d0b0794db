"""Exact lookups under the quantiser of Meta's `encodec`.

Letters: B sequences, T steps in time, L levels, N features, K codes, C channels.
"""

from torch import Tensor, nn

from soho_fast.adapters import swapping
from soho_fast.adapters.swapping import Accelerated, ResidualStack, needs

with needs(__name__, "encodec>=0.1.1"):
    from encodec.quantization import core_vq


class EuclideanCodebook(Accelerated, core_vq.EuclideanCodebook):
    """`quantize((N, C)) -> int64 (N,)` in the buffer `embed`; training, too, looks up through it."""

    original = core_vq.EuclideanCodebook
    codebook_at = "embed"
    replaces = ("quantize", "init_embed_")
    embed: Tensor

    def quantize(self, x: Tensor) -> Tensor:
        return self.nearest_code(x, self.embed)

    def init_embed_(self, data: Tensor) -> None:
        if not self.inited:
            self.forget()  # the original writes past the version counter
        super().init_embed_(data)


class ResidualVectorQuantization(ResidualStack, core_vq.ResidualVectorQuantization):
    """`encode((B, C, T), L) -> int64 (L, B, T)`."""

    original = core_vq.ResidualVectorQuantization
    codebook_at = "_codebook"
    layers: nn.ModuleList

    def encode(self, x: Tensor, n_q: int | None = None) -> Tensor:
        return self.encoded(x, n_q or len(self.layers))


def find(model: nn.Module) -> tuple[list[swapping.Found], list[str]]:
    """As `swapping.find`."""
    return swapping.find(model, swapping.by_original(EuclideanCodebook, ResidualVectorQuantization))
