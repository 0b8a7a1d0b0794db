"""Recall at K for retrieval, from a matrix of scores.

Shapes: Q queries, N candidates; I images, T texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Entries of the score matrix looked at together: bounds the memory beside the scores themselves.
_CHUNK = 1 << 24


def recall_at(
    scores_QN: torch.Tensor,
    target_Q: torch.Tensor,
    ks: Sequence[int] = (1, 5, 10),
    *,
    group_N: torch.Tensor | None = None,
) -> dict[int, float]:
    """Share of queries with a right candidate among the K best-scored.

    Equal scores are broken at random, in expectation. Let b candidates score better than the best right one, and let g
    right and t wrong ones share its score: a right one is among the first K unless the K - b places that are left go to
    wrong ones, which has probability C(t, K - b) / C(t + g, K - b). A model that scores everything alike therefore gets
    exactly chance, K / N with one right candidate.

    Args:
        scores_QN: Scores of N candidates for each of Q queries, higher is better; floats or integers.
        target_Q: int64, the right candidate of each query, or its group where `group_N` is given.
        ks: The values of K.
        group_N: int64, the group of each candidate: all of a group are right for the queries whose target it is, as the
            five captions of an image are. None: each candidate is its own group.

    Returns:
        Recall for each K, between 0 and 1.

    Raises:
        ValueError: A score is NaN, or a query has no right candidate.
    """
    num_queries, num_candidates = scores_QN.shape
    if group_N is None:
        group_N = torch.arange(num_candidates, device=scores_QN.device)
    total, kind = dict.fromkeys(ks, 0.0), scores_QN.dtype
    # No value of the type is below.
    lowest = float("-inf") if kind.is_floating_point else torch.iinfo(kind).min
    step = max(1, _CHUNK // max(1, num_candidates))
    for begin in range(0, num_queries, step):
        scores_RN = scores_QN[begin : begin + step]
        if torch.isnan(scores_RN).any():
            raise ValueError("scores hold NaN; the model's output is not finite")
        right_RN = target_Q[begin : begin + step, None] == group_N
        without = (~right_RN.any(1)).nonzero()
        if len(without):
            raise ValueError(f"query {begin + int(without[0])} has no right candidate; expected at least one")
        # A query is found by its best right candidate; the others come no earlier.
        best_R1 = scores_RN.masked_fill(~right_RN, lowest).amax(1, keepdim=True)
        better_R = (scores_RN > best_R1).sum(1).double()
        equal_RN = scores_RN == best_R1
        tied_R = equal_RN.sum(1).double()
        wrong_R = (equal_RN & ~right_RN).sum(1).double()
        for k in ks:
            total[k] += _share_found(k - better_R, wrong_R, tied_R).sum().item()
    return {k: value / num_queries for k, value in total.items()}


def mean_reciprocal_rank(scores_QN: torch.Tensor, target_Q: torch.Tensor) -> float:
    """Mean of 1 / rank of each query's one right candidate, equal scores in random order, in expectation.

    With b candidates better and e as good, itself among them: (1 / (b + 1) + ... + 1 / (b + e)) / e.

    Args:
        scores_QN: Scores of N candidates for each of Q queries, higher is better; none is NaN.
        target_Q: int64, the right candidate of each query.

    Returns:
        Between 1 / N and 1.
    """
    best_Q1 = scores_QN.gather(1, target_Q[:, None])
    better_Q = (scores_QN > best_Q1).sum(1).double()
    equal_Q = (scores_QN == best_Q1).sum(1).double()
    # Sums of reciprocals are differences of the digamma function.
    return float(((better_Q + equal_Q + 1).digamma() - (better_Q + 1).digamma()).div(equal_Q).mean())


def _share_found(places_R: torch.Tensor, wrong_R: torch.Tensor, tied_R: torch.Tensor) -> torch.Tensor:
    """1 - C(wrong, places) / C(tied, places); 0 without a place, 1 where the places outnumber the wrong."""
    missed_R = torch.ones_like(places_R)
    for taken in range(int(places_R.max().clamp(min=0))):
        share_R = ((wrong_R - taken) / (tied_R - taken).clamp(min=1)).clamp(min=0)
        missed_R = torch.where(taken < places_R, missed_R * share_R, missed_R)
    return 1 - missed_R


@dataclass(frozen=True)
class RetrievalRecall:
    """Recall at each K, between 0 and 1, both ways: an image asks for its texts (TR), a text for its image (IR)."""

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]


def retrieval_recall(
    scores_IT: torch.Tensor, image_of_text_T: torch.Tensor, ks: Sequence[int] = (1, 5, 10)
) -> RetrievalRecall:
    """Recall of images and texts where an image may have several texts (five in COCO and Flickr30K).

    An image counts as found when any of its texts is among the K best, as in all published results.

    Args:
        scores_IT: Score of every image with every text.
        image_of_text_T: int64, the image of each text.
        ks: The values of K.

    Raises:
        ValueError: A score is NaN, an image has no text, or a text names no image.
    """
    image_I = torch.arange(len(scores_IT), device=scores_IT.device)
    return RetrievalRecall(
        image_to_text=recall_at(scores_IT, image_I, ks, group_N=image_of_text_T),
        text_to_image=recall_at(scores_IT.T, image_of_text_T, ks),
    )


def retrieval_recall_in_folds(
    scores_IT: torch.Tensor, image_of_text_T: torch.Tensor, ks: Sequence[int] = (1, 5, 10), *, num_folds: int = 5
) -> RetrievalRecall:
    """The mean of `retrieval_recall` over equal folds of images, each with its own texts as the only candidates.

    COCO "1K" is this with the 5,000 test images of the Karpathy split in file order and five folds; it is an easier
    task than "5K", which is `retrieval_recall` on all of them.

    Raises:
        ValueError: As `retrieval_recall`; or the images do not make so many equal folds.
    """
    size, left = divmod(len(scores_IT), num_folds)
    if left or not size:
        raise ValueError(f"num_folds: expected a divisor of the {len(scores_IT):,} images, got {num_folds}")
    folds = []
    for begin in range(0, len(scores_IT), size):
        texts = ((image_of_text_T >= begin) & (image_of_text_T < begin + size)).nonzero().flatten()
        folds.append(retrieval_recall(scores_IT[begin : begin + size][:, texts], image_of_text_T[texts] - begin, ks))
    return RetrievalRecall(
        image_to_text={k: sum(fold.image_to_text[k] for fold in folds) / num_folds for k in ks},
        text_to_image={k: sum(fold.text_to_image[k] for fold in folds) / num_folds for k in ks},
    )
