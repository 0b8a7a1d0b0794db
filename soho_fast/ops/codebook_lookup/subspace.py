"""The principal subspace of a codebook, for the low-dimensional pruning of a lookup.

Letters: K codes, C channels, D dimensions of the subspace, S sampled codes.
"""

import torch
from torch import Tensor

from soho_fast.ops import checks

MOST_DIMENSIONS = 128
_MOST_SAMPLED = 4096  # codes that make a subspace
_STEPS = 4  # of subspace iteration, from a random start
# By default the fewest dimensions, in whole vectors, that leave out at most this share of the codes' variance, or as
# many as are worth it: MobileNetV2's never get there. With 128 instead of 96 of these, lookups took 0.84 to 1.19 times
# as long by shape and level, 1.02 in the mean, and 1.14 where the codes learnt from the very rows, as in k-means.
_LEFT_OUT = 1 / 64
_VECTOR = 16
_WORTH_IT = 96
# Where half of the channels, or all dimensions, leave out more they gain nothing; MobileNetV2's codes leave out 0.06 to
# 0.21, random ones 0.28 to 0.85, or less where there are fewer than 1,024. On few channels there is less to save, so
# that little may be left out.
_HOPELESS, _HOPELESS_OF_FEW, _FEW_CODES = 0.24, 0.2, 1024
_FEW_CHANNELS = 128


def check_subspace(subspace: Tensor, codebook: Tensor) -> None:
    """Raise unless `subspace` is float32 (C, D), or (..., C, D) with the batch shape of the codebook."""
    checks.check_type("subspace", subspace, (torch.float32,))
    num_channels = codebook.shape[-1]
    fits = (
        subspace.dim() >= 2 and subspace.shape[-2] == num_channels and subspace.shape[:-2] in ((), codebook.shape[:-2])
    )
    if not fits or not 1 <= subspace.shape[-1] <= MOST_DIMENSIONS:
        raise ValueError(
            f"subspace: expected (C, D), or (..., C, D) with the batch shape of the codebook, with C = {num_channels} "
            f"and 1 <= D <= {MOST_DIMENSIONS}, got shape {tuple(subspace.shape)}"
        )
    checks.check_same_device(codebook=codebook, subspace=subspace)


def pays(num_codes: int, num_channels: int) -> bool:
    """Whether pruning can pay on a codebook of this size: on fewer channels or codes there is little to save.

    Patches of photographs, 4,096 rows, 1,000 codes of 48; 75; 108 channels, one thread of an Intel Xeon, level `amx`:
    3.9; 4.8; 5.5 ms, without pruning 8.1; 9.1; 10.1 ms.
    """
    return num_codes >= 256 and num_channels >= 48 and num_codes * num_channels >= 2**15


@torch.no_grad()
def codebook_subspace(codebook: Tensor, *, dimensions: int | None = None, start: Tensor | None = None) -> Tensor:
    """The principal subspace of the codes, as an orthonormal basis; it makes `codebook_lookup` faster and never changes
    its result.

    The codes of a codebook that learnt from real features vary in few dimensions. A lookup that is given their subspace
    compares in it first, and proves for each feature which codes are left (Cauchy-Schwarz on the rest). The subspace
    may be stale. In training, update it now and then by `start`: one step of subspace iteration, 4KCD operations.

    Args:
        codebook: (K, C) or (..., K, C) float32, bfloat16 or float16. A code that is not finite counts as their mean.
        dimensions: D, 1 to 128; by default as many as `start` has, or the fewest, a multiple of 16 up to 96 (C at
            most), outside of which lies at most 1/64 of the codes' variance.
        start: the subspace of an earlier codebook, float32 (..., C, D).

    Returns:
        subspace float32 (C, D) or (..., C, D).

    Raises:
        TypeError, ValueError: tensors of the wrong type or shape, or an invalid number of dimensions.
    """
    checks.check_codebook(codebook, with_values=True)
    if codebook.shape[-1] < 1:
        raise ValueError(f"codebook: expected at least one channel, got shape {tuple(codebook.shape)}")
    if start is not None:
        check_subspace(start, codebook)
        if dimensions not in (None, start.shape[-1]):
            raise ValueError(f"dimensions: expected {start.shape[-1]} as start has, got {dimensions}")
    most = min(MOST_DIMENSIONS, codebook.shape[-1])
    count = checks.check_int("dimensions", most if dimensions is None else dimensions, 1, most)

    apart_SC = _apart(codebook)
    if start is not None:
        return _iterated(apart_SC, start.detach(), 1)
    wide_CD = _iterated(apart_SC, _random_start(codebook, count), _STEPS)
    if dimensions is not None:
        return wide_CD
    return wide_CD[..., : _fewest(_left_out(apart_SC, wide_CD))].contiguous()


def _apart(codebook: Tensor) -> Tensor:
    """The differences of some codes from their mean, scaled."""
    step = -(-codebook.shape[-2] // _MOST_SAMPLED)
    code_SC = codebook[..., ::step, :].detach().float()
    finite_S = code_SC.isfinite().all(-1, keepdim=True)
    largest = code_SC.where(finite_S, 0.0).abs().amax((-2, -1), keepdim=True)
    # Scaled, so that no square overflows or vanishes.
    code_SC = (code_SC / largest.clamp(min=torch.finfo(torch.float32).tiny)).where(finite_S, 0.0)
    mean_C = code_SC.sum(-2, keepdim=True) / finite_S.sum(-2, keepdim=True).clamp(min=1)
    return (code_SC - mean_C).where(finite_S, 0.0)


def _iterated(apart_SC: Tensor, subspace_CD: Tensor, num_steps: int) -> Tensor:
    with torch.autocast(apart_SC.device.type, enabled=False):
        for _ in range(num_steps):
            # From the right: the C x C covariance is never made.
            subspace_CD = torch.linalg.qr(apart_SC.mT @ (apart_SC @ subspace_CD)).Q
    return subspace_CD.contiguous()


def _left_out(apart_SC: Tensor, subspace_CD: Tensor) -> Tensor:
    """(D,): which share of the variance lies outside of the first dimensions; of several codebooks the largest."""
    variance = apart_SC.square().sum((-2, -1)).clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    with torch.autocast(apart_SC.device.type, enabled=False):
        left_D = 1 - (apart_SC @ subspace_CD).square().sum(-2).cumsum(-1) / variance
    none_1D = left_D.new_zeros(1, left_D.shape[-1])  # for no codebooks
    return torch.cat([left_D.reshape(-1, left_D.shape[-1]), none_1D]).amax(0)


def _fewest(left_D: Tensor) -> int:
    """How many dimensions are enough, in whole vectors."""
    # left_D falls: as many dimensions as are above the limit are not enough, one more is.
    return min(_WORTH_IT, (int((left_D > _LEFT_OUT).sum()) // _VECTOR + 1) * _VECTOR)


@torch.no_grad()
def paying_subspace(codebook: Tensor) -> Tensor | None:
    """`codebook_subspace(codebook)`, or None where it holds so little of the codes that a lookup would gain nothing."""
    apart_SC = _apart(codebook)
    return _paying(apart_SC, _iterated(apart_SC, _random_wide(codebook), _STEPS))


def _paying(apart_SC: Tensor, wide_CD: Tensor) -> Tensor | None:
    left_D = _left_out(apart_SC, wide_CD)
    num_codes, num_channels = apart_SC.shape[-2:]
    most = _HOPELESS_OF_FEW if num_codes < _FEW_CODES else _HOPELESS
    most = _LEFT_OUT if num_channels < _FEW_CHANNELS else most
    return wide_CD[..., : _fewest(left_D)].contiguous() if left_D[-1] <= most else None


def _random_wide(codebook: Tensor) -> Tensor:
    return _random_start(codebook, min(MOST_DIMENSIONS, codebook.shape[-1] // 2))


def _random_start(codebook: Tensor, count: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    drawn_CD = torch.randn(codebook.shape[-1], count, generator=generator, dtype=torch.float32, device="cpu")
    return drawn_CD.to(codebook.device)


class MovingSubspace:
    """The principal subspace of a codebook that moves, as in training and in k-means: found at first, updated at the
    next lookup and then every few.

    It is no state: nothing but the time of a lookup depends on it, so it need not be saved.
    """

    def __init__(self, interval: int = 16) -> None:
        """
        Args:
            interval: lookups between two updates, but the first.
        """
        self.interval = checks.check_int("interval", interval, 1)
        self._wide: Tensor | None = None
        self._subspace: Tensor | None = None
        self._num_lookups = 0

    def of(self, codebook: Tensor) -> Tensor | None:
        """What to pass to the next `codebook_lookup(..., subspace=)` in this codebook; None where pruning cannot pay:
        few codes or channels, codes that vary in all dimensions alike, another device than a CPU, a graph that is being
        compiled."""
        if torch.compiler.is_compiling():
            return None
        checks.check_untransformed("codebook", codebook)  # what a transform wraps must not outlive it
        if codebook.device.type != "cpu" or not pays(*codebook.shape[-2:]):
            return None
        if self._wide is None or self._wide.shape[:-1] != (*codebook.shape[:-2], codebook.shape[-1]):
            self._wide, self._num_lookups = None, 0
        # Codes that were drawn from the rows move most, and towards fewer dimensions, in their first step.
        if self._num_lookups == 1 or self._num_lookups % self.interval == 0:
            self._update(codebook)
        self._num_lookups += 1
        return self._subspace

    @torch.no_grad()
    def _update(self, codebook: Tensor) -> None:
        apart_SC = _apart(codebook)
        if self._wide is None:
            self._wide = _iterated(apart_SC, _random_wide(codebook), _STEPS)
        else:
            # All dimensions are followed, whichever are used: how many pay changes as codes move.
            self._wide = _iterated(apart_SC, self._wide, 1)
        self._subspace = _paying(apart_SC, self._wide)
