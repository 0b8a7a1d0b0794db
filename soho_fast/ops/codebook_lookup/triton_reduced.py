"""The reduced pass in Triton: a few directions decide which codes can be near, before all channels are multiplied.

Let V be a (C, D) matrix of spectral norm at most 1, and r(z) = sqrt(|z|^2 - |V'z|^2). Completed by W with
VV' + WW' = I, it gives a.b = V'a.V'b + W'a.W'b, and r(z) = |W'z|, so that with the letters of `triton.py` a score is

  a.b - r |b|^2 / 2  <=  V'a.V'b + r(a) r(b) - r |b|^2 / 2

for every V: the basis is a hint and decides how many codes survive, never which is the nearest. The matrix used is
what float16 holds of the basis, V^, over a bound of its norm: |V^|^2 <= 1 + trace(G^8)^(1/8), G = V^'V^ - I. With p^
and q^, what is stored for V'a and V'b, and R rounded up,

  score <= p^.q^ + R_a R_b - r |b|^2 / 2 + |V'a - p^| |b| + |p^| |V'b - q^| + rounding

  |V'a - p^|  <=  |a - a^| + e + |p - p^|,   e = (3 (S + 16) + 2 C / S) 2^-23 |a^| |V|_F
  R_a          =  sqrt(|a^|^2 - (|p| - e)^2) + |a - a^|        (r is a length: it obeys the triangle inequality)

where p is what the matrix unit makes of V'a^ in steps of S channels: each is off by what `triton.py` says of S
channels, and the C / S sums are rounded to float32. One code, the one of the largest bound or the guess, is multiplied
in full, which bounds the row's best score from below. Codes whose upper bound reaches it survive. A single one is the
answer. A few are compared in float64. More, or a row that cannot be screened, are left to the screening of all
channels; so are all rows where half of the first few hundred were.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from soho_fast.ops.codebook_lookup.triton_pack import (
    TILE,
    UNUSABLE,
    PackedCodes,
    length_of,
    padded_sizes,
    to_float16,
)
from soho_fast.ops.triton_backend import ceil_div, launch

STEP = tl.constexpr(64)  # S: channels of one step of the projection
MOST_CLOSE = tl.constexpr(8)  # survivors of a row that are compared in float64
LOWEST = tl.constexpr(-3.0e38)
_TRIAL_ROWS = 512  # which decide whether the pass goes on
_MOST_DIRECTIONS = 128


@triton.jit
def _project(
    row_pointers,  # (BLOCK_N,) to a^ or b^
    directions,  # V^ (D padded channels, BLOCK_D)
    inverse_norm,
    end,  # of the channels
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """p (BLOCK_N, BLOCK_D) and the sum of squares of the rows."""
    channel, direction = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    p = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    square = tl.zeros([BLOCK_N], dtype=tl.float32)
    for start in range(0, end, BLOCK_S):
        rows = tl.load(row_pointers[:, None] + (start + channel)[None, :])
        part = tl.load(directions + (start + channel)[:, None] * BLOCK_D + direction[None, :])
        # The factor within the loop keeps the sum of the steps out of the matrix unit, which rounds more coarsely.
        p += tl.dot(rows, part) * inverse_norm
        square += tl.sum(rows.to(tl.float32) * rows.to(tl.float32), axis=1)
    return p, square


@triton.jit
def _rounded_projection(p, size, lost, frobenius, num_steps, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    """p^, R, |p^| and |V'a - p^| of rows with |a^| <= size and |a - a^| <= lost."""
    error = (3.0 * (BLOCK_S + 16) + 2.0 * num_steps.to(tl.float32)) * (2.0**-23) * frobenius * size
    near = to_float16(p)
    kept = near.to(tl.float32)
    inside = tl.sqrt(tl.sum(p * p, axis=1)) * (1.0 - (BLOCK_D + 64) * (2.0**-24))
    inside = tl.maximum(inside - error, 0.0)
    outside = tl.maximum(size * size - inside * inside, 0.0) + size * size * (2.0**-21)
    rest = tl.sqrt(outside) * (1.0 + 2.0**-20) + lost
    p_lost = lost + error + length_of(tl.sum((p - kept) * (p - kept), axis=1), BLOCK_D)
    return near, rest, length_of(tl.sum(kept * kept, axis=1), BLOCK_D), p_lost * (1.0 + 2.0**-20)


@triton.jit
def _project_codes(
    codes,
    half_square,
    code_lost,
    directions,
    norms,
    reduced_codes,
    code_rest,
    reduced_lost,
    num_channels,
    padded_codes,
    padded_channels,
    codes_stride,
    half_square_stride,
    code_lost_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per block of codes: q^, R_b and |V'b - q^|."""
    num_blocks = padded_codes // BLOCK_N
    group = (tl.program_id(0) // num_blocks).to(tl.int64)
    code = (tl.program_id(0) % num_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    inverse_norm, frobenius = tl.load(norms + 2 * group), tl.load(norms + 2 * group + 1)
    row_pointers = codes + group * codes_stride + code.to(tl.int64) * padded_channels
    own = directions + group * padded_channels * BLOCK_D
    q, square = _project(row_pointers, own, inverse_norm, padded_channels, BLOCK_N, BLOCK_S, BLOCK_D)
    usable = tl.load(half_square + group * half_square_stride + code) < UNUSABLE
    lost = tl.load(code_lost + group * code_lost_stride + code)
    size = length_of(square, num_channels)
    near, rest, _, q_lost = _rounded_projection(q, size, lost, frobenius, padded_channels // BLOCK_S, BLOCK_S, BLOCK_D)
    place = group * padded_codes + code
    tl.store(reduced_codes + place[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :], near)
    tl.store(code_rest + place, tl.where(usable, rest, 0.0))
    tl.store(reduced_lost + place, tl.where(usable, q_lost, 0.0))


@triton.jit
def _upper_bounds(p, rest, r, reduced_codes, code_rest, half, BLOCK_N: tl.constexpr):
    """p^.q^ + R_a R_b - r |b|^2 / 2 (BLOCK_N, TILE) of one tile of codes."""
    product = tl.dot(p, reduced_codes, tl.zeros([BLOCK_N, TILE], dtype=tl.float32))
    return product + (rest[:, None] * code_rest[None, :] - half[None, :] * r[:, None])


@triton.jit(do_not_specialize=["num_rows", "num_blocks", "first_block"])
def _screen_reduced(
    rounded,
    ratio,
    length,
    lost,
    codes,
    half_square,
    code_length,
    code_lost,
    directions,
    norms,
    reduced_codes,
    code_rest,
    reduced_lost,
    guess,
    index,
    projected,
    rest,
    close_rows,
    threshold,
    num_close,
    left_rows,
    num_left,
    left_of_trial,
    num_rows,
    num_blocks,
    first_block,
    num_codes,
    num_channels,
    padded_codes,
    padded_channels,
    codes_stride,
    half_square_stride,
    code_length_stride,
    code_lost_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TRIAL_ROWS: tl.constexpr,
    HAS_GUESS: tl.constexpr,
    IS_TRIAL: tl.constexpr,
):
    """Blocks [first_block, first_block + num_blocks) of the rows of each codebook: writes the index of the rows to
    which one code is left, and lists the others, as close or as left to the screening of all channels."""
    group = (tl.program_id(0) // num_blocks).to(tl.int64)
    row = (first_block + tl.program_id(0) % num_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    real = row < num_rows
    place = group * num_rows + tl.minimum(row, num_rows - 1)
    goes_on = 1
    if not IS_TRIAL:
        tried = tl.minimum(num_rows, TRIAL_ROWS)
        goes_on = (2 * tl.load(left_of_trial + group) < tried).to(tl.int32)
    end_channel, end_code = padded_channels * goes_on, padded_codes * goes_on
    column, direction = tl.arange(0, TILE), tl.arange(0, BLOCK_D)

    a, a_lost, r = tl.load(length + place), tl.load(lost + place), tl.load(ratio + place)
    row_pointers = rounded + place * padded_channels
    inverse_norm, frobenius = tl.load(norms + 2 * group), tl.load(norms + 2 * group + 1)
    own = directions + group * padded_channels * BLOCK_D
    p, _ = _project(row_pointers, own, inverse_norm, end_channel, BLOCK_N, BLOCK_S, BLOCK_D)
    near, own_rest, near_length, p_lost = _rounded_projection(
        p, a, a_lost, frobenius, padded_channels // BLOCK_S, BLOCK_S, BLOCK_D
    )

    first = tl.zeros([BLOCK_N], dtype=tl.int32)
    end_search = end_code
    halves = half_square + group * half_square_stride
    if HAS_GUESS:
        guessed = tl.load(guess + place)
        known = (guessed >= 0) & (guessed < num_codes)
        first = tl.where(known, guessed, 0).to(tl.int32)
        known = known & (tl.load(halves + first) < UNUSABLE)
        end_search = end_code * (tl.min((known | ~real).to(tl.int32), axis=0) == 0).to(tl.int32)
    best = tl.full([BLOCK_N], LOWEST, tl.float32)
    best_code = tl.zeros([BLOCK_N], dtype=tl.int32)
    for start in range(0, end_search, TILE):
        code = start + column
        half = tl.load(halves + code)
        panel = reduced_codes + (group * padded_codes + code.to(tl.int64)) * BLOCK_D
        upper = _upper_bounds(
            near,
            own_rest,
            r,
            tl.load(panel[None, :] + direction[:, None]),
            tl.load(code_rest + group * padded_codes + code),
            half,
            BLOCK_N,
        )
        top = tl.max(upper, axis=1)
        at = tl.min(tl.where(upper == top[:, None], column[None, :], TILE - 1), axis=1)
        best_code = tl.where(top > best, start + at, best_code)
        best = tl.maximum(best, top)
    first = tl.where(known, first, best_code) if HAS_GUESS else best_code

    # The score of that code from below, as `triton.py` bounds it.
    product = tl.zeros([BLOCK_N], dtype=tl.float32)
    first_pointers = codes + group * codes_stride + first.to(tl.int64) * padded_channels
    for start in range(0, end_channel, BLOCK_S):
        channel = (start + tl.arange(0, BLOCK_S))[None, :]
        x = tl.load(row_pointers[:, None] + channel).to(tl.float32)
        d = tl.load(first_pointers[:, None] + channel).to(tl.float32)
        product += tl.sum(x * d, axis=1)
    first_half = tl.load(halves + first)
    b_first = tl.load(code_length + group * code_length_stride + first)
    b_first_lost = tl.load(code_lost + group * code_lost_stride + first)
    longest = tl.zeros([TILE], dtype=tl.float32)
    most_lost = tl.zeros([TILE], dtype=tl.float32)
    largest_rest = tl.zeros([TILE], dtype=tl.float32)
    for start in range(0, end_code, TILE):
        code = start + column
        longest = tl.maximum(longest, tl.load(code_length + group * code_length_stride + code))
        most_lost = tl.maximum(most_lost, tl.load(reduced_lost + group * padded_codes + code))
        largest_rest = tl.maximum(largest_rest, tl.load(code_rest + group * padded_codes + code))
    b, q_lost, b_rest = tl.max(longest, axis=0), tl.max(most_lost, axis=0), tl.max(largest_rest, axis=0)

    unit = num_channels.to(tl.float32) + 16.0
    reach = a + a_lost + r * b
    in_float64 = unit * (2.0**-52) * reach * reach / r
    half_terms = 0.5 * r * b * b
    terms = a * (b_first + b_first_lost) + half_terms
    bound = a_lost * b_first + a * b_first_lost + 1.5 * unit * (2.0**-22) * terms + in_float64
    # Of an upper bound: the rounding of p and q, of their product, of |b|^2, and of the other sums to float32.
    of_all = near_length * (b + q_lost) + own_rest * b_rest + half_terms
    window = p_lost * b + near_length * q_lost + 3.0 * (BLOCK_D + 16) * (2.0**-23) * near_length * (b + q_lost)
    window += 1.5 * unit * (2.0**-22) * half_terms + (2.0**-20) * (of_all + terms) + in_float64
    lowest = (product - first_half * r) - (bound + window) * (1.0 + 2.0**-10)

    survivors = tl.zeros([BLOCK_N], dtype=tl.int32)
    winner = tl.zeros([BLOCK_N], dtype=tl.int32)
    for start in range(0, end_code, TILE):
        code = start + column
        half = tl.load(halves + code)
        panel = reduced_codes + (group * padded_codes + code.to(tl.int64)) * BLOCK_D
        upper = _upper_bounds(
            near,
            own_rest,
            r,
            tl.load(panel[None, :] + direction[:, None]),
            tl.load(code_rest + group * padded_codes + code),
            half,
            BLOCK_N,
        )
        alive = (half < UNUSABLE)[None, :] & ~(upper < lowest[:, None])
        survivors += tl.sum(alive.to(tl.int32), axis=1)
        winner = tl.maximum(winner, tl.max(tl.where(alive, code[None, :], 0), axis=1))

    # A threshold that is not a number, a row with NaN and one with no survivor are none of this pass's.
    decides = (r > 0.0) & (tl.abs(lowest) < float("inf")) & (survivors > 0)
    if not IS_TRIAL:
        decides = decides & ((survivors * goes_on) > 0)
    settled = real & decides & (survivors == 1)
    close = real & decides & (survivors > 1) & (survivors <= MOST_CLOSE)
    left = real & ~settled & ~close
    tl.store(index + place, winner.to(tl.int64), mask=settled)
    tl.store(projected + place[:, None] * BLOCK_D + direction[None, :], near, mask=close[:, None])
    tl.store(rest + place, own_rest, mask=close)

    counted = close.to(tl.int32)
    slot = group * num_rows + tl.atomic_add(num_close + group, tl.sum(counted, axis=0))
    slot = slot + tl.cumsum(counted, axis=0) - counted
    tl.store(close_rows + slot, row, mask=close)
    tl.store(threshold + slot, lowest, mask=close)
    counted = left.to(tl.int32)
    total = tl.sum(counted, axis=0)
    slot = group * num_rows + tl.atomic_add(num_left + group, total) + tl.cumsum(counted, axis=0) - counted
    tl.store(left_rows + slot, row, mask=left)
    if IS_TRIAL:
        tl.atomic_add(left_of_trial + group, total)


KERNELS = [_project_codes, _screen_reduced]


class ReducedCodes(NamedTuple):
    """What the reduced pass reads of a codebook and its basis."""

    directions: Tensor  # V^ (G, D, B); B directions up to a power of two
    norms: Tensor  # (G, 2): 1 / the bound of |V^|, and |V|_F
    reduced_codes: Tensor  # q^ (G, Q, B)
    code_rest: Tensor  # R_b (G, Q)
    reduced_lost: Tensor  # |V'b - q^| (G, Q)

    @property
    def num_directions(self) -> int:
        return self.directions.shape[2]


def _padded_directions(num_directions: int) -> int:
    return next(size for size in (16, 32, 64, 128) if num_directions <= size or size == _MOST_DIRECTIONS)


def can_reduce(num_directions: int, num_channels: int) -> bool:
    """Whether fewer products are made than by the screening of all channels."""
    return num_directions > 0 and 2 * _padded_directions(num_directions) <= num_channels


def _used_directions(basis_GCD: Tensor, padded_channels: int) -> tuple[Tensor, Tensor]:
    """V^, its longest column of length about 1, zeros where the basis is not finite; and `norms`."""
    width = _padded_directions(basis_GCD.shape[2])
    basis_GCD = basis_GCD[:, :, :width].double()
    basis_GCD = torch.where(basis_GCD.isfinite().all(1, keepdim=True), basis_GCD, 0.0)
    longest_G = basis_GCD.square().sum(1).amax(1).sqrt()[:, None, None]
    scaled_GCD = torch.where(longest_G > 0, basis_GCD / longest_G, 0.0)
    scaled_GCD = torch.where(scaled_GCD.abs() < 2.0**-14, 0.0, scaled_GCD).half()  # subnormals, as `to_float16`
    num_channels, num_directions = scaled_GCD.shape[1:]
    used = torch.nn.functional.pad(scaled_GCD, (0, width - num_directions, 0, padded_channels - num_channels))
    exact = used.double()
    excess = exact.transpose(1, 2) @ exact - torch.eye(width, dtype=torch.float64, device=exact.device)
    for _ in range(2):
        excess = excess @ excess
    norm_G = (1.0 + excess.square().sum((1, 2)) ** 0.125 * (1 + 2.0**-30) + 2.0**-30).sqrt()
    inverse_G = (1.0 - 2.0**-20) / norm_G
    frobenius_G = (1.0 + 2.0**-20) * inverse_G * exact.square().sum((1, 2)).sqrt()
    return used, torch.stack([inverse_G, frobenius_G], 1).float()


def reduced_parts(packed: PackedCodes, basis: Tensor, num_codes: int) -> ReducedCodes:
    """The packed codebooks in the directions of `basis` (C, D) or (..., C, D)."""
    num_codebooks, padded_codes, padded_channels = packed.codes.shape
    num_channels = packed.centre.shape[1]
    if basis.shape[-2] != num_channels:
        raise ValueError(f"basis: expected {num_channels} channels like codebook, got shape {tuple(basis.shape)}")
    basis_GCD = basis.reshape(-1, *basis.shape[-2:]).expand(num_codebooks, -1, -1)
    directions, norms = _used_directions(basis_GCD, padded_channels)
    num_directions = directions.shape[2]
    reduced = ReducedCodes(
        directions=directions.contiguous(),
        norms=norms.contiguous(),
        reduced_codes=packed.codes.new_empty((num_codebooks, padded_codes, num_directions)),
        code_rest=packed.half_square.new_empty((num_codebooks, padded_codes)),
        reduced_lost=packed.half_square.new_empty((num_codebooks, padded_codes)),
    )
    launch(
        _project_codes,
        num_codebooks * (padded_codes // 64),
        **packed.arguments("codes", "half_square", "code_lost"),
        **reduced._asdict(),
        num_channels=num_channels,
        padded_codes=padded_codes,
        padded_channels=padded_channels,
        BLOCK_N=64,
        BLOCK_S=min(STEP.value, padded_channels),
        BLOCK_D=num_directions,
    )
    return reduced


def reduced_sizes(num_directions: int, num_codes: int, num_channels: int) -> tuple[list[int], list[torch.dtype]]:
    """Bytes and types of the parts of `ReducedCodes` for each codebook; num_directions is a padded one."""
    padded_codes, padded_channels, _ = padded_sizes(num_codes, num_channels)
    sizes = [2 * padded_channels * num_directions, 8, 2 * padded_codes * num_directions, *(2 * [4 * padded_codes])]
    return sizes, [torch.float16, torch.float32, torch.float16, torch.float32, torch.float32]


def unpacked_reduced(packed: Tensor, num_codes: int, num_channels: int) -> ReducedCodes | None:
    """The bytes (G, size) behind `PackedCodes` as views; None where there are none."""
    if packed.shape[1] == 0:
        return None
    padded_codes, padded_channels, _ = padded_sizes(num_codes, num_channels)
    for num_directions in (16, 32, 64, 128):
        sizes, types = reduced_sizes(num_directions, num_codes, num_channels)
        if packed.shape[1] == sum(sizes):
            parts = [part.view(dtype) for part, dtype in zip(packed.split(sizes, 1), types, strict=True)]
            parts = [part.contiguous() for part in parts]
            parts[0] = parts[0].unflatten(1, (padded_channels, num_directions))
            parts[2] = parts[2].unflatten(1, (padded_codes, num_directions))
            return ReducedCodes(*parts)
    raise ValueError(f"packed: expected what pack_codebook returned, got {packed.shape[1]} bytes for a basis")


def screen_reduced(
    parts: PackedCodes,
    reduced: ReducedCodes,
    rows: dict[str, Tensor],
    guess_GN: Tensor | None,
    index_GN: Tensor,
    sizes: dict[str, int],
    num_codes: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Looks up what the reduced pass can. `rows` is what `_round_features` wrote.

    Returns:
        The close rows as `_compare` takes them, and the left rows as `_screen` takes them.
    """
    num_codebooks, num_rows = index_GN.shape

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return index_GN.new_empty((num_codebooks, num_rows, *shape), dtype=dtype)

    def counter() -> Tensor:
        return index_GN.new_zeros((num_codebooks,), dtype=torch.int32)

    close = {"projected": empty(reduced.num_directions, dtype=torch.float16), "rest": empty()}
    close |= {"close_rows": empty(dtype=torch.int32), "threshold": empty(), "num_close": counter()}
    left = {"left_rows": empty(dtype=torch.int32), "num_left": counter()}
    block = 128 if reduced.num_directions <= 64 else 64  # rows: registers hold their projections and scores
    blocks, trial_blocks = ceil_div(num_rows, block), _TRIAL_ROWS // block
    left_of_trial = counter()
    for is_trial in (True, False):
        wanted = torch.sym_min(blocks, trial_blocks) if is_trial else torch.sym_max(blocks - trial_blocks, 1)
        launch(
            _screen_reduced,
            num_codebooks * wanted,
            **rows,
            **parts.arguments("codes", "half_square", "code_length", "code_lost"),
            **reduced._asdict(),
            guess=index_GN if guess_GN is None else guess_GN,
            index=index_GN,
            **close,
            **left,
            left_of_trial=left_of_trial,
            **sizes,
            num_blocks=wanted,
            first_block=0 if is_trial else trial_blocks,
            num_codes=num_codes,
            BLOCK_N=block,
            BLOCK_S=min(STEP.value, sizes["padded_channels"]),
            BLOCK_D=reduced.num_directions,
            TRIAL_ROWS=_TRIAL_ROWS,
            HAS_GUESS=guess_GN is not None,
            IS_TRIAL=is_trial,
            num_warps=8,
            num_stages=2,
        )
    return close, left
