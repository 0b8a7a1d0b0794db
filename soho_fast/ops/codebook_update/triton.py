"""The codebook update in Triton.

Members are sorted by code, stably, and each program adds the members of one code in ascending position: the bits of
the reference, without atomics. An index of K or more is not counted: to refuse it would take a host sync.

Letters: N features, K codes, C channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from soho_fast.ops.triton_backend import ceil_div, launch

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _moved(old, total, count, decay, rest, one):
    """`decay * old + rest * (total / count)`, rounded after each operation.

    `one` is 1 and not known to the compiler: where it fuses a product with the sum, it fuses the exact product by 1.
    """
    mean = tl.div_rn(total, tl.maximum(tl.full(total.shape, TINY, tl.float32), count))
    return (old * decay) * one + (mean * rest) * one


@triton.jit
def _sum_of_members(
    features,
    order,
    starts,
    stride_n,
    stride_c,
    num_channels,
    code,
    channel,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The members of one code, added in ascending position from zero, and how many they are."""
    channels = features + channel * stride_c
    begin = tl.load(starts + code)
    end = tl.load(starts + code + 1)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in range(begin, end, UNROLL):
        for step in tl.static_range(UNROLL):
            live = first + step < end
            row = tl.load(order + first + step, mask=live, other=0)
            # A sum that began at +0 is never -0, so that adding the +0 of a row that is not live changes no bit.
            wanted = channel < tl.where(live, num_channels, 0)  # the interpreter spoils `block & scalar`
            total += tl.load(channels + row * stride_n, mask=wanted, other=0.0).to(tl.float32)
    return total, (end - begin).to(tl.float32)


@triton.jit
def _add_members(
    features,
    order,
    starts,
    counts,
    sums,
    stride_n,
    stride_c,
    num_channels,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One program per code and block of channels."""
    num_blocks = tl.maximum(tl.cdiv(num_channels, BLOCK_C), 1)
    code = (tl.program_id(0) // num_blocks).to(tl.int64)
    block = tl.program_id(0) % num_blocks
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    inside = channel < num_channels
    total, count = _sum_of_members(
        features, order, starts, stride_n, stride_c, num_channels, code, channel, BLOCK_C, UNROLL
    )
    tl.store(sums + code * num_channels + channel, total, mask=inside)
    tl.store(counts + code, count, mask=block == 0)


@triton.jit(do_not_specialize=["decay", "rest", "one"])
def _move_by_members(
    codebook,
    features,
    order,
    starts,
    codebook_stride_k,
    codebook_stride_c,
    stride_n,
    stride_c,
    num_channels,
    decay,
    rest,
    one,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One program per code and block of channels."""
    num_blocks = tl.cdiv(num_channels, BLOCK_C)
    code = (tl.program_id(0) // num_blocks).to(tl.int64)
    channel = (tl.program_id(0) % num_blocks) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    total, count = _sum_of_members(
        features, order, starts, stride_n, stride_c, num_channels, code, channel, BLOCK_C, UNROLL
    )
    place = codebook + code * codebook_stride_k + channel * codebook_stride_c
    moves = channel < tl.where(count > 0, num_channels, 0)
    old = tl.load(place, mask=moves, other=0.0)
    tl.store(place, _moved(old, total, count, decay, rest, one), mask=moves)


@triton.jit(do_not_specialize=["decay", "rest", "one"])
def _move_codes(
    codebook,
    counts,
    sums,
    codebook_stride_k,
    codebook_stride_c,
    counts_stride,
    sums_stride_k,
    sums_stride_c,
    num_channels,
    decay,
    rest,
    one,
    BLOCK_C: tl.constexpr,
):
    """One program per code and block of channels."""
    num_blocks = tl.cdiv(num_channels, BLOCK_C)
    code = (tl.program_id(0) // num_blocks).to(tl.int64)
    channel = (tl.program_id(0) % num_blocks) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    count = tl.load(counts + code * counts_stride)
    moves = channel < tl.where(count > 0, num_channels, 0)
    place = codebook + code * codebook_stride_k + channel * codebook_stride_c
    old = tl.load(place, mask=moves, other=0.0)
    total = tl.load(sums + code * sums_stride_k + channel * sums_stride_c, mask=moves, other=0.0)
    tl.store(place, _moved(old, total, count, decay, rest, one), mask=moves)


KERNELS = [_add_members, _move_by_members, _move_codes]


def _channel_block(num_channels: int) -> int:
    return 256 if num_channels > 128 else 128 if num_channels > 32 else 32


def _members_by_code(index: Tensor, num_codes: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions sorted by code, stably, and for each code (K + 1 values) where its positions start."""
    kept = (index >= 0) & (index < num_codes)
    if valid is not None:
        kept = kept & valid
    target_N = torch.where(kept, index, num_codes).to(torch.int32).reshape(-1)
    sorted_N, order_N = torch.sort(target_N, stable=True)
    codes = torch.arange(num_codes + 1, dtype=torch.int32, device=index.device)
    return order_N, torch.searchsorted(sorted_N, codes)


def codebook_stats(features: Tensor, index: Tensor, num_codes: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `reference.codebook_stats`, with its bits; an index of num_codes or more is not counted."""
    num_channels = features.shape[-1]
    features_NC = features.reshape(index.numel(), num_channels)
    counts_K = features.new_empty((num_codes,), dtype=torch.float32)
    sums_KC = features.new_empty((num_codes, num_channels), dtype=torch.float32)
    block = _channel_block(num_channels)
    launch(
        _add_members,
        num_codes * (ceil_div(num_channels, block) if num_channels > 0 else 1),
        features_NC,
        *_members_by_code(index, num_codes, valid),
        counts_K,
        sums_KC,
        *features_NC.stride(),
        num_channels,
        BLOCK_C=block,
        UNROLL=8,
        num_warps=2,
    )
    return counts_K, sums_KC


def codebook_ema_(codebook: Tensor, counts: Tensor, sums: Tensor, decay: float) -> None:
    """As `reference.codebook_ema_`, with its bits."""
    num_codes, num_channels = codebook.shape
    if codebook.numel() == 0:
        return
    block = _channel_block(num_channels)
    launch(
        _move_codes,
        num_codes * ceil_div(num_channels, block),
        codebook,
        counts,
        sums,
        *codebook.stride(),
        *counts.stride(),
        *sums.stride(),
        num_channels,
        decay,
        1 - decay,
        1.0,
        BLOCK_C=block,
        num_warps=2,
    )


def scatter_mean_ema_(codebook: Tensor, features: Tensor, index: Tensor, decay: float, valid: Tensor | None) -> None:
    """As `reference.scatter_mean_ema_`, with its bits; an index of K or more is not counted."""
    num_codes, num_channels = codebook.shape
    if codebook.numel() == 0:
        return
    features_NC = features.reshape(index.numel(), num_channels)
    block = _channel_block(num_channels)
    launch(
        _move_by_members,
        num_codes * ceil_div(num_channels, block),
        codebook,
        features_NC,
        *_members_by_code(index, num_codes, valid),
        *codebook.stride(),
        *features_NC.stride(),
        num_channels,
        decay,
        1 - decay,
        1.0,
        BLOCK_C=block,
        UNROLL=8,
        num_warps=2,
    )
