"""Recall at K for retrieval, from a matrix of scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def recall_at(scores_QN: torch.Tensor, target_Q: torch.Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries whose target is among the K best-scored candidates.

    Equal scores are broken at random, in expectation: with g candidates better than the target and t others equal to
    it, the target is among the first K with probability clip((K - g) / (t + 1), 0, 1). A model that scores everything
    alike therefore gets exactly chance, K / N.

    Args:
        scores_QN: Scores of N candidates for each of Q queries, higher is better.
        target_Q: Index of the right candidate of each query.
        ks: The values of K.

    Returns:
        Recall for each K, between 0 and 1.

    Raises:
        ValueError: The shapes do not fit, or a score is NaN.
    """
    if scores_QN.ndim != 2 or target_Q.shape != scores_QN.shape[:1]:
        raise ValueError(
            f"expected scores (Q, N) and targets (Q,), got {tuple(scores_QN.shape)} and {tuple(target_Q.shape)}"
        )
    if torch.isnan(scores_QN).any():
        raise ValueError("scores hold NaN; the model's output is not finite")
    target_score_Q1 = scores_QN.gather(1, target_Q[:, None])
    better_Q = (scores_QN > target_score_Q1).sum(1).double()
    equal_Q = (scores_QN == target_score_Q1).sum(1).double()
    return {k: ((k - better_Q) / equal_Q).clamp(0.0, 1.0).mean().item() for k in ks}
