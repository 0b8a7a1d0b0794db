"""Specification of the codebook update in plain torch.

Letters: N features, K codes, C channels.
"""

import torch
from torch import Tensor

_CONVERTED = 1 << 17  # elements of features held as float64 at a time, in the cache


def codebook_stats(
    features: Tensor, index: Tensor, num_codes: int, valid: Tensor | None, wide: bool = False
) -> tuple[Tensor, Tensor]:
    """How many features are assigned to each code, and their sum.

    `sums` adds the features of a code in ascending position in float64, starting from zero.

    Args:
        features: (..., C). index: int64 (...). valid: bool (...) or None. wide: what is returned is not rounded.

    Returns:
        counts (K,), sums (K, C), float64 where `wide`, else rounded to float32.
    """
    wanted = torch.float64 if wide else torch.float32
    features_NC = features.reshape(index.numel(), features.shape[-1])
    index_N = index.reshape(-1)
    kept_N = index_N >= 0
    if valid is not None:
        kept_N = kept_N & valid.reshape(-1)
    if index.device.type == "cpu" and bool((kept_N & (index_N >= num_codes)).any()):
        worst = int(torch.where(kept_N, index_N, -1).max())
        raise ValueError(f"index: expected values below num_codes = {num_codes}, got {worst}")
    # What is left out goes to a row behind the codes, which is cut off below.
    target_N = torch.where(kept_N, index_N, num_codes)
    counts_K = torch.bincount(target_N, minlength=num_codes + 1)[:num_codes].to(wanted)
    sums_KC = torch.zeros(num_codes + 1, features.shape[-1], dtype=torch.float64, device=features.device)
    if features.device.type == "cpu":
        step = max(1, _CONVERTED // max(1, features_NC.shape[1]))
        for target_M, rows_MC in zip(target_N.split(step), features_NC.split(step), strict=True):
            sums_KC.index_add_(0, target_M, rows_MC.double())
    else:
        sums_KC.index_put_((target_N,), features_NC.double(), accumulate=True)  # sorts: index_add_ would race
    # A copy where `wide` needs no cast: an op returns no view of a longer tensor.
    return counts_K, sums_KC[:num_codes].to(wanted, copy=True)


def codebook_ema_(codebook: Tensor, counts: Tensor, sums: Tensor, decay: float) -> None:
    """Eq. 4 in place, rounded to float32 at each step: `d <- decay * d + (1 - decay) * (sums / counts)`, counts > 0."""
    # The clamp only avoids 0 / 0: codes without features stay as they are.
    mean_KC = sums / counts.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codebook.copy_(torch.where((counts > 0)[:, None], codebook * decay + mean_KC * (1 - decay), codebook))


def scatter_mean_ema_(codebook: Tensor, features: Tensor, index: Tensor, decay: float, valid: Tensor | None) -> None:
    """`codebook_stats` and `codebook_ema_` in one."""
    counts_K, sums_KC = codebook_stats(features, index, codebook.shape[0], valid)
    codebook_ema_(codebook, counts_K, sums_KC, decay)
