"""Grouped masking in Triton.

Letters: B images, L tokens per image, C channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from soho_fast.ops.triton_backend import ceil_div, launch, strided

IGNORED = tl.constexpr(-100)  # cross-entropy's ignore_index
ABSENT = tl.constexpr(torch.iinfo(torch.int64).max)  # sorts behind every label


@triton.jit
def _choose_label(labels_sorted, uniform, target, uniform_stride_b, num_tokens, BLOCK_L: tl.constexpr):
    """One program per image: counts the distinct labels of the sorted row, then finds the one of the drawn rank."""
    image = tl.program_id(0).to(tl.int64)
    row = labels_sorted + image * num_tokens
    num_labels = tl.full([], 0, tl.int32)
    for start in range(0, num_tokens, BLOCK_L):
        token = start + tl.arange(0, BLOCK_L)
        label = tl.load(row + token, mask=token < num_tokens, other=ABSENT)
        # -1 is no label: the first token begins a run.
        before = tl.load(row + token - 1, mask=(token > 0) & (token < num_tokens), other=-1)
        num_labels += tl.sum(((label != ABSENT) & (label != before)).to(tl.int32), axis=0)
    rank = (tl.load(uniform + image * uniform_stride_b) * num_labels.to(tl.float64)).to(tl.int32)
    # The product may round up to the number. Without labels the rank is -1, which no token has.
    rank = tl.minimum(rank, num_labels - 1)
    chosen = tl.full([], -1, tl.int64)
    seen = tl.full([], 0, tl.int32)
    for start in range(0, num_tokens, BLOCK_L):
        token = start + tl.arange(0, BLOCK_L)
        label = tl.load(row + token, mask=token < num_tokens, other=ABSENT)
        before = tl.load(row + token - 1, mask=(token > 0) & (token < num_tokens), other=-1)
        first = ((label != ABSENT) & (label != before)).to(tl.int32)
        hit = (first > 0) & (seen + tl.cumsum(first, axis=0) == rank + 1)
        # One token of the row is hit, in one of the blocks.
        chosen = tl.maximum(chosen, tl.max(tl.where(hit, label, -1), axis=0))
        seen += tl.sum(first, axis=0)
    tl.store(target + image, chosen)


@triton.jit(do_not_specialize=["num_rows"])
def _mask_tokens(
    index,
    target,
    valid,
    labels,
    index_stride_b,
    index_stride_l,
    target_stride_b,
    valid_stride_b,
    valid_stride_l,
    num_rows,
    num_tokens,
    features,
    mask_token,
    masked,
    features_stride_b,
    features_stride_l,
    features_stride_c,
    mask_token_stride_c,
    num_channels,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_VALID: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """One program per block of rows (the tokens of all images in one line) and block of channels: labels, and the
    tokens. In place the masked ones alone are written, no features are read, and `masked` is not used."""
    # Without channels there are labels to write all the same.
    num_blocks = tl.maximum(tl.cdiv(num_channels, BLOCK_C), 1)
    block = tl.program_id(0) % num_blocks
    row = (tl.program_id(0) // num_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    real = row < num_rows
    image = row // num_tokens
    token = row % num_tokens
    label = tl.load(index + image * index_stride_b + token * index_stride_l, mask=real, other=-1)
    wanted = tl.load(target + image * target_stride_b, mask=real, other=-1)
    hit = real & (label == wanted) & (wanted >= 0)
    if HAS_VALID:
        hit = hit & (tl.load(valid + image * valid_stride_b + token * valid_stride_l, mask=real, other=0) != 0)
    # Labels have no channels: the programs of the first block write them.
    tl.store(labels + row, tl.where(hit, label, IGNORED), mask=row < tl.where(block == 0, num_rows, 0))

    channel = block * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    inside = channel < num_channels
    fill = tl.load(mask_token + channel * mask_token_stride_c, mask=inside, other=0.0)
    place = (
        features
        + (image * features_stride_b + token * features_stride_l)[:, None]
        + (channel * features_stride_c)[None, :]
    )
    if IN_PLACE:
        tl.store(place, tl.broadcast_to(fill[None, :], (BLOCK_R, BLOCK_C)), mask=hit[:, None] & inside[None, :])
    else:
        written = real[:, None] & inside[None, :]
        # Of masked tokens no feature is read.
        kept = tl.load(place, mask=written & ~hit[:, None], other=0.0)
        out = masked + (row * num_channels)[:, None] + channel[None, :]
        tl.store(out, tl.where(hit[:, None], fill[None, :], kept), mask=written)


KERNELS = [_choose_label, _mask_tokens]


def sample_group(index: Tensor, valid: Tensor | None, uniform: Tensor) -> Tensor:
    """As `reference.sample_group`."""
    num_images, num_tokens = index.shape
    target_B = index.new_empty((num_images,))
    if num_images == 0:
        return target_B
    present_BL = index >= 0
    if valid is not None:
        present_BL = present_BL & valid
    sorted_BL = torch.where(present_BL, index, ABSENT.value).sort(dim=1).values.contiguous()
    launch(
        _choose_label,
        num_images,
        labels_sorted=sorted_BL,
        **strided("uniform", uniform, "b"),
        target=target_B,
        num_tokens=num_tokens,
        BLOCK_L=256,
    )
    return target_B


def _launch_mask(
    features: Tensor, index: Tensor, mask_token: Tensor, target: Tensor, valid: Tensor | None, masked: Tensor | None
) -> Tensor:
    """Mask features into `masked`, or in place where that is None; returns the labels."""
    num_images, num_tokens, num_channels = features.shape
    labels_BL = torch.empty_like(index, memory_format=torch.contiguous_format)
    if index.numel() == 0:
        return labels_BL
    block_c = 256 if num_channels > 64 else 64
    launch(
        _mask_tokens,
        ceil_div(num_images * num_tokens, 16) * (ceil_div(num_channels, block_c) if num_channels > 0 else 1),
        **strided("index", index, "bl"),
        **strided("target", target, "b"),
        # Without `valid` any tensor: HAS_VALID keeps it from being read.
        **strided("valid", index if valid is None else valid, "bl"),
        labels=labels_BL,
        num_rows=num_images * num_tokens,
        num_tokens=num_tokens,
        **strided("features", features, "blc"),
        **strided("mask_token", mask_token, "c"),
        masked=labels_BL if masked is None else masked,
        num_channels=num_channels,
        BLOCK_R=16,
        BLOCK_C=block_c,
        HAS_VALID=valid is not None,
        IN_PLACE=masked is None,
    )
    return labels_BL


def group_mask(
    features: Tensor, index: Tensor, mask_token: Tensor, target: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `reference.group_mask`."""
    masked_BLC = features.new_empty(features.shape)
    return masked_BLC, _launch_mask(features, index, mask_token, target, valid, masked_BLC)


def group_mask_(features: Tensor, index: Tensor, mask_token: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """As `reference.group_mask_`."""
    return _launch_mask(features, index, mask_token, target, valid, None)
