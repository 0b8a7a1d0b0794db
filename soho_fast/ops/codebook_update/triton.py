"""The codebook update in Triton.

Features are sorted by code, stably, and each program adds those of one code in ascending position: the bits of
the reference, without atomics. A second launch of the same kernel takes the popular codes, with few channels a program
and many rows under way. An index of K or more is not counted: to refuse it would take a host sync.

Letters: N features, K codes, C channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from soho_fast.ops.triton_backend import ceil_div, launch, strided

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
POPULAR = tl.constexpr(512)  # members from which on a code is popular


@triton.jit
def _moved(old, total, count, decay, rest, one):
    """`decay * old + rest * (total / count)` in float32, rounded after each operation.

    `one` is 1 and not known to the compiler: where it fuses a product with the sum, it fuses the exact product by 1.
    """
    total = total.to(tl.float32)
    mean = tl.div_rn(total, tl.maximum(tl.full(total.shape, TINY, tl.float32), count.to(tl.float32)))
    return (old * decay) * one + (mean * rest) * one


@triton.jit
def _sum_of_members(
    features,
    order,
    sorted_codes,
    starts,
    features_stride_n,
    features_stride_c,
    num_codes,
    num_channels,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
    OF_POPULAR: tl.constexpr,
):
    """Code, channels (BLOCK_C,), the code's number of features, their float64 sum (BLOCK_C,) in ascending position from
    zero, and whether this program, one per code and block of channels, or per POPULAR features and block of channels,
    takes them. For a program that does not, number and sum are 0.

    Of the programs whose feature belongs to a popular code, the first takes the code: each such code has one.
    """
    num_blocks = tl.maximum(tl.cdiv(num_channels, BLOCK_C), 1)
    item = (tl.program_id(0) // num_blocks).to(tl.int64)
    channel = (tl.program_id(0) % num_blocks) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    code = item
    if OF_POPULAR:
        position = item * POPULAR
        # starts[K] is the number of features that are counted: behind it are the others.
        code = tl.load(sorted_codes + position, mask=position < tl.load(starts + num_codes), other=0).to(tl.int64)
    begin = tl.load(starts + code)
    end = tl.load(starts + code + 1)
    takes = end - begin < POPULAR
    if OF_POPULAR:
        # A program behind the last member of all reads code 0, and lies behind the first POPULAR members of that, too.
        takes = (end - begin >= POPULAR) & (position - begin < POPULAR)
    # An empty range where another program takes the code.
    end = tl.where(takes, end, begin)
    channels = features + channel * features_stride_c
    total = tl.zeros([BLOCK_C], dtype=tl.float64)
    for first in range(begin, end, UNROLL):
        # Unrolled, many rows are under way at once; they are added in the same order.
        for step in tl.static_range(UNROLL):
            live = first + step < end
            row = tl.load(order + first + step, mask=live, other=0)
            # A sum that began at +0 is never -0, so that adding the +0 of a row that is not live changes no bit.
            wanted = channel < tl.where(live, num_channels, 0)  # the interpreter spoils `block & scalar`
            total += tl.load(channels + row * features_stride_n, mask=wanted, other=0.0).to(tl.float64)
    return code, channel, end - begin, total, takes


@triton.jit
def _add_members(
    features,
    order,
    sorted_codes,
    starts,
    counts,
    sums,
    features_stride_n,
    features_stride_c,
    num_codes,
    num_channels,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
    OF_POPULAR: tl.constexpr,
):
    """Counts and sums per code; `_sum_of_members` says whose."""
    code, channel, count, total, takes = _sum_of_members(
        features, order, sorted_codes, starts, features_stride_n, features_stride_c, num_codes, num_channels,
        BLOCK_C, UNROLL, OF_POPULAR,
    )  # fmt: skip
    tl.store(sums + code * num_channels + channel, total, mask=channel < tl.where(takes, num_channels, 0))
    tl.store(counts + code, count, mask=takes & (tl.min(channel, axis=0) == 0))


@triton.jit(do_not_specialize=["decay", "rest", "one"])
def _move_by_members(
    codebook,
    features,
    order,
    sorted_codes,
    starts,
    codebook_stride_k,
    codebook_stride_c,
    features_stride_n,
    features_stride_c,
    num_codes,
    num_channels,
    decay,
    rest,
    one,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
    OF_POPULAR: tl.constexpr,
):
    """Codes moved towards the mean of their features; `_sum_of_members` says whose."""
    code, channel, count, total, _ = _sum_of_members(
        features, order, sorted_codes, starts, features_stride_n, features_stride_c, num_codes, num_channels,
        BLOCK_C, UNROLL, OF_POPULAR,
    )  # fmt: skip
    place = codebook + code * codebook_stride_k + channel * codebook_stride_c
    # A code without features keeps its bits: it is not even written.
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
    counts_stride_k,
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
    count = tl.load(counts + code * counts_stride_k)
    moves = channel < tl.where(count > 0, num_channels, 0)
    place = codebook + code * codebook_stride_k + channel * codebook_stride_c
    old = tl.load(place, mask=moves, other=0.0)
    total = tl.load(sums + code * sums_stride_k + channel * sums_stride_c, mask=moves, other=0.0)
    tl.store(place, _moved(old, total, count, decay, rest, one), mask=moves)


KERNELS = [_add_members, _move_by_members, _move_codes]


def _channel_block(num_channels: int) -> int:
    return 256 if num_channels > 128 else 128 if num_channels > 32 else 32


def _members_by_code(index: Tensor, num_codes: int, valid: Tensor | None) -> dict[str, Tensor]:
    """Positions sorted by code, stably, their codes, and for each code (K + 1 values) where its positions start."""
    kept = (index >= 0) & (index < num_codes)
    if valid is not None:
        kept = kept & valid
    # What is not counted sorts last, as code K.
    target_N = torch.where(kept, index, num_codes).to(torch.int32).reshape(-1)
    sorted_N, order_N = torch.sort(target_N, stable=True)
    codes = torch.arange(num_codes + 1, dtype=torch.int32, device=index.device)
    return {"order": order_N, "sorted_codes": sorted_N, "starts": torch.searchsorted(sorted_N, codes)}


def _launch_by_members(
    kernel: object, features: Tensor, index: Tensor, valid: Tensor | None, num_codes: int, **arguments: object
) -> None:
    """Start a kernel that adds features, for the popular codes and for the others."""
    num_rows, num_channels = index.numel(), features.shape[-1]
    read = strided("features", features.reshape(num_rows, num_channels), "nc")
    members = _members_by_code(index, num_codes, valid)
    for num_items, block, unroll, of_popular in (
        (num_codes, _channel_block(num_channels), 8, False),
        # A code with POPULAR features or more has one at a position that is a multiple of POPULAR.
        (num_rows // POPULAR.value + 1, 32, 64, True),
    ):
        launch(
            kernel,
            num_items * (ceil_div(num_channels, block) if num_channels > 0 else 1),
            **read,
            **members,
            **arguments,
            num_codes=num_codes,
            num_channels=num_channels,
            BLOCK_C=block,
            UNROLL=unroll,
            OF_POPULAR=of_popular,
            num_warps=1 if of_popular else 2,
        )


def codebook_stats(
    features: Tensor, index: Tensor, num_codes: int, valid: Tensor | None, wide: bool = False
) -> tuple[Tensor, Tensor]:
    """As `reference.codebook_stats`, with its bits; an index of num_codes or more is not counted."""
    dtype = torch.float64 if wide else torch.float32
    counts_K = features.new_empty((num_codes,), dtype=dtype)
    sums_KC = features.new_empty((num_codes, features.shape[-1]), dtype=dtype)
    _launch_by_members(_add_members, features, index, valid, num_codes, counts=counts_K, sums=sums_KC)
    return counts_K, sums_KC


def _shares(decay: float) -> dict[str, float]:
    return {"decay": decay, "rest": 1 - decay, "one": 1.0}


def codebook_ema_(codebook: Tensor, counts: Tensor, sums: Tensor, decay: float) -> None:
    """As `reference.codebook_ema_`, with its bits."""
    num_codes, num_channels = codebook.shape
    if codebook.numel() == 0:
        return
    block = _channel_block(num_channels)
    launch(
        _move_codes,
        num_codes * ceil_div(num_channels, block),
        **strided("codebook", codebook, "kc"),
        **strided("counts", counts, "k"),
        **strided("sums", sums, "kc"),
        num_channels=num_channels,
        **_shares(decay),
        BLOCK_C=block,
        num_warps=2,
    )


def scatter_mean_ema_(codebook: Tensor, features: Tensor, index: Tensor, decay: float, valid: Tensor | None) -> None:
    """As `reference.scatter_mean_ema_`, with its bits; an index of K or more is not counted."""
    if codebook.numel() == 0:
        return
    moved = strided("codebook", codebook, "kc")
    _launch_by_members(_move_by_members, features, index, valid, codebook.shape[0], **moved, **_shares(decay))
