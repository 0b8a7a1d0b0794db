"""A codebook made ready for the screening in Triton; see `triton.py`, whose letters these are.

Letters: G codebooks, K codes, C channels; Q codes and D channels padded to whole tiles, S sampled codes.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from soho_fast.ops.triton_backend import ceil_div, launch, strided

TILE = tl.constexpr(128)  # codes of one tile; a column of it fits the low bits of a score
UNUSABLE = tl.constexpr(2.0**100)  # |b|^2 / 2 of a code that cannot win: r >= 2^-60 keeps its score below any other
SMALLEST_NORMAL = tl.constexpr(2.0**-14)  # of float16


@triton.jit
def rows_of_program(num_rows, BLOCK_N: tl.constexpr):
    """The codebook and the rows (BLOCK_N,) of this program, one per block of rows, and which of the rows are there."""
    num_blocks = tl.cdiv(num_rows, BLOCK_N)
    group = (tl.program_id(0) // num_blocks).to(tl.int64)
    row = (tl.program_id(0) % num_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    return group, row, row < num_rows


@triton.jit
def exponent_of(value):
    """floor(log2(value)) of a positive normal float32, within what `power_of_two` takes."""
    return tl.minimum(tl.maximum((value.to(tl.int32, bitcast=True) >> 23) - 127, -126), 126)


@triton.jit
def power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def is_finite(value):
    return tl.abs(value) < float("inf")


@triton.jit
def to_float16(value):
    """Rounded to float16, subnormals to zero: not every matrix unit multiplies them."""
    return tl.where(tl.abs(value) < SMALLEST_NORMAL, 0.0, value).to(tl.float16)


@triton.jit
def length_of(square, num_channels):
    """The root of a sum of float32 squares, rounded up."""
    return tl.sqrt(square) * (1.0 + (num_channels + 64) * (2.0**-24))


@triton.jit
def _hash(value, channel):
    """An int32 that is equal for equal numbers (0 and -0 are)."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True) + channel * 0x01000193
    bits = (bits ^ (bits >> 15)) * 0x2C1B3C6D
    bits = (bits ^ (bits >> 12)) * 0x297A2D39
    return bits ^ (bits >> 15)


@triton.jit
def _describe_codes(
    codebook,
    centre,
    largest,
    hashes,
    codebook_stride_g,
    codebook_stride_k,
    codebook_stride_c,
    num_codes,
    num_channels,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per block of codes: the largest |d - m| of each code, -1 where it is not finite, and its hash."""
    group, code, real = rows_of_program(num_codes, BLOCK_K)
    rows = codebook + group * codebook_stride_g + code.to(tl.int64) * codebook_stride_k
    size = tl.zeros([BLOCK_K], dtype=tl.float32)
    broken = tl.zeros([BLOCK_K], dtype=tl.int32)
    mixed = tl.zeros([BLOCK_K], dtype=tl.int32)
    for start in range(0, num_channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = channel < num_channels
        wanted = real[:, None] & inside[None, :]
        value = tl.load(rows[:, None] + (channel.to(tl.int64) * codebook_stride_c)[None, :], mask=wanted, other=0.0)
        value = value.to(tl.float32)
        middle = tl.load(centre + group * num_channels + channel, mask=inside, other=0.0)
        finite = is_finite(value)
        broken = tl.maximum(broken, tl.max((~finite).to(tl.int32), axis=1))
        apart = tl.where(finite & inside[None, :], tl.abs(value - middle[None, :]), 0.0)
        size = tl.maximum(size, tl.max(apart, axis=1))
        # A sum, whatever the order of the channels; each hash depends on its channel.
        mixed += tl.sum(tl.where(inside[None, :], _hash(value, channel[None, :]), 0), axis=1)
    place = group * num_codes + code
    tl.store(largest + place, tl.where(broken > 0, -1.0, size), mask=real)
    tl.store(hashes + place, mixed, mask=real)


@triton.jit
def _pack_codes(
    codebook,
    centre,
    largest,
    hashes,
    codes,
    half_square,
    code_length,
    code_lost,
    exponent,
    codebook_stride_g,
    codebook_stride_k,
    codebook_stride_c,
    num_codes,
    num_channels,
    padded_codes,
    padded_channels,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per block of codes: b^ and, for each code, |b|^2 / 2, |b| and |b - b^|."""
    num_blocks = padded_codes // BLOCK_K
    group = (tl.program_id(0) // num_blocks).to(tl.int64)
    block = tl.program_id(0) % num_blocks
    code = block * BLOCK_K + tl.arange(0, BLOCK_K)
    real = code < num_codes
    largest += group * num_codes
    hashes += group * num_codes

    # Every program finds the largest of all codes by itself: that saves a launch between.
    size = tl.zeros([1024], dtype=tl.float32)
    for start in range(0, num_codes, 1024):
        other = start + tl.arange(0, 1024)
        size = tl.maximum(size, tl.load(largest + other, mask=other < num_codes, other=0.0))
    size_of_all = tl.max(size, axis=0)
    shift = tl.where(size_of_all > 0.0, exponent_of(size_of_all), 0)
    scale = power_of_two(-shift)
    tl.store(exponent + group, shift, mask=block == 0)

    # The first usable code with the same hash, if any, is the only one this code can be a copy of.
    my_hash = tl.load(hashes + code, mask=real, other=0)
    usable = tl.load(largest + code, mask=real, other=-1.0) >= 0.0
    twin = tl.full([BLOCK_K], 0x7FFFFFFF, tl.int32)
    # A twin is a lower code: those behind this block are none.
    for start in range(0, (block + 1) * BLOCK_K, 128):
        other = start + tl.arange(0, 128)
        known = other < num_codes
        other_hash = tl.load(hashes + other, mask=known, other=0)
        known = known & (tl.load(largest + other, mask=known, other=-1.0) >= 0.0)
        same = known[None, :] & (other_hash[None, :] == my_hash[:, None]) & (other[None, :] < code[:, None])
        twin = tl.minimum(twin, tl.min(tl.where(same, other[None, :], 0x7FFFFFFF), axis=1))
    paired = usable & (twin < code)

    rows = codebook + group * codebook_stride_g
    own = rows + code.to(tl.int64) * codebook_stride_k
    others = rows + tl.where(paired, twin, 0).to(tl.int64) * codebook_stride_k
    # Equal hashes may be of unlike codes: the twins are compared channel by channel.
    different = tl.zeros([BLOCK_K], dtype=tl.int32)
    square = tl.zeros([BLOCK_K], dtype=tl.float32)
    lost_square = tl.zeros([BLOCK_K], dtype=tl.float32)
    out = codes + (group * padded_codes + code) * padded_channels
    for start in range(0, padded_channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = channel < num_channels
        offset = (channel.to(tl.int64) * codebook_stride_c)[None, :]
        value = tl.load(own[:, None] + offset, mask=usable[:, None] & inside[None, :], other=0.0)
        twin_value = tl.load(others[:, None] + offset, mask=paired[:, None] & inside[None, :], other=0.0)
        unlike = (value != twin_value) & paired[:, None]
        different = tl.maximum(different, tl.max(unlike.to(tl.int32), axis=1))
        middle = tl.load(centre + group * num_channels + channel, mask=inside, other=0.0)
        scaled = (value.to(tl.float32) - middle[None, :]) * scale
        # Where the difference overflows, `size_of_all` is Inf and so is the code's length: no row is settled.
        scaled = tl.where(usable[:, None] & is_finite(scaled), scaled, 0.0)
        near = to_float16(scaled)
        left = scaled - near.to(tl.float32)
        square += tl.sum(scaled * scaled, axis=1)
        lost_square += tl.sum(left * left, axis=1)
        tl.store(out[:, None] + channel[None, :], near, mask=(channel < padded_channels)[None, :])

    # A copy of a lower code wins no tie, and would leave each row near it unsettled.
    screened = usable & ~(paired & (different == 0))
    size_b = length_of(square, num_channels)
    size_b = tl.where(size_of_all < float("inf"), size_b, float("inf"))
    place = group * padded_codes + code
    tl.store(half_square + place, tl.where(screened, 0.5 * square, UNUSABLE))
    tl.store(code_length + place, tl.where(screened, size_b, 0.0))
    # 2^-23 |b|: the subtraction of the centre, rounded to float32
    tl.store(code_lost + place, tl.where(screened, length_of(lost_square, num_channels) + size_b * (2.0**-23), 0.0))


KERNELS = [_describe_codes, _pack_codes]


class PackedCodes(NamedTuple):
    """What the screening reads of a codebook, named as the kernels' arguments."""

    codes: Tensor  # b^ (G, Q, D)
    half_square: Tensor  # |b|^2 / 2 (G, Q)
    code_length: Tensor  # |b| (G, Q)
    code_lost: Tensor  # |b - b^| (G, Q)
    centre: Tensor  # m (G, C)
    exponent: Tensor  # of 1 / t (G, 1)

    def arguments(self, *names: str) -> dict[str, Any]:
        """These parts, each with its stride over groups."""
        parts = self._asdict()
        return {name: parts[name] for name in names} | {f"{name}_stride": parts[name].stride(0) for name in names}


def padded_sizes(num_codes: int, num_channels: int) -> tuple[int, int, int]:
    """Q, D, and the channels of one step of the screening; D is a power of two up to 128, then a multiple of 64."""
    padded_channels = 64 * ceil_div(num_channels, 64)
    for size in (128, 64, 32, 16):
        padded_channels = size if num_channels <= size else padded_channels
    return TILE.value * ceil_div(num_codes, TILE.value), padded_channels, min(padded_channels, 128)


def packed_parts(codebook_GKC: Tensor) -> PackedCodes:
    """The codebooks packed."""
    num_codebooks, num_codes, num_channels = codebook_GKC.shape
    padded_codes, padded_channels, _ = padded_sizes(num_codes, num_channels)
    # Any centre is right; the mean of some 256 codes is near the middle.
    sample_GSC = codebook_GKC[:, :: max(1, num_codes // 256)].float()
    # Divided before the sum, which so can't overflow; what is not finite counts as 0.
    centre_GC = (sample_GSC / sample_GSC.shape[1]).nan_to_num(0.0, 0.0, 0.0).sum(1)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return codebook_GKC.new_empty((num_codebooks, *shape), dtype=dtype)

    described = {"largest": empty(num_codes), "hashes": empty(num_codes, dtype=torch.int32)}
    read = strided("codebook", codebook_GKC, "gkc") | described
    sizes = {"num_codes": num_codes, "num_channels": num_channels}
    blocks = {"BLOCK_K": 64, "BLOCK_C": 64, "num_warps": 8}
    num_blocks = num_codebooks * ceil_div(num_codes, 64)
    launch(_describe_codes, num_blocks, centre=centre_GC, **read, **sizes, **blocks)
    packed = PackedCodes(
        codes=empty(padded_codes, padded_channels, dtype=torch.float16),
        half_square=empty(padded_codes),
        code_length=empty(padded_codes),
        code_lost=empty(padded_codes),
        centre=centre_GC,
        exponent=empty(1, dtype=torch.int32),
    )
    padded = {"padded_codes": padded_codes, "padded_channels": padded_channels}
    num_blocks = num_codebooks * (padded_codes // 64)
    launch(_pack_codes, num_blocks, **packed._asdict(), **read, **sizes, **padded, **blocks)
    return packed


def unpacked_parts(packed: Tensor, num_codes: int, num_channels: int) -> PackedCodes:
    """`packed_parts` as views of what `pack_codebook` returned."""
    padded_codes, padded_channels, _ = padded_sizes(num_codes, num_channels)
    # In bytes, in the order of the fields.
    sizes = [2 * padded_codes * padded_channels, *(3 * [4 * padded_codes]), 4 * num_channels, 4]
    types = [torch.float16, *(4 * [torch.float32]), torch.int32]
    return PackedCodes(*(part.view(dtype) for part, dtype in zip(packed.split(sizes, 1), types, strict=True)))
