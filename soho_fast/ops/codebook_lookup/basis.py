"""Directions in which the codes of a codebook differ most, for the reduced pass of a lookup.

Letters: K codes, C channels, D directions, S sampled codes.
"""

import torch
from torch import Tensor

from soho_fast.ops import checks
from soho_fast.ops.forward_mode import in_transform

MOST_DIRECTIONS = 128
_MOST_SAMPLED = 4096  # codes that make a basis
_STEPS = 4  # of subspace iteration, from random directions
# By default the fewest directions, in whole vectors, that leave out at most this share of the codes' variance, or as
# many as are worth it: MobileNetV2's never get there. With 128 instead of 96 of these, lookups took 0.84 to 1.19 times
# as long by shape and level, 1.02 in the mean, and 1.14 where the codes learnt from the very rows, as in k-means.
_LEFT_OUT = 1 / 64
_VECTOR = 16
_WORTH_IT = 96
# Where half of the channels, or all directions, leave out more they gain nothing; MobileNetV2's codes leave out 0.06 to
# 0.15, random ones 0.25 to 0.85.
_HOPELESS = 0.2


def check_basis(basis: Tensor, codebook: Tensor) -> None:
    """Raise unless `basis` is float32 (C, D), or (..., C, D) with the batch shape of the codebook."""
    checks.check_type("basis", basis, (torch.float32,))
    num_channels = codebook.shape[-1]
    fits = basis.dim() >= 2 and basis.shape[-2] == num_channels and basis.shape[:-2] in ((), codebook.shape[:-2])
    if not fits or not 1 <= basis.shape[-1] <= MOST_DIRECTIONS:
        raise ValueError(
            f"basis: expected (C, D), or (..., C, D) with the batch shape of the codebook, with C = {num_channels} and "
            f"1 <= D <= {MOST_DIRECTIONS}, got shape {tuple(basis.shape)}"
        )
    checks.check_same_device(codebook=codebook, basis=basis)


def pays(num_codes: int, num_channels: int) -> bool:
    """Whether a reduced pass can pay on a codebook of this size: on fewer channels or codes there is little to save."""
    return num_codes >= 256 and num_channels >= 128


@torch.no_grad()
def codebook_basis(codebook: Tensor, *, directions: int | None = None, start: Tensor | None = None) -> Tensor:
    """Orthonormal directions in which the codes differ most: a hint for `codebook_lookup`, where they decide how long
    it takes and never what it answers.

    A codebook that learnt from real features differs from itself in a few directions; a lookup that has them multiplies
    these alone and proves for each feature which codes are left (Cauchy-Schwarz on the rest). Directions may be stale:
    in training, turn them now and then by `start`, one step of subspace iteration, 4KCD operations.

    Args:
        codebook: (K, C) or (..., K, C) float32, bfloat16 or float16. A code that is not finite counts as their mean.
        directions: D, 1 to 128; by default as many as `start` has, or the fewest, a multiple of 16 up to 96 (C at
            most), outside of which lies at most 1/64 of the codes' variance.
        start: directions of an earlier codebook, float32 (..., C, D).

    Returns:
        basis float32 (C, D) or (..., C, D).

    Raises:
        TypeError, ValueError: tensors of the wrong type or shape, or a number of directions that is none.
    """
    checks.check_codebook(codebook)
    if start is not None:
        check_basis(start, codebook)
        if directions not in (None, start.shape[-1]):
            raise ValueError(f"directions: expected {start.shape[-1]} as start has, got {directions}")
    most = min(MOST_DIRECTIONS, codebook.shape[-1])
    count = most if directions is None else directions
    checks.check_int("directions", count, 1, most)

    apart_SC = _apart(codebook)
    if start is not None:
        return _turned(apart_SC, start.detach(), 1)
    wide_CD = _turned(apart_SC, _random_directions(codebook, count), _STEPS)
    if directions is not None:
        return wide_CD
    return wide_CD[..., : _fewest(_left_out(apart_SC, wide_CD))].contiguous()


def _apart(codebook: Tensor) -> Tensor:
    """The differences of some codes from their mean, scaled."""
    step = -(-codebook.shape[-2] // _MOST_SAMPLED)
    code_SC = codebook[..., ::step, :].detach().float()
    finite_S = code_SC.isfinite().all(-1, keepdim=True)
    largest = code_SC.where(finite_S, 0.0).abs().amax((-2, -1), keepdim=True)
    code_SC = (code_SC / largest.clamp(min=torch.finfo(torch.float32).tiny)).where(finite_S, 0.0)
    mean_C = code_SC.sum(-2, keepdim=True) / finite_S.sum(-2, keepdim=True).clamp(min=1)
    return (code_SC - mean_C).where(finite_S, 0.0)


def _turned(apart_SC: Tensor, basis_CD: Tensor, num_steps: int) -> Tensor:
    for _ in range(num_steps):
        basis_CD = torch.linalg.qr(apart_SC.mT @ (apart_SC @ basis_CD)).Q
    return basis_CD.contiguous()


def _left_out(apart_SC: Tensor, basis_CD: Tensor) -> Tensor:
    """(D,): which share of the variance lies outside of the first directions; of several codebooks the largest."""
    variance = apart_SC.square().sum((-2, -1)).clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    left_D = 1 - (apart_SC @ basis_CD).square().sum(-2).cumsum(-1) / variance
    return left_D.flatten(0, -2).amax(0) if left_D.dim() > 1 else left_D


def _fewest(left_D: Tensor) -> int:
    """How many directions are enough, in whole vectors."""
    return min(_WORTH_IT, (int((left_D > _LEFT_OUT).sum()) // _VECTOR + 1) * _VECTOR)


@torch.no_grad()
def paying_basis(codebook: Tensor) -> Tensor | None:
    """`codebook_basis(codebook)`, or None where it holds so little of the codes that a lookup would gain nothing."""
    apart_SC = _apart(codebook)
    return _paying(apart_SC, _turned(apart_SC, _wide_start(codebook), _STEPS))


def _paying(apart_SC: Tensor, wide_CD: Tensor) -> Tensor | None:
    left_D = _left_out(apart_SC, wide_CD)
    return wide_CD[..., : _fewest(left_D)].contiguous() if left_D[-1] <= _HOPELESS else None


def _wide_start(codebook: Tensor) -> Tensor:
    return _random_directions(codebook, min(MOST_DIRECTIONS, codebook.shape[-1] // 2))


def _random_directions(codebook: Tensor, count: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    drawn_CD = torch.randn(codebook.shape[-1], count, generator=generator, dtype=torch.float32, device="cpu")
    return drawn_CD.to(codebook.device)


class MovingBasis:
    """Directions of a codebook that moves, as in training and in k-means: made at first, turned at the next lookup
    and then every few.

    They are a hint, no state: nothing depends on them but the time of a lookup, so they need not be saved.
    """

    def __init__(self, interval: int = 16) -> None:
        """
        Args:
            interval: lookups between two turns, but the first.
        """
        checks.check_int("interval", interval, 1)
        self.interval = interval
        self._wide: Tensor | None = None
        self._basis: Tensor | None = None
        self._num_lookups = 0

    def of(self, codebook: Tensor) -> Tensor | None:
        """What to pass to the next `codebook_lookup(..., basis=)` in this codebook; None where directions cannot pay:
        few codes or channels, codes that differ in all directions alike, another device than a CPU, a graph that is
        being compiled, a transform of torch.func, which what it wraps must not outlive."""
        if torch.compiler.is_compiling() or in_transform():
            return None
        if codebook.device.type != "cpu" or not pays(*codebook.shape[-2:]):
            return None
        if self._wide is None or self._wide.shape[:-1] != (*codebook.shape[:-2], codebook.shape[-1]):
            self._wide, self._num_lookups = None, 0
        # Codes that were drawn from the rows move most, and towards fewer directions, in their first step.
        if self._num_lookups == 1 or self._num_lookups % self.interval == 0:
            self._turn(codebook)
        self._num_lookups += 1
        return self._basis

    @torch.no_grad()
    def _turn(self, codebook: Tensor) -> None:
        apart_SC = _apart(codebook)
        if self._wide is None:
            self._wide = _turned(apart_SC, _wide_start(codebook), _STEPS)
        else:
            self._wide = _turned(apart_SC, self._wide, 1)
        self._basis = _paying(apart_SC, self._wide)
