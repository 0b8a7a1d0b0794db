"""Exact lookups under the quantiser of Kyutai's `moshi`, which is that of its Mimi.

Letters: B sequences, T steps in time, L levels, N features, K codes, C channels.
"""

from torch import Tensor, nn

from soho_fast.adapters import swapping
from soho_fast.adapters.swapping import ResidualStack, SummedCodebook, needs

with needs(__name__, "moshi>=0.2.13"):
    from moshi.quantization import core_vq


class EuclideanCodebook(SummedCodebook, core_vq.EuclideanCodebook):
    """`_quantize((N, C)) -> int64 (N,)` in `embedding`; training, too, looks up through it."""

    original = core_vq.EuclideanCodebook
    codebook_at = "embedding_sum"
    made_at = "_embedding"
    replaces = ("_quantize",)
    embedding_sum: Tensor
    cluster_usage: Tensor
    epsilon: float

    @property
    def embedding(self) -> Tensor:
        return self.centroids(self.embedding_sum, self.cluster_usage, self.epsilon)

    def _quantize(self, x: Tensor) -> Tensor:
        return self.nearest_code(x, self.embedding)


class ResidualVectorQuantization(ResidualStack, core_vq.ResidualVectorQuantization):
    """`encode((B, C, T), L) -> int64 (L, B, T)`."""

    original = core_vq.ResidualVectorQuantization
    codebook_at = "_codebook"
    codes_at = "embedding"
    layers: nn.ModuleList

    def encode(self, x: Tensor, n_q: int | None = None) -> Tensor:
        return self.encoded(x, n_q or len(self.layers))


def find(model: nn.Module) -> tuple[list[swapping.Found], list[str]]:
    """As `swapping.find`."""
    return swapping.find(model, swapping.by_original(EuclideanCodebook, ResidualVectorQuantization))
