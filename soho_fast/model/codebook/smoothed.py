"""VQ-VAE's moving average in the place of eq. 4: running counts and sums with Laplace smoothing (the released code's).

Q levels of K codes, C channels; QxK is a table with a row for each level.
"""

import torch
from torch import Tensor


def smoothed_ema_(
    codebook_QKC: Tensor,
    size_QK: Tensor,
    sum_QKC: Tensor,
    counts_QK: Tensor,
    sums_QKC: Tensor,
    *,
    decay: float,
    eps: float,
    num_levels: int,
) -> None:
    """Moves the codes in place (van den Oord et al. 2017, appendix A.1), and the running counts and sums.

    Args:
        codebook_QKC: the codes.
        size_QK, sum_QKC: running counts and sums of their assigned features.
        counts_QK, sums_QKC: those of the step.
        decay, eps: of the running ones, and of the smoothing.
        num_levels: Q, each smoothed by itself.
    """
    size_QK.lerp_(counts_QK, 1.0 - decay)
    sum_QKC.lerp_(sums_QKC, 1.0 - decay)
    # A view of each level by itself: a level that is not drawn yet must not smooth another.
    size_QxK = size_QK.view(num_levels, -1)
    total_Q1 = size_QxK.sum(1, keepdim=True)
    # Counts plus eps, brought back to their sum: a code without features is divided by little, not by 0.
    smoothed_QxK = (size_QxK + eps) / (total_Q1 + size_QxK.shape[1] * eps) * total_Q1
    # Statistics that are empty say nothing of where the codes are.
    empty_QK1 = (total_Q1 <= 0).expand_as(size_QxK).reshape(-1, 1)
    moved_QKC = sum_QKC / smoothed_QxK.reshape(-1, 1)
    codebook_QKC.copy_(torch.where(empty_QK1, codebook_QKC, moved_QKC))
