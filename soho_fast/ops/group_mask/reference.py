"""Specification of grouped masking in plain torch.

Letters: B images, L tokens per image, C channels.
"""

import torch
from torch import Tensor

IGNORED = -100  # cross-entropy's ignore_index


def sample_group(index_BL: Tensor, valid_BL: Tensor | None, uniform_B: Tensor) -> Tensor:
    """The floor(uniform * n)-th of the n distinct labels present in each row, ascending; -1 in a row without labels."""
    num_images, num_tokens = index_BL.shape
    if num_tokens == 0:
        return index_BL.new_full((num_images,), -1)
    absent = torch.iinfo(torch.int64).max
    present_BL = index_BL >= 0
    if valid_BL is not None:
        present_BL = present_BL & valid_BL
    # Sorted, with what is absent at the end, each label is a run; the first position of each run counts it once.
    sorted_BL = torch.where(present_BL, index_BL, absent).sort(dim=1).values
    first_BL = sorted_BL != absent
    first_BL[:, 1:] &= sorted_BL[:, 1:] != sorted_BL[:, :-1]
    num_labels_B = first_BL.sum(1)
    # The product may round up to n.
    rank_B = torch.minimum((uniform_B * num_labels_B).floor().long(), num_labels_B - 1)
    chosen_BL = first_BL & (first_BL.cumsum(1) == rank_B[:, None] + 1)
    # One position of a row is chosen, so the sum is its label.
    return torch.where(num_labels_B > 0, torch.where(chosen_BL, sorted_BL, 0).sum(1), -1)


def _hits(index_BL: Tensor, target_B: Tensor, valid_BL: Tensor | None) -> Tensor:
    # A target of -1 would else hit padding.
    hit_BL = (index_BL == target_B[:, None]) & (target_B >= 0)[:, None]
    return hit_BL if valid_BL is None else hit_BL & valid_BL


def group_mask(
    features_BLC: Tensor, index_BL: Tensor, mask_token_C: Tensor, target_B: Tensor, valid_BL: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Features with every token of the target group replaced, and the labels (the index there, -100 elsewhere)."""
    hit_BL = _hits(index_BL, target_B, valid_BL)
    masked_BLC = torch.where(hit_BL[..., None], mask_token_C, features_BLC).contiguous()
    return masked_BLC, torch.where(hit_BL, index_BL, IGNORED)


def group_mask_(
    features_BLC: Tensor, index_BL: Tensor, mask_token_C: Tensor, target_B: Tensor, valid_BL: Tensor | None
) -> Tensor:
    """`group_mask` in place; returns the labels."""
    masked_BLC, labels_BL = group_mask(features_BLC, index_BL, mask_token_C, target_B, valid_BL)
    features_BLC.copy_(masked_BLC)
    return labels_BL
