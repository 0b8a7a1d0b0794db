"""Codebook update (SOHO eq. 4): counts and sums of the features assigned to each code, then the moving average.

Letters: N features, K codes, C channels.
"""

import torch
from torch import Tensor

from soho_fast.ops import checks
from soho_fast.ops.backends import define_op, mark_changed, op_for
from soho_fast.ops.codebook_update import reference


def _check_assigned(features: Tensor, index: Tensor, valid: Tensor | None) -> None:
    checks.check_type("features", features)
    if features.dim() < 1:
        raise ValueError("features: expected at least 1 dimension (..., C), got a scalar")
    checks.check_index("index", index, features.shape[:-1], "(..., N) like features without its channels")
    checks.check_valid(valid, features.shape[:-1], "(..., N) like index")
    checks.check_same_device(features=features, index=index, valid=valid)


def _check_codebook(codebook: Tensor) -> None:
    checks.check_type("codebook", codebook, (torch.float32,), " (casting a module casts its buffers, too)")
    if codebook.dim() != 2:
        raise ValueError(f"codebook: expected 2 dimensions (K, C), got shape {tuple(codebook.shape)}")
    checks.check_writable("codebook", codebook, "pass a copy")
    # As torch itself refuses it, since the op does not see the gradient that `_writable` takes off.
    leaf = codebook if codebook.is_leaf else codebook._base
    if torch.is_grad_enabled() and leaf is not None and leaf.is_leaf and leaf.requires_grad:
        raise RuntimeError(
            f"codebook: a {'' if leaf is codebook else 'view of a '}leaf Variable that requires grad is being used in "
            "an in-place operation; call under torch.no_grad(), or pass a tensor that requires none"
        )


def _writable(codebook: Tensor) -> Tensor:
    """The tensor to write into, without its gradient: an update is no step of the optimiser."""
    return codebook.detach() if codebook.requires_grad else codebook


def _of_finite_rows(features: Tensor, valid: Tensor | None) -> Tensor | None:
    """`valid`, without the rows that are not finite."""
    if features.shape[-1] == 0:
        return valid
    finite = features.amax(-1).isfinite() & features.amin(-1).isfinite()  # a NaN is both; faster than isfinite and all
    return finite if valid is None else finite & valid


def codebook_stats(
    features: Tensor,
    index: Tensor,
    num_codes: int,
    *,
    valid: Tensor | None = None,
    wide: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """How many features are assigned to each code, and their sum: the input of `codebook_ema_`, to be all-reduced
    before it. A feature with NaN or infinity is not counted: it would make its code so, for ever.

    Adds in float64 whatever the type of features and whatever autocast says, features in ascending position, and rounds
    once: the same bits for the same input at any thread count. Not differentiable.

    Args:
        features: (..., N, C) float32, bfloat16 or float16.
        index: int64 (..., N); negative entries (padding) are not counted.
        num_codes: K.
        valid: bool (..., N), True at real positions; others are not counted and not read.
        wide: returns float64, unrounded: for sums to which others are added, or counts beyond 2^24.
        backend: "reference", "cpu", "triton", "cuda"; None picks the best that supports the call.

    Returns:
        counts (K,), sums (K, C), float32 or, where `wide`, float64.

    Raises:
        TypeError, ValueError: types, shapes or devices that do not fit; on a CPU also a counted index >= num_codes,
            which the C++ op can only pass on as RuntimeError from torch 2.15 on.
    """
    _check_assigned(features, index, valid)
    num_codes = checks.check_int("num_codes", num_codes, 1)
    op, features = op_for("codebook_stats", backend, features.device), features.detach()
    # Where the sums can be read, features are only gone through once more if one was not finite.
    if checks.values_of(features) is not None:
        counts, sums = op(features, index, num_codes, valid, wide)
        if checks.is_finite(sums):
            return counts, sums
    return op(features, index, num_codes, _of_finite_rows(features, valid), wide)


def codebook_ema_(
    codebook: Tensor, counts: Tensor, sums: Tensor, decay: float, *, backend: str | None = None
) -> Tensor:
    """Move the codebook in place: `d_j <- decay d_j + (1 - decay) sums_j / counts_j` where counts_j > 0 (eq. 4).

    A code to which no feature is assigned keeps its bits. In float32, rounded after each operation. Not differentiable:
    what the codebook was computed from gets the gradient that it had without the move.

    Args:
        codebook: float32 (K, C). counts: float32 (K,). sums: float32 (K, C). decay: in [0, 1]. What `codebook_stats`
            gives with `wide` is float64: pass `counts.float()` and `sums.float()`.
        backend: as in `codebook_stats`.

    Returns:
        codebook, the same tensor.

    Raises:
        TypeError, ValueError: types, shapes, devices or a decay that do not fit, or a codebook whose elements share
            memory, as an expanded one's do.
        RuntimeError: where gradients are recorded, a leaf that requires one, or a view of it, as torch refuses it.
    """
    _check_codebook(codebook)
    checks.check_type("counts", counts, (torch.float32,))
    checks.check_type("sums", sums, (torch.float32,))
    checks.check_shape("counts", counts, codebook.shape[:1], "(K,)")
    checks.check_shape("sums", sums, codebook.shape, "(K, C)")
    checks.check_same_device(codebook=codebook, counts=counts, sums=sums)
    checks.check_decay(decay)
    op = op_for("codebook_ema_", backend, codebook.device)
    op(_writable(codebook), counts.detach(), sums.detach(), float(decay))
    mark_changed(codebook)
    return codebook


def scatter_mean_ema_(
    codebook: Tensor,
    features: Tensor,
    index: Tensor,
    decay: float,
    *,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """`codebook_stats` and `codebook_ema_` fused, for one process: the same bits without the sums in memory. A feature
    with NaN or infinity is not counted.

    Args:
        codebook: float32 (K, C), changed in place. features, index, valid: as in `codebook_stats`. decay: in [0, 1].

    Returns:
        codebook, the same tensor.

    Raises:
        TypeError, ValueError: types, shapes, devices or a decay that do not fit, or a codebook whose elements share
            memory, as an expanded one's do; on a CPU also a counted index >= K, which the C++ op can only pass on as
            RuntimeError from torch 2.15 on.
        RuntimeError: as `codebook_ema_`.
    """
    _check_codebook(codebook)
    _check_assigned(features, index, valid)
    if features.shape[-1] != codebook.shape[1]:
        raise ValueError(f"features: expected {codebook.shape[1]} channels like codebook, got {features.shape[-1]}")
    checks.check_same_device(codebook=codebook, features=features)
    checks.check_decay(decay)
    op, features, moved = op_for("scatter_mean_ema_", backend, codebook.device), features.detach(), _writable(codebook)
    if checks.values_of(features) is not None:
        # To go back to, where a feature that is not finite has spoilt codes.
        before = moved.clone()
        op(moved, features, index, float(decay), valid)
        is_moved = checks.is_finite(moved)
        if not is_moved:
            moved.copy_(before)
    else:
        is_moved = False
    if not is_moved:
        op(moved, features, index, float(decay), _of_finite_rows(features, valid))
    mark_changed(codebook)
    return codebook


def _stats_fake(
    features: Tensor, index: Tensor, num_codes: int, valid: Tensor | None, wide: bool = False
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if wide else torch.float32
    counts_K = features.new_empty((num_codes,), dtype=dtype)
    return counts_K, features.new_empty((num_codes, features.shape[-1]), dtype=dtype)


define_op(
    "codebook_stats",
    "(Tensor features, Tensor index, SymInt num_codes, Tensor? valid, bool wide=False) -> (Tensor, Tensor)",
    reference=reference.codebook_stats,
    fake=_stats_fake,
)
define_op(
    "codebook_ema_",
    "(Tensor(a!) codebook, Tensor counts, Tensor sums, float decay) -> ()",
    reference=reference.codebook_ema_,
    fake=lambda codebook, counts, sums, decay: None,
)
define_op(
    "scatter_mean_ema_",
    "(Tensor(a!) codebook, Tensor features, Tensor index, float decay, Tensor? valid) -> ()",
    reference=reference.scatter_mean_ema_,
    fake=lambda codebook, features, index, decay, valid: None,
)
