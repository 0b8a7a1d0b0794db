"""Specification of the residual lookup in plain torch.

Letters: N features, L levels, K codes, C channels.
"""

import torch
from torch import Tensor

from soho_fast.ops.codebook_lookup.reference import codebook_lookup


def residual_lookup(
    features: Tensor,
    codebooks: Tensor,
    num_levels: int,
    return_residual: bool,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Look up the nearest code, subtract it, look up what is left in the next codebook, and so on.

    What is left starts as the features in float32, the sum of the codes as zeros; each step rounds both to float32
    once.

    Args:
        features: (..., N, C). codebooks: (L, K, C), or one (K, C) for all levels. packed: not used here.

    Returns:
        the sum of the chosen codes (..., N, C) in the type of features, index int64 (..., N, L), and what is left,
        float32 (..., N, C), empty (0,) unless asked for.
    """
    residual = features.float()
    # float32 as well, though it is returned in the type of features: it is rounded to that once.
    total = torch.zeros_like(residual, memory_format=torch.contiguous_format)
    indices = []
    for level in range(num_levels):
        codebook_KC = codebooks if codebooks.dim() == 2 else codebooks[level]
        indices.append(codebook_lookup(residual, codebook_KC, False, False)[1])
        codes = codebook_KC[indices[-1]].float()
        # Rounded to float32 at each level, as a loop over the levels would: later lookups see these very bits.
        residual, total = residual - codes, total + codes
    return (
        total.to(features.dtype),
        torch.stack(indices, -1),
        residual.contiguous() if return_residual else residual.new_empty(0),
    )
