"""Data-dependent init: codes drawn from the features of a batch, of all ranks together. The paper's codes are random.

Q levels that have codes, K codes of each, C channels.
"""

import torch
from torch import Tensor

from soho_fast import ops

from .draws import draw_from_all_ranks

# Codes beyond the number of available features start near a feature; the spread is ours, in units of the features'
# own standard deviation: enough to tell the copies apart, small beside the distance between features.
_COPY_NOISE = 0.1


def codes_from_features(drawn: tuple[Tensor, Tensor], books_QKC: Tensor, num_codes: int, seed: int) -> Tensor | None:
    """The codes of the next level, (K, C) float32; `None`: no rank has a usable feature. Waits for the device.

    Args:
        drawn: features that this rank has drawn, as `Tokens.draw` gives them, at most `num_codes`.
        books_QKC: the codes of the levels before, Q may be 0: the next level's are drawn from what these leave.
        num_codes, seed: how many, and of what the copies' noise depends on.
    """
    feat_RC, available_R = draw_from_all_ranks(*drawn, num_codes)
    num_available, level = int(available_R.sum()), len(books_QKC)
    if num_available == 0:
        return None
    if level:
        feat_RC = ops.residual_lookup(feat_RC, books_QKC, return_residual=True)[2]
    copy_K = torch.arange(num_codes, device=feat_RC.device) % num_available
    # On the CPU, so that every rank and device adds the same noise.
    generator = torch.Generator().manual_seed(seed + level)
    noise_KC = torch.randn(feat_RC[copy_K].shape, generator=generator).to(feat_RC.device)
    # correction=0: of a single feature it is 0, not NaN.
    spread_C = feat_RC[:num_available].std(0, correction=0) * _COPY_NOISE
    codebook_KC = feat_RC[copy_K]
    codebook_KC[num_available:] += (noise_KC * spread_C)[num_available:]
    return codebook_KC
