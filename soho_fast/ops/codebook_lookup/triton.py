"""The codebook lookup in Triton: certified screening on matrix units, survivors in float64.

With a = s_i (x - m), b = t (d - m), m near the middle of the codes, s_i and t powers of two, the score
a.b - (s_i / t) |b|^2 / 2 is largest where the distance is smallest. It is computed from a^ and b^, a and b rounded to
float16 (11 bits, as TF32, at twice its rate) without subnormals, by matrix units that add in float32. With r = s_i / t:

  |score~ - score| <= |a - a^| max|b| + |a^| max|b - b^| + (1.5 C + 16) 2^-22 (|a^| max|b^| + r max|b|^2 / 2)
                      + (C + 16) 2^-52 (|a| + r max|b|)^2 / r

The first two are the rounding to float16, measured for each row and code. The third is that of float32: instead of
rounding, a matrix unit may cut each product and partial sum to 24 bits of the largest one among as few as four, which
makes at most 2.5 C 2^-23; the rest pays for |b|^2 and the final subtraction. The last is the rounding of the float64
distances that define the result.

A row whose best score leads the second by more than twice the bound is settled. The others are screened again, and each
code that comes within twice the bound of the best is compared in float64 where it is found: no list of survivors, so
nothing overflows. A row or a codebook beyond the reach of the bound compares every code. Copies of a code count once.
Besides b^ the memory it takes is a^, 2 D bytes a row, and 20 bytes a row.

Letters: G codebooks, N features for each, K codes, C channels; Q codes and D channels padded to whole tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from soho_fast.ops.codebook_lookup import triton_pack
from soho_fast.ops.codebook_lookup.triton_compare import _chosen_distance, _compare, _tile_scores
from soho_fast.ops.codebook_lookup.triton_pack import (
    TILE,
    exponent_of,
    is_finite,
    length_of,
    packed_parts,
    padded_sizes,
    power_of_two,
    rows_of_program,
    to_float16,
    unpacked_parts,
)
from soho_fast.ops.triton_backend import ceil_div, launch, strided

NO_CODE = tl.constexpr(-(2.0**30))  # a best score below it is that of an unusable code
LOWEST = tl.constexpr(-3.0e38)
LARGEST_RATIO = tl.constexpr(60)  # binary orders by which a feature may exceed the codes and still be screened
_PROGRAMS = 1024  # of the comparison, whose number of rows only the device knows


@triton.jit(do_not_specialize=["num_rows"])
def _round_features(
    features,
    centre,
    exponent,
    rounded,
    ratio,
    length,
    lost,
    num_rows,
    features_stride_g,
    features_stride_n,
    features_stride_c,
    centre_stride,
    exponent_stride,
    num_channels,
    padded_channels,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per block of rows: a^ and, for each row, r, |a^| and |a - a^|.

    r = 0 marks a row with NaN or Inf, |a - a^| = Inf one that cannot be screened.
    """
    group, row, real = rows_of_program(num_rows, BLOCK_N)
    rows = features + group * features_stride_g + row.to(tl.int64) * features_stride_n
    size = tl.zeros([BLOCK_N], dtype=tl.float32)
    broken = tl.zeros([BLOCK_N], dtype=tl.int32)
    for start in range(0, num_channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = channel < num_channels
        wanted = real[:, None] & inside[None, :]
        value = tl.load(rows[:, None] + (channel.to(tl.int64) * features_stride_c)[None, :], mask=wanted, other=0.0)
        value = value.to(tl.float32)
        middle = tl.load(centre + group * centre_stride + channel, mask=inside, other=0.0)
        finite = is_finite(value)
        broken = tl.maximum(broken, tl.max((~finite).to(tl.int32), axis=1))
        size = tl.maximum(size, tl.max(tl.where(finite & wanted, tl.abs(value - middle[None, :]), 0.0), axis=1))

    of_codes = tl.load(exponent + group * exponent_stride)
    # A row smaller than the codes takes their scale: r is 1 then, and never above.
    shift = tl.maximum(exponent_of(size), of_codes)
    screenable = (broken == 0) & (size < float("inf")) & (shift - of_codes <= LARGEST_RATIO)
    scale = power_of_two(-shift)
    square = tl.zeros([BLOCK_N], dtype=tl.float32)
    lost_square = tl.zeros([BLOCK_N], dtype=tl.float32)
    out = rounded + (group * num_rows + row) * padded_channels
    for start in range(0, padded_channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = channel < num_channels
        wanted = screenable[:, None] & real[:, None] & inside[None, :]
        value = tl.load(rows[:, None] + (channel.to(tl.int64) * features_stride_c)[None, :], mask=wanted, other=0.0)
        middle = tl.load(centre + group * centre_stride + channel, mask=inside, other=0.0)
        # A row that can't be screened is zeros here; its bound of Inf sends it to the comparison of all codes.
        scaled = tl.where(wanted, (value.to(tl.float32) - middle[None, :]) * scale[:, None], 0.0)
        near = to_float16(scaled)
        kept = near.to(tl.float32)
        square += tl.sum(kept * kept, axis=1)
        lost_square += tl.sum((scaled - kept) * (scaled - kept), axis=1)
        tl.store(out[:, None] + channel[None, :], near, mask=real[:, None] & (channel < padded_channels)[None, :])

    # Both sides of a `where` are computed: the inner one keeps the exponent in reach.
    r = tl.where(screenable, power_of_two(tl.where(screenable, of_codes - shift, 0)), 1.0)
    size_a = length_of(square, num_channels)
    lost_a = length_of(lost_square, num_channels)
    lost_a += (size_a + lost_a) * (2.0**-23)  # the subtraction of the centre, rounded to float32
    place = group * num_rows + row
    tl.store(ratio + place, tl.where(broken > 0, 0.0, r), mask=real)
    tl.store(length + place, size_a, mask=real)
    tl.store(lost + place, tl.where(screenable, lost_a, float("inf")), mask=real)


@triton.jit(do_not_specialize=["num_rows"])
def _screen(
    rounded,
    ratio,
    length,
    lost,
    codes,
    half_square,
    code_length,
    code_lost,
    index,
    open_rows,
    threshold,
    num_open,
    num_rows,
    num_channels,
    padded_codes,
    padded_channels,
    codes_stride,
    half_square_stride,
    code_length_stride,
    code_lost_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ONE_STEP: tl.constexpr,
):
    """One program per block of rows: writes the index of each row, and lists those that it does not settle."""
    group, row, real = rows_of_program(num_rows, BLOCK_N)
    # Rows beyond the last one read that, and write nothing.
    place = group * num_rows + tl.minimum(row, num_rows - 1)
    row_pointers = rounded + place * padded_channels
    r = tl.load(ratio + place)
    column = tl.arange(0, TILE)
    whole_rows = 0
    if ONE_STEP:
        whole_rows = tl.load(row_pointers[:, None] + tl.arange(0, BLOCK_C)[None, :])

    # The low bits of a score give way to its column, so that a maximum brings its column along. With a score of 0 they
    # are a subnormal, which neither compiler flushes unless it is told to.
    best = tl.full([BLOCK_N], LOWEST, tl.float32)
    second = tl.full([BLOCK_N], LOWEST, tl.float32)
    best_start = tl.zeros([BLOCK_N], dtype=tl.int32)
    longest = tl.zeros([TILE], dtype=tl.float32)
    most_lost = tl.zeros([TILE], dtype=tl.float32)
    for start in range(0, padded_codes, TILE):
        code = start + column
        code_pointers = codes + group * codes_stride + code.to(tl.int64) * padded_channels
        negated_half = -tl.load(half_square + group * half_square_stride + code)
        longest = tl.maximum(longest, tl.load(code_length + group * code_length_stride + code))
        most_lost = tl.maximum(most_lost, tl.load(code_lost + group * code_lost_stride + code))
        score = _tile_scores(
            row_pointers, code_pointers, whole_rows, negated_half, r, padded_channels, BLOCK_N, BLOCK_C, ONE_STEP
        )
        bits = (score.to(tl.int32, bitcast=True) & -TILE) | column[None, :]
        key = bits.to(tl.float32, bitcast=True)
        top = tl.max(key, axis=1)
        # The keys of a tile differ in their columns, so this strikes out the best alone.
        next_top = tl.max(tl.where(key == top[:, None], LOWEST, key), axis=1)
        # Before `best` moves. Not at equality: the lower code stays.
        best_start = tl.where(top > best, start, best_start)
        # The second of both tiles: the loser of the two best, or one of the two seconds.
        second = tl.maximum(tl.minimum(top, best), tl.maximum(second, next_top))
        best = tl.maximum(best, top)

    a, a_lost = tl.load(length + place), tl.load(lost + place)
    b, b_lost = tl.max(longest, axis=0), tl.max(most_lost, axis=0)
    terms = a * (b + b_lost) + 0.5 * r * b * b
    unit = num_channels.to(tl.float32) + 16.0
    reach = a + a_lost + r * b
    # 2^-16: a score's seven low bits. 1 + 2^-10: the rounding of these lines.
    bound = a_lost * b + a * b_lost + (1.5 * unit * (2.0**-22) + (2.0**-16)) * terms
    bound += unit * (2.0**-52) * reach * reach / r
    bound = bound * (1.0 + 2.0**-10)
    no_choice = (r == 0.0) | (best < NO_CODE)
    is_open = real & ~(no_choice | (best - second > 2.0 * bound))  # a bound that is Inf or NaN settles nothing
    # The column back from the low bits of the key.
    winner = best_start + (best.to(tl.int32, bitcast=True) & (TILE - 1))
    tl.store(index + place, tl.where(no_choice, 0, winner).to(tl.int64), mask=real)

    counted = is_open.to(tl.int32)
    # In which order rows are listed is left to chance; each writes its own index alone.
    first = tl.atomic_add(num_open + group, tl.sum(counted, axis=0))
    slot = group * num_rows + first + tl.cumsum(counted, axis=0) - counted
    tl.store(open_rows + slot, row, mask=is_open)
    tl.store(threshold + slot, best - 2.0 * bound, mask=is_open)


@triton.jit(do_not_specialize=["num_rows"])
def _gather_codes(
    codebook,
    index,
    output,
    num_rows,
    num_codes,
    num_channels,
    codebook_stride_g,
    codebook_stride_k,
    codebook_stride_c,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per block of rows: the chosen codes, zeros where the index is not one of theirs."""
    group, row, real = rows_of_program(num_rows, BLOCK_N)
    place = group * num_rows + row
    code = tl.load(index + place, mask=real, other=-1)
    # Padding, and what the reference would refuse: the address must be one of the codebook's.
    known = (code >= 0) & (code < num_codes)
    codes = codebook + group * codebook_stride_g + tl.where(known, code, 0) * codebook_stride_k
    for start in range(0, num_channels, BLOCK_C):
        channel = (start + tl.arange(0, BLOCK_C)).to(tl.int64)
        inside = channel < num_channels
        mask = known[:, None] & inside[None, :]
        value = tl.load(codes[:, None] + (channel * codebook_stride_c)[None, :], mask=mask, other=0.0)
        out = output + (place * num_channels)[:, None] + channel[None, :]
        tl.store(out, value.to(output.dtype.element_ty), mask=real[:, None] & inside[None, :])


KERNELS = [
    *triton_pack.KERNELS,
    _round_features,
    _screen,
    _compare,
    _chosen_distance,
    _gather_codes,
]


def _grouped(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Features (G, N, C) and codebook (G, K, C); G is 1 where the codebook is shared."""
    num_codes, num_channels = codebook.shape[-2:]
    if codebook.dim() == 2:
        return features.reshape(1, features.shape[:-1].numel(), num_channels), codebook.unsqueeze(0)
    num_codebooks = codebook.shape[:-2].numel()
    return (
        features.reshape(num_codebooks, features.shape[-2], num_channels),
        codebook.reshape(num_codebooks, num_codes, num_channels),
    )


def _refuse_other_metrics(metric: int) -> None:
    if metric != 0:
        raise ValueError("metric: the Triton kernels serve 0 (euclidean) alone")


def pack_codebook(codebook: Tensor, subspace: Tensor | None = None, metric: int = 0) -> Tensor:
    """What the lookup derives of a codebook, as bytes (G, size). `subspace` is not used here."""
    _refuse_other_metrics(metric)
    num_codes, num_channels = codebook.shape[-2:]
    codebook_GKC = codebook.reshape(codebook.shape[:-2].numel(), num_codes, num_channels)
    return torch.cat([part.flatten(1).view(torch.uint8) for part in packed_parts(codebook_GKC)], 1)


def _lookup(features_GNC: Tensor, codebook_GKC: Tensor, packed: Tensor | None) -> Tensor:
    """Index (G, N) of the nearest codes; no extent is zero."""
    num_codebooks, num_rows, num_channels = features_GNC.shape
    num_codes = codebook_GKC.shape[1]
    padded_codes, padded_channels, step = padded_sizes(num_codes, num_channels)
    parts = packed_parts(codebook_GKC) if packed is None else unpacked_parts(packed, num_codes, num_channels)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return features_GNC.new_empty((num_codebooks, num_rows, *shape), dtype=dtype)

    features = strided("features", features_GNC, "gnc")
    screened = {"rounded": empty(padded_channels, dtype=torch.float16), "ratio": empty()}  # a^ and r
    bounds = {"length": empty(), "lost": empty()}  # |a| and |a - a^|
    sizes = {"num_rows": num_rows, "num_channels": num_channels, "padded_channels": padded_channels}
    launch(
        _round_features,
        num_codebooks * ceil_div(num_rows, 16),
        **features,
        **parts.arguments("centre", "exponent"),
        **screened,
        **bounds,
        **sizes,
        BLOCK_N=16,
        BLOCK_C=128,
    )
    index_GN = empty(dtype=torch.int64)
    # After the first launch, whose kernel has no such argument.
    sizes["padded_codes"] = padded_codes
    still_open = {
        "open_rows": empty(dtype=torch.int32),
        "threshold": empty(),
        "num_open": features_GNC.new_zeros((num_codebooks,), dtype=torch.int32),
    }
    one_step = padded_channels == step
    # A row that fits one step is loaded once for all tiles of codes.
    options = {
        "BLOCK_C": step if one_step else 64,
        "ONE_STEP": one_step,
        "num_warps": 8,
        "num_stages": 2 if one_step else 3,
    }
    launch(
        _screen,
        num_codebooks * ceil_div(num_rows, 128),
        **screened,
        **bounds,
        **parts.arguments("codes", "half_square", "code_length", "code_lost"),
        index=index_GN,
        **still_open,
        **sizes,
        BLOCK_N=128,
        **options,
    )
    num_programs = torch.sym_min(ceil_div(num_rows, 32), _PROGRAMS)
    launch(
        _compare,
        num_codebooks * num_programs,
        rounded=screened["rounded"],
        ratio=screened["ratio"],
        **parts.arguments("codes", "half_square"),
        **still_open,
        **features,
        **strided("codebook", codebook_GKC, "gkc"),
        index=index_GN,
        **sizes,
        num_programs=num_programs,
        one=1.0,
        BLOCK_N=32,
        **options,
    )
    return index_GN


def _gathered(codebook_GKC: Tensor, index_GN: Tensor, dtype: torch.dtype) -> Tensor:
    """The chosen codes (G, N, C) in `dtype`."""
    num_codebooks, num_rows = index_GN.shape
    num_codes, num_channels = codebook_GKC.shape[1:]
    output_GNC = codebook_GKC.new_empty((num_codebooks, num_rows, num_channels), dtype=dtype)
    if output_GNC.numel() > 0:
        launch(
            _gather_codes,
            num_codebooks * ceil_div(num_rows, 16),
            **strided("codebook", codebook_GKC, "gkc"),
            index=index_GN,
            output=output_GNC,
            num_rows=num_rows,
            num_codes=num_codes,
            num_channels=num_channels,
            BLOCK_N=16,
            BLOCK_C=256 if num_channels > 64 else 64,
        )
    return output_GNC


def codebook_lookup(
    features: Tensor,
    codebook: Tensor,
    return_distance: bool,
    return_codes: bool,
    packed: Tensor | None = None,
    subspace: Tensor | None = None,
    warm_start: Tensor | None = None,
    metric: int = 0,
    topk: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.codebook_lookup`; `packed` is what `pack_codebook` made of the codebook, or None. `subspace` and
    `warm_start` are not used here."""
    _refuse_other_metrics(metric)
    if topk != 1:
        raise ValueError("topk: the Triton kernels serve 1 alone")
    features_GNC, codebook_GKC = _grouped(features, codebook)
    num_codebooks, num_rows, num_channels = features_GNC.shape
    if features_GNC.numel() > 0:
        index_GN = _lookup(features_GNC, codebook_GKC, packed)
    else:
        index_GN = features.new_zeros((num_codebooks, num_rows), dtype=torch.int64)
    distance = features.new_zeros((num_codebooks, num_rows) if return_distance else (0,), dtype=torch.float32)
    if return_distance and features_GNC.numel() > 0:
        launch(
            _chosen_distance,
            num_codebooks * ceil_div(num_rows, 32),
            **strided("features", features_GNC, "gnc"),
            **strided("codebook", codebook_GKC, "gkc"),
            index=index_GN,
            distance=distance,
            num_rows=num_rows,
            num_channels=num_channels,
            one=1.0,
            BLOCK_N=32,
        )
    codes = codebook.new_empty((0,))
    if return_codes:
        codes = _gathered(codebook_GKC, index_GN, codebook.dtype).reshape(features.shape)
    shape = features.shape[:-1]
    return distance.reshape(shape if return_distance else (0,)), index_GN.reshape(shape), codes


def straight_through(features: Tensor, codebook: Tensor, index: Tensor) -> Tensor:
    """As `reference.straight_through`; an index of K or more gives zeros: to refuse it would take a host sync."""
    num_codebooks = 1 if codebook.dim() == 2 else codebook.shape[:-2].numel()
    codebook_GKC = codebook.reshape(num_codebooks, *codebook.shape[-2:])
    num_rows = index.numel() if codebook.dim() == 2 else index.shape[-1]
    index_GN = index.reshape(num_codebooks, num_rows).contiguous()
    return _gathered(codebook_GKC, index_GN, features.dtype).reshape(features.shape)
