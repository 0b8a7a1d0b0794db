"""Gradients of a lookup other than straight-through's.

Letters: N features, K codes, C channels.
"""

import torch
from torch import Tensor

from soho_fast.ops.backends import op_for
from soho_fast.ops.codebook_lookup import check_chosen, reference
from soho_fast.ops.forward_mode import pass_on


def rotation_trick(features: Tensor, codebook: Tensor, index: Tensor, *, backend: str | None = None) -> Tensor:
    """The chosen codes with the gradient of the rotation trick (Fifty et al., arXiv 2410.06424, section 4.2).

    The forward has the bits of `straight_through`. Backward features get `|d| / |x| R^T grad`, in float32, where R
    rotates x to d in the plane of both; a feature of zeros gets the gradient as it is.

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
    fixed, code = features.detach().float(), quantized.float()
    length, code_length = (torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (fixed, code))
    unit, code_unit = (torch.nn.functional.normalize(t, dim=-1) for t in (fixed, code))
    between = torch.nn.functional.normalize(unit + code_unit, dim=-1)
    moving = features.float()
    along, across = ((moving * t).sum(-1, keepdim=True) for t in (unit, between))
    scale = code_length / torch.where(length > 0, length, 1.0)
    rotated = scale * (moving - 2 * across * between + 2 * along * code_unit)
    rotated = torch.where(length > 0, rotated, moving)
    return pass_on(rotated.to(features.dtype), quantized)


def diveq(
    features: Tensor,
    codebook: Tensor,
    index: Tensor,
    *,
    variance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Near the chosen codes, differentiable in features and codebook: DiVeQ (Vali et al., ICLR 2026, arXiv 2509.26469).

    `x + |d - x| u`, where u is the direction of `d - x` plus normal noise, and constant for the gradient. The codebook
    learns by it: neither a moving average nor a loss of its own is needed. For training; in evaluation take
    `straight_through`.

    Args:
        features: (..., N, C) float32, bfloat16 or float16.
        codebook: (K, C) or (..., K, C).
        index: int64 (..., N); a negative index (padding) gives a row of zeros, with no gradient.
        variance: of the noise in each channel; the paper's is 1e-3. 0 gives the codes but for rounding.
        generator: of the noise.

    Returns:
        quantized (..., N, C) in the type of features, computed in float32.

    Raises:
        TypeError, ValueError: types, shapes, devices or a variance that do not fit.
    """
    check_chosen(features, codebook, index)
    if isinstance(variance, bool) or not isinstance(variance, (int, float)) or not variance >= 0:
        raise ValueError(f"variance: expected a number of at least 0, got {variance!r}")
    moving = features.float()
    apart = reference.gather(codebook, index.clamp(min=0)).float() - moving
    noise = torch.empty_like(moving.detach()).normal_(generator=generator)
    direction = torch.nn.functional.normalize(apart.detach() + variance**0.5 * noise, dim=-1)
    quantized = moving + torch.linalg.vector_norm(apart, dim=-1, keepdim=True) * direction
    return torch.where((index >= 0).unsqueeze(-1), quantized, 0.0).to(features.dtype)
