"""The draw of features that become codes: the same ones however a batch is divided among ranks and micro-batches.

B images, L tokens per image, C channels, R features drawn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from soho_fast.ops.hashing import mix64

from ..distributed import all_gather_rows, rank, world_size

_NO_FEATURE = torch.iinfo(torch.int64).max


@dataclass
class Tokens:
    """The features of a training forward.

    Args:
        feat_BLC: features, floating point, without gradient.
        valid_BL: bool, True at real tokens.
        usable_BL: bool, the real tokens that are finite: the others are never drawn.
        image_B: int64, what each image is known by, see `image_numbers`.
    """

    feat_BLC: Tensor
    valid_BL: Tensor
    usable_BL: Tensor
    image_B: Tensor

    def draw(self, num: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """At most `num` of this rank's usable features: their hashes (R,), smallest first, and the features (R, C).

        Each token gets a hash of its image's number, its own among the image's valid tokens and the step; the smallest
        win. So the draw depends neither on the number of ranks nor on the order, padding or division of the batch.
        """
        token_BL = self.valid_BL.long().cumsum(1)
        # Python's ints do not wrap: cut to what int64 holds.
        salt = ((seed << 32) ^ step) & _NO_FEATURE
        # Without its sign, so that `_NO_FEATURE`, the largest int64, sorts behind.
        key_BL = mix64(mix64(mix64(self.image_B).unsqueeze(1) + token_BL) ^ salt) & _NO_FEATURE
        key_N = key_BL.masked_fill(~self.usable_BL, _NO_FEATURE).flatten()
        key_R, pick_R = key_N.topk(min(num, key_N.numel()), largest=False, sorted=True)
        return key_R, self.feat_BLC.flatten(0, 1)[pick_R].float()


def image_numbers(sample_key_B: Tensor | None, like_BLC: Tensor, before: int) -> Tensor:
    """int64 (B,), what an image is known by in the draws of a step.

    Args:
        sample_key_B: float64 number of each image; `None`: rank and position in the step tell.
        like_BLC: the images' features.
        before: images of the step in earlier forwards.
    """
    if sample_key_B is not None:
        # By its bits: numbers in [0, 1) are all 0 as integers.
        return sample_key_B.to(torch.float64).contiguous().view(torch.int64)
    # The upper half of the number is the rank's, so that no two images have the same.
    return torch.arange(before, before + len(like_BLC), device=like_BLC.device) + (rank() << 32)


def draw_from_all_ranks(key_R: Tensor, feat_RC: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """`num` of what all ranks drew, and which rows hold a feature (these come first)."""
    if world_size() > 1:
        # Filled up: a gather wants the same shape of every rank.
        missing = num - len(key_R)
        key_R = all_gather_rows(torch.cat([key_R, key_R.new_full((missing,), _NO_FEATURE)]))
        feat_RC = all_gather_rows(torch.cat([feat_RC, feat_RC.new_zeros(missing, feat_RC.shape[1])]))
        # What is among the `num` smallest of all ranks is among the `num` smallest of its own.
        key_R, pick_R = key_R.topk(num, largest=False, sorted=True)
        feat_RC = feat_RC[pick_R]
    return feat_RC, key_R != _NO_FEATURE
