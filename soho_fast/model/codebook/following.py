"""What all codes do when all features move together (`dictionary_follow`; ours, the paper has none).

K codes of the first level, C channels.
"""

import torch
from torch import Tensor

# How far the running mean moves to that of a step. Ours: a tenth stays behind features that move by a fifth of their
# deviation a step, and with two fifths features that do not move lose nothing either.
_MOMENTUM = 0.2


def follow(
    mean_C: Tensor,
    variance_C: Tensor,
    counts_K: Tensor,
    sums_KC: Tensor,
    squares_C: Tensor,
    *,
    num_updates: int,
    affine: bool,
) -> tuple[Tensor, Tensor] | None:
    """Moves the running mean and variance of the features, in place, to those of a step.

    Args:
        mean_C, variance_C: the running ones.
        counts_K, sums_KC, squares_C: of the step's features, all ranks: how many each code of the first level has,
            their sum, and the sum of all features' squares.
        num_updates: steps before this one.
        affine: whether codes spread as the features do; else only their mean moves.

    Returns:
        shift (C,) and scale (C,): codes of the first level become `code * scale + shift`, and those of further levels,
        in which nothing of the features' mean is left, `code * scale`. `None` while the mean is still finding its
        place: codes stay.
    """
    total = counts_K.sum()
    momentum = max(_MOMENTUM, 1.0 / (num_updates + 1))
    # Codes that have learnt without following (`init_from`) follow from the first step that has features.
    known = mean_C.any()
    weight = torch.where(known, momentum, torch.ones_like(total))
    mean_now_C = sums_KC.sum(0) / total.clamp(min=1.0)
    variance_now_C = (squares_C / total.clamp(min=1.0) - mean_now_C.square()).clamp(min=0.0)
    before_C, spread_C = mean_C.clone(), variance_C.clone()
    mean_C.lerp_(torch.where(total > 0, mean_now_C, before_C), weight)
    variance_C.lerp_(torch.where(total > 1, variance_now_C, spread_C), weight)
    if momentum > _MOMENTUM:
        return None
    scale_C = torch.ones_like(spread_C)
    if affine:
        scale_C = torch.where(known & (spread_C > 0), (variance_C / spread_C).sqrt(), 1.0)
    return torch.where(known, mean_C - before_C * scale_C, 0.0), scale_C
