"""Residual quantiser: several codebooks one after the other, each for what the ones before have left.

Letters: N features, L levels, K codes, C channels.
"""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from soho_fast.ops import checks
from soho_fast.ops.backends import backend_for, define_op, op_of
from soho_fast.ops.codebook_lookup.prepared import PreparedCodebook
from soho_fast.ops.residual_lookup import reference


def _num_levels(features: Tensor, codebooks: Tensor, num_levels: int | None) -> int:
    """How many levels there are, after the checks of all arguments."""
    checks.check_type("features", features)
    checks.check_type("codebooks", codebooks)
    shape = tuple(codebooks.shape)
    if codebooks.dim() not in (2, 3) or codebooks.shape[-2] < 1:
        raise ValueError(f"codebooks: expected (L, K, C), or (K, C) for all levels, with a code, got shape {shape}")
    checks.check_channels(features, codebooks, "codebooks")
    if codebooks.dim() == 2 and num_levels is None:
        raise ValueError("num_levels: expected the number of levels with one codebook (K, C) for all, got None")
    if codebooks.dim() == 3 and num_levels not in (None, codebooks.shape[0]):
        raise ValueError(f"num_levels: expected {codebooks.shape[0]} as there are codebooks, or None, got {num_levels}")
    checks.check_same_device(features=features, codebooks=codebooks)
    levels = codebooks.shape[0] if num_levels is None else num_levels
    # TorchScript's tracer makes a tensor of a size.
    return checks.check_int("num_levels", int(levels) if isinstance(levels, Tensor) else levels, 1)


@overload
def residual_lookup(
    features: Tensor,
    codebooks: Tensor | PreparedCodebook,
    *,
    num_levels: int | None = None,
    return_residual: Literal[False] = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def residual_lookup(
    features: Tensor,
    codebooks: Tensor | PreparedCodebook,
    *,
    num_levels: int | None = None,
    return_residual: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def residual_lookup(
    features: Tensor,
    codebooks: Tensor | PreparedCodebook,
    *,
    num_levels: int | None = None,
    return_residual: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """The codes of a residual quantiser and their sum, with the bits of the loop over `codebook_lookup`:

        residual, quantized = features.float(), 0.0
        for codebook in codebooks:
            code = codebook[codebook_lookup(residual, codebook)].float()
            residual, quantized = residual - code, quantized + code

    Each level is as exact as `codebook_lookup`, and treats NaN and Inf like it.

    Args:
        features: (..., N, C) float32, bfloat16 or float16, any layout.
        codebooks: (L, K, C), one for each level, or (K, C) for all `num_levels`. Their type may differ from features'.
            Or what `prepare_codebook` made of them.
        num_levels: L. Needed with a codebook (K, C).
        return_residual: also return what the last level leaves.
        backend: "reference", "cpu"; None picks the best that supports the call.

    Returns:
        index int64 (..., N, L); quantized (..., N, C) in the type of features, with the straight-through gradient: that
        of features is the incoming one, the codebooks get none; with `return_residual` the residual, float32
        (..., N, C), without a gradient.

    Raises:
        TypeError: an argument that is not a tensor of a supported type.
        ValueError: shapes or devices that do not fit, no level or no code, a codebook prepared for another metric, or a
            backend that cannot serve the call.
    """
    prepared = codebooks if isinstance(codebooks, PreparedCodebook) else None
    books = codebooks.codebook if isinstance(codebooks, PreparedCodebook) else codebooks
    levels = _num_levels(features, books, num_levels)
    if prepared is not None and prepared.metric != "euclidean":
        raise ValueError(f"codebooks: expected codes prepared for 'euclidean', got {prepared.metric!r}")
    chosen = backend_for("residual_lookup", backend, features.device)
    packed = None if prepared is None else prepared.packed_for(chosen)
    op = op_of("residual_lookup", chosen, features.device)
    quantized, index, residual = op(features, books.detach(), levels, return_residual, packed)
    results = (index, quantized, residual) if return_residual else (index, quantized)
    return results if prepared is None else prepared.checked(results)


def _fake(
    features: Tensor, codebooks: Tensor, num_levels: int, return_residual: bool, packed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    index = features.new_empty((*features.shape[:-1], num_levels), dtype=torch.int64)
    residual = features.new_empty(features.shape if return_residual else (0,), dtype=torch.float32)
    return features.new_empty(features.shape), index, residual


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_quantized: Tensor | None, grad_index: None, grad_residual: None) -> tuple:
    return grad_quantized, None, None, None, None


define_op(
    "residual_lookup",
    "(Tensor features, Tensor codebooks, int num_levels, bool return_residual, Tensor? packed=None)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.residual_lookup,
    fake=_fake,
    native=("cpu",),
    backward=_backward,
    setup_context=_setup,
)
