"""VQ-VAE's moving average in the place of eq. 4: running counts and sums with Laplace smoothing.

K codes, C channels.
"""

import torch
from torch import Tensor

# As the released code's.
_EPS = 1e-5


def smoothed_ema_(
    codebook_KC: Tensor, size_K: Tensor, sum_KC: Tensor, counts_K: Tensor, sums_KC: Tensor, decay: float
) -> None:
    """Moves the codes in place (van den Oord et al. 2017, appendix A.1), and the running counts and sums.

    Args:
        codebook_KC: the codes.
        size_K, sum_KC: running counts and sums of their assigned features.
        counts_K, sums_KC: those of the step.
        decay: of the running ones.
    """
    size_K.lerp_(counts_K, 1.0 - decay)
    sum_KC.lerp_(sums_KC, 1.0 - decay)
    total = size_K.sum()
    # Counts plus eps, brought back to their sum: a code without features is divided by little, not by 0.
    smoothed_K = (size_K + _EPS) / (total + len(size_K) * _EPS) * total
    # Statistics that are empty say nothing of where the codes are.
    codebook_KC.copy_(torch.where(total <= 0, codebook_KC, sum_KC / smoothed_K.unsqueeze(1)))
