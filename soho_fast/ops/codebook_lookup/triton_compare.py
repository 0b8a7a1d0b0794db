"""The float64 end of the lookup in Triton: codes that came close in a screening, and the distance to the chosen one.

The letters are those of `triton.py`.
"""

import triton
import triton.language as tl

from soho_fast.ops.codebook_lookup.triton_pack import TILE, UNUSABLE, rows_of_program


@triton.jit
def _tile_scores(
    row_pointers,  # (BLOCK_N,) to a^
    code_pointers,  # (TILE,) to b^
    whole_rows,  # a^ itself where ONE_STEP
    negated_half,
    ratio,
    padded_channels,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ONE_STEP: tl.constexpr,
):
    """Scores (BLOCK_N, TILE) of one tile of codes."""
    channel = tl.arange(0, BLOCK_C)
    product = tl.zeros([BLOCK_N, TILE], dtype=tl.float32)
    if ONE_STEP:
        codes = tl.load(code_pointers[None, :] + channel[:, None])
        product = tl.dot(whole_rows, codes, product)
    else:
        for start in range(0, padded_channels, BLOCK_C):
            rows = tl.load(row_pointers[:, None] + (start + channel)[None, :])
            codes = tl.load(code_pointers[None, :] + (start + channel)[:, None])
            product = tl.dot(rows, codes, product)
    return product + negated_half[None, :] * ratio[:, None]


@triton.jit
def _pair_distance(
    rows,  # (BLOCK_N,) pointers to features
    codes,  # (BLOCK_N,) pointers to codes
    wanted,
    features_stride_c,
    codebook_stride_c,
    num_channels,
    one,
    BLOCK_N: tl.constexpr,
):
    """Squared distance of each pair in float64, in the order of `reference._sum_of_channels`.

    `one` is 1 and not known to the compiler: where it fuses a product with the sum, it fuses the exact product by 1.
    """
    sums = tl.zeros([BLOCK_N, 8], dtype=tl.float64)
    for start in range(0, num_channels, 8):
        channel = start + tl.arange(0, 8)
        mask = wanted[:, None] & (channel < num_channels)[None, :]
        wide = channel.to(tl.int64)[None, :]
        x = tl.load(rows[:, None] + wide * features_stride_c, mask=mask, other=0.0).to(tl.float64)
        d = tl.load(codes[:, None] + wide * codebook_stride_c, mask=mask, other=0.0).to(tl.float64)
        sums += ((x - d) * (x - d)) * one
    # A sum of two does not depend on their order.
    sums = tl.sum(tl.reshape(sums, (BLOCK_N, 2, 4)), axis=1)
    sums = tl.sum(tl.reshape(sums, (BLOCK_N, 2, 2)), axis=1)
    return tl.sum(sums, axis=1)


@triton.jit(do_not_specialize=["num_rows", "num_programs", "one"])
def _compare(
    rounded,
    ratio,
    codes,
    half_square,
    open_rows,
    threshold,
    num_open,
    features,
    codebook,
    index,
    num_rows,
    num_programs,
    num_channels,
    padded_codes,
    padded_channels,
    codes_stride,
    half_square_stride,
    features_stride_g,
    features_stride_n,
    features_stride_c,
    codebook_stride_g,
    codebook_stride_k,
    codebook_stride_c,
    one,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ONE_STEP: tl.constexpr,
):
    """`num_programs` programs per codebook share its open rows: screens them again, compares survivors in float64."""
    group = (tl.program_id(0) // num_programs).to(tl.int64)
    total = tl.load(num_open + group)
    column = tl.arange(0, TILE)
    # `total` is on the device alone, so a fixed number of programs strides over the list.
    for first in range((tl.program_id(0) % num_programs) * BLOCK_N, total, num_programs * BLOCK_N):
        slot = first + tl.arange(0, BLOCK_N)
        real = slot < total
        row = tl.load(open_rows + group * num_rows + slot, mask=real, other=0)
        place = group * num_rows + row
        lowest = tl.load(threshold + group * num_rows + slot, mask=real, other=0.0)
        r = tl.load(ratio + place)
        row_pointers = rounded + place * padded_channels
        whole_rows = 0
        if ONE_STEP:
            whole_rows = tl.load(row_pointers[:, None] + tl.arange(0, BLOCK_C)[None, :])
        exact_rows = features + group * features_stride_g + row.to(tl.int64) * features_stride_n
        nearest = tl.full([BLOCK_N], float("inf"), tl.float64)
        winner = tl.zeros([BLOCK_N], dtype=tl.int32)
        for start in range(0, padded_codes, TILE):
            code = start + column
            code_pointers = codes + group * codes_stride + code.to(tl.int64) * padded_channels
            half = tl.load(half_square + group * half_square_stride + code)
            score = _tile_scores(
                row_pointers, code_pointers, whole_rows, -half, r, padded_channels, BLOCK_N, BLOCK_C, ONE_STEP
            )
            # A threshold that is NaN lets every usable code survive.
            alive = real[:, None] & (half < UNUSABLE)[None, :] & ~(score < lowest[:, None])
            next_column = tl.min(tl.where(alive, column[None, :], TILE), axis=1)
            # One survivor of each row at a time, until no row of the block has another.
            while tl.min(next_column, axis=0) < TILE:
                wanted = next_column < TILE
                # A row that is done points at the tile's first code, and reads nothing of it.
                candidate = start + tl.where(wanted, next_column, 0)
                exact_codes = codebook + group * codebook_stride_g + candidate.to(tl.int64) * codebook_stride_k
                distance = _pair_distance(
                    exact_rows, exact_codes, wanted, features_stride_c, codebook_stride_c, num_channels, one, BLOCK_N
                )
                nearer = wanted & (distance < nearest)  # codes come in ascending order: the lowest of equals stays
                nearest = tl.where(nearer, distance, nearest)
                winner = tl.where(nearer, candidate, winner)
                alive = alive & (column[None, :] != next_column[:, None])
                next_column = tl.min(tl.where(alive, column[None, :], TILE), axis=1)
        tl.store(index + place, winner.to(tl.int64), mask=real)


@triton.jit(do_not_specialize=["num_rows", "one"])
def _chosen_distance(
    features,
    codebook,
    index,
    distance,
    num_rows,
    num_channels,
    features_stride_g,
    features_stride_n,
    features_stride_c,
    codebook_stride_g,
    codebook_stride_k,
    codebook_stride_c,
    one,
    BLOCK_N: tl.constexpr,
):
    """One program per block of rows: the squared distance to the chosen code."""
    group, row, real = rows_of_program(num_rows, BLOCK_N)
    place = group * num_rows + row
    code = tl.load(index + place, mask=real, other=0)
    rows = features + group * features_stride_g + row.to(tl.int64) * features_stride_n
    codes = codebook + group * codebook_stride_g + code * codebook_stride_k
    exact = _pair_distance(rows, codes, real, features_stride_c, codebook_stride_c, num_channels, one, BLOCK_N)
    tl.store(distance + place, exact.to(tl.float32), mask=real)


KERNELS = [_compare, _chosen_distance]
