"""Exact lookups under the quantiser of Kyutai's `moshi`, which is that of its Mimi.

Letters: N features, K codes, C channels.
"""

from torch import Tensor, nn

from soho_fast.adapters import swapping
from soho_fast.adapters.swapping import SummedCodebook

try:
    from moshi.quantization import core_vq
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"soho_fast.adapters.moshi needs the package {str(error.name).partition('.')[0]}: pip install 'moshi>=0.2.13'",
        name=error.name,
    ) from error


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


def find(model: nn.Module) -> tuple[list[swapping.Found], list[str]]:
    """As `swapping.find`."""
    accelerated: dict[type, type[swapping.Accelerated]] = {core_vq.EuclideanCodebook: EuclideanCodebook}
    return swapping.find(model, accelerated.get)
