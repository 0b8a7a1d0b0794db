"""The dead-code reset: codes that are hardly used take the place of features of the batch (ours; the paper has none).

Q levels of K codes, R candidates for a reset, C channels; X = Q * C.
"""

import torch
from torch import Tensor

from .draws import draw_from_all_ranks

Candidates = tuple[Tensor, Tensor]
"""Features that unused codes may be reset to: their hashes (R,), and what of each every level looks up (R, Q, C)."""


def joined(candidates: Candidates | None, drawn: Candidates, limit: int) -> Candidates:
    """Those that a forward has drawn, with those of its step before: at most `limit`, of the smallest hashes."""
    if candidates is None:
        return drawn
    key_R, rests_RQC = (torch.cat(parts) for parts in zip(candidates, drawn, strict=True))
    # The smallest hashes of both are those of one draw from both.
    key_R, pick_R = key_R.topk(min(limit, len(key_R)), largest=False, sorted=True)
    return key_R, rests_RQC[pick_R]


def new_codes(candidates: Candidates, unused_QK: Tensor, num_levels: int, limit: int) -> tuple[Tensor, Tensor]:
    """In each level the j-th unused code takes the j-th candidate; on the device, and the same on every rank.

    Args:
        candidates: those of this rank.
        unused_QK: bool, codes that may be reset, the same on all ranks.
        num_levels: Q.
        limit: candidates of all ranks at most, and so codes of a level that are reset at once.

    Returns:
        bool (QK,), codes that are reset, and what they become, (QK, C).
    """
    key_R, rests_RQC = candidates
    rests_RX, available_R = draw_from_all_ranks(key_R, rests_RQC.flatten(1), limit)
    unused_QxK = unused_QK.view(num_levels, -1)
    # The number of each unused code among those of its level; of used codes without a meaning.
    place_QxK = unused_QxK.long().cumsum(1) - 1
    # An index for all codes; where it means nothing `reset_QK` is False.
    row_QxK = place_QxK.clamp(0, len(rests_RX) - 1)
    reset_QK = (unused_QxK & (place_QxK < len(rests_RX)) & available_R[row_QxK]).flatten()
    level_Q1 = torch.arange(num_levels, device=row_QxK.device).unsqueeze(1)
    # level_Q1 broadcasts: each level takes its own channels of its candidates.
    candidate_QKC = rests_RX.view(len(rests_RX), num_levels, -1)[row_QxK, level_Q1].flatten(0, 1)
    return reset_QK, candidate_QKC
