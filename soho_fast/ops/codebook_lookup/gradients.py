"""A gradient of the lookup other than straight-through's.

Letters: N features, K codes, C channels.
"""

from typing import Any

import torch
from torch import Tensor

from soho_fast.ops.backends import op_for
from soho_fast.ops.codebook_lookup import check_chosen


def rotation_trick(features: Tensor, codebook: Tensor, index: Tensor, *, backend: str | None = None) -> Tensor:
    """The chosen codes with the gradient of the rotation trick (Fifty et al., arXiv 2410.06424, section 4.2).

    The forward has the bits of `straight_through`. Backward features get `|d| / |x| R^T grad`, in float32, where R
    rotates x to d in the plane of both; a feature of zeros gets the gradient as it is, one that is not finite none.

    Args:
        features: (..., N, C) float32, bfloat16 or float16.
        codebook: (K, C) or (..., K, C); it gets no gradient.
        index: int64 (..., N); a negative index (padding) gives a row of zeros, with no gradient.
        backend: as in `codebook_lookup`.

    Returns:
        quantized (..., N, C) in the type of features.

    Raises:
        TypeError, ValueError: as `straight_through`.
    """
    check_chosen(features, codebook, index)
    op = op_for("straight_through", backend, features.device)
    quantized = op(features.detach(), codebook.detach(), index)
    real = ((index >= 0) & (index < codebook.shape[-2])).unsqueeze(-1)
    return _RotationTrick.apply(features, quantized, real)


class _RotationTrick(torch.autograd.Function):
    """(features, quantized, real) -> quantized, whose gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, quantized: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(features, quantized, real)
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        features, quantized, real = ctx.saved_tensors
        # R^T is the rotation of d to x.
        return _turned(quantized.detach(), features.detach(), grad, real, back=True), None, None


def _turned(start: Tensor, end: Tensor, vectors: Tensor, real: Tensor, back: bool = False) -> Tensor:
    """Vectors (..., C) as start is rotated to end, times |end| / |start|, or with `back` the inverse of that; where the
    feature, start or end, is zero as they are; zeros where it is not finite, or has no `real` code.

    With the unit vectors u, q of both: v - (u + q) (u + q).v / (1 + u.q) + 2 q u.v.
    """
    start, end, moving = start.float(), end.float(), vectors.float()
    length, end_length = (torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (start, end))
    per_length, per_end = (torch.where(t > 0, 1 / t, 0.0) for t in (length, end_length))
    # 1 + u.q. No unit vectors are made: to divide one number a row is less than a pass over the channels.
    one_more = 1 + (start * end).sum(-1, keepdim=True) * per_length * per_end
    of_start, of_end = ((t * moving).sum(-1, keepdim=True) * per for t, per in ((start, per_length), (end, per_end)))
    both = torch.where(one_more > 1e-6, (of_start + of_end) / one_more, 0.0)  # else they are opposite
    scale = length * per_end if back else end_length * per_length
    turned = (moving - (both * per_length) * start + ((2 * of_start - both) * per_end) * end) * scale
    of_feature = end_length if back else length
    turned = torch.where(of_feature > 0, turned, moving)
    return torch.where(real & of_feature.isfinite(), turned, 0.0).to(vectors.dtype)
