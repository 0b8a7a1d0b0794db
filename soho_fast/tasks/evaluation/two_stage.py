"""Retrieval in two stages: vectors of images and of texts, each made alone, choose the pairs to read together.

Scoring every pair takes I x T passes of the Transformer (the paper's open question, appendix A.4). Here each image and
each text makes one pass without the other; the inner products of their vectors name the k best texts of each image and
the k best images of each text, and only these pairs are scored.

Shapes: I images, T texts, E channels of a vector.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from soho_fast.common.processes import Processes
from soho_fast.tasks.evaluation.metrics.recall import retrieval_recall
from soho_fast.tasks.evaluation.pair_scoring import ImageBlocks, PairScorer
from soho_fast.tasks.evaluation.sharing import Sharing, compute_parts

# Texts whose vectors are made together: fixed, so that they do not depend on the number of processes.
_TEXT_BATCH = 256
K_TRIED = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256, 320, 400, 512)


def contrastive_scores(scorer: PairScorer, images: ImageBlocks, processes: Processes | None = None) -> Tensor:
    """Inner products of the vectors of all images and texts, float32 (I, T) on the CPU; the same on every process."""
    sharing = Sharing(processes or Processes())
    vectors = compute_parts(
        len(images),
        lambda number, loaded: scorer.image_vectors(images.tokens(number, loaded)),
        sharing,
        load=images.load,
        workers=images.workers,
    )
    image_IE = torch.cat(vectors)
    order_T = np.argsort(scorer.length_T, kind="stable")
    ends = np.flatnonzero(np.diff(scorer.length_T[order_T])) + 1
    batches = [
        alike[begin : begin + _TEXT_BATCH]
        for alike in np.split(order_T, ends)
        for begin in range(0, len(alike), _TEXT_BATCH)
    ]
    parts = compute_parts(len(batches), lambda number, _: scorer.text_vectors(batches[number]), sharing)
    # Vectors come by length of the texts; here they go back to their own rows.
    text_TE = torch.empty(len(order_T), image_IE.shape[1])
    text_TE[torch.from_numpy(order_T)] = torch.cat(parts)
    return image_IE @ text_TE.T


def best_pairs(contrastive_IT: Tensor, k: int) -> list[np.ndarray]:
    """For each image, ascending, its `k` best texts and those texts that have it among their `k` best images."""
    num_images, num_texts = contrastive_IT.shape
    chosen_IT = torch.zeros(num_images, num_texts, dtype=torch.bool)
    chosen_IT.scatter_(1, contrastive_IT.topk(min(k, num_texts), dim=1).indices, True)
    chosen_IT.scatter_(0, contrastive_IT.topk(min(k, num_images), dim=0).indices, True)
    return [np.flatnonzero(row) for row in chosen_IT.numpy()]


def ranked_in_two_stages(contrastive_IT: Tensor, pairs: Sequence[np.ndarray], logits: Sequence[Tensor]) -> Tensor:
    """Scores (I, T) that order scored pairs by their logits, and all others, below them, by the contrastive scores."""
    lowest = min((float(logit_of.min()) for logit_of in logits if len(logit_of)), default=0.0)
    # At most `lowest` - 1: below all pairs that were read, in their own order.
    scores_IT = contrastive_IT - contrastive_IT.max() + lowest - 1.0
    for row_T, texts, logit_of in zip(scores_IT, pairs, logits, strict=True):
        row_T[torch.from_numpy(texts)] = logit_of
    return scores_IT


def choose_k(contrastive_IT: Tensor, logit_IT: Tensor, image_of_text_T: Tensor, max_loss: float) -> int:
    """The smallest k of `K_TRIED` with which R@1, either way, is at most `max_loss` below scoring every pair.

    Args:
        contrastive_IT: The contrastive scores on images and texts held out for this choice.
        logit_IT: The full model's on the same pairs, all of them.
        image_of_text_T: int64, the image of each text.
        max_loss: As a share: 0.005 is half a point.

    Returns:
        k; among more candidates the right one falls behind as many more, so multiply by their ratio.

    Raises:
        ValueError: No k that leaves pairs out keeps the loss.
    """
    full = retrieval_recall(logit_IT, image_of_text_T, (1,))
    for k in K_TRIED:
        pairs = best_pairs(contrastive_IT, k)
        # From here on every pair would be read.
        if all(len(texts) == contrastive_IT.shape[1] for texts in pairs):
            break
        logits = [row[torch.from_numpy(texts)] for row, texts in zip(logit_IT, pairs, strict=True)]
        short = retrieval_recall(ranked_in_two_stages(contrastive_IT, pairs, logits), image_of_text_T, (1,))
        losses = (
            full.image_to_text[1] - short.image_to_text[1],
            full.text_to_image[1] - short.text_to_image[1],
        )
        if max(losses) <= max_loss + 1e-9:
            return k
    raise ValueError(
        f"data.scoring: no k up to {k} keeps R@1 within {100 * max_loss:.2f} points of scoring every pair; score all, "
        "or train the contrastive head longer"
    )
