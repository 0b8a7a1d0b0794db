"""Codebook lookup (SOHO eq. 2) and the straight-through embedding (eq. 5).

Letters: N features, K codes, C channels.
"""

from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from soho_fast.ops import checks
from soho_fast.ops.backends import backend_for, define_op, has_gradient, op_for, op_of, without_gradient
from soho_fast.ops.codebook_lookup import reference
from soho_fast.ops.codebook_lookup.prepared import PreparedCodebook, check_metric, lacking_metric
from soho_fast.ops.codebook_lookup.reference import Metric
from soho_fast.ops.codebook_lookup.small import lookup_at_once
from soho_fast.ops.codebook_lookup.subspace import check_subspace


def _check_pair(features: Tensor, codebook: Tensor) -> None:
    checks.check_type("features", features)
    checks.check_codebook(codebook)
    checks.check_channels(features, codebook)
    if codebook.dim() > 2 and codebook.shape[:-2] != features.shape[:-2]:
        raise ValueError(
            f"codebook: a batched codebook needs the batch shape of features {tuple(features.shape[:-2])}, "
            f"got {tuple(codebook.shape[:-2])}"
        )
    checks.check_same_device(features=features, codebook=codebook)


def check_chosen(features: Tensor, codebook: Tensor, index: Tensor) -> None:
    """TypeError, ValueError unless they are features, codes and a code of each feature."""
    _check_pair(features, codebook)
    checks.check_index("index", index, features.shape[:-1], "(..., N)")
    checks.check_same_device(features=features, index=index)


class LookupOptions(TypedDict, total=False):
    """The keywords of `codebook_lookup` that its result's type does not depend on."""

    metric: Metric
    topk: int | None
    subspace: Tensor | None
    warm_start: Tensor | None
    backend: str | None


Codebook = Tensor | PreparedCodebook


@overload
def codebook_lookup(
    features: Tensor, codebook: Codebook, *, return_distance: Literal[False] = False, **options: Unpack[LookupOptions]
) -> Tensor: ...
@overload
def codebook_lookup(
    features: Tensor, codebook: Codebook, *, return_distance: Literal[True], **options: Unpack[LookupOptions]
) -> tuple[Tensor, Tensor]: ...
@overload
def codebook_lookup(
    features: Tensor, codebook: Codebook, *, return_distance: bool, **options: Unpack[LookupOptions]
) -> Tensor | tuple[Tensor, Tensor]: ...
def codebook_lookup(
    features: Tensor,
    codebook: Tensor | PreparedCodebook,
    *,
    return_distance: bool = False,
    metric: Metric = "euclidean",
    topk: int | None = None,
    subspace: Tensor | None = None,
    warm_start: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Index of the nearest code, `argmin_j |x_i - d_j|^2` evaluated in float64 on the inputs as given (eq. 2).

    Exact ties go to the lowest index, on every backend. A distance that is not finite counts as infinite: a row with
    NaN or Inf gets index 0 (and, where asked, distance NaN or Inf), a code with NaN or Inf is never chosen while
    another is left. Memory never grows with N x K.

    With `metric="dot"` it is the code with the largest `x.d`, with `metric="cosine"` that with the largest `x.d / |d|`,
    by the same rules; a zero vector has cosine 0 with every other.

    Args:
        features: (..., N, C) float32, bfloat16 or float16, any layout.
        codebook: (K, C) shared, or (..., K, C) with the batch shape of features. Its type may differ from features'.
            Or what `prepare_codebook` made of it, for many lookups in a codebook that stays as it is.
        return_distance: also return the squared distance (of "cosine" the cosine, of "dot" the dot product); it is
            differentiable in features and codebook, any number of times.
        metric: "euclidean", "cosine" or "dot"; a prepared codebook serves the one it was prepared for. `triton` and
            `cuda` have "euclidean" alone.
        topk: 2 to 16: as many codes for each feature instead of one, the nearest first, exact ties in ascending order;
            codes with NaN or Inf come last, and so do all for such a row. `triton` and `cuda` have none.
        subspace: the codes' principal subspace, float32 (C, D) or (..., C, D) as `codebook_subspace` gives it, for
            low-dimensional pruning where features lie near the codes. The result is exact with any values, stale ones
            too. A prepared codebook has its own.
        warm_start: int64 (..., N), for each feature a code that may be the nearest: its code before the codebook moved,
            or that of its neighbour. The result is exact with any; one outside 0 to K - 1 is ignored.
        backend: "reference", "cpu", "triton", "cuda"; None picks the best that supports the call.

    Returns:
        index int64 (..., N), and with `return_distance` the squared distance or the similarity, float32 (..., N); both
        (..., N, k) with `topk=k`.

    Raises:
        TypeError: an argument that is not a tensor of a supported type.
        ValueError: shapes or devices that do not fit, an empty codebook, an unknown metric or another than that of the
            prepared codebook, topk beyond the number of codes, or a backend that cannot serve the call.
    """
    if subspace is warm_start is backend is None:  # all three are None
        found = lookup_at_once(features, codebook, metric, topk, return_distance)
        if found is not None:
            return found
    check_metric(metric)
    prepared, codes = (codebook, codebook.codebook) if isinstance(codebook, PreparedCodebook) else (None, codebook)
    if prepared is not None:
        if prepared.metric != metric:
            raise ValueError(f"metric: expected {prepared.metric!r} as the codebook was prepared for, got {metric!r}")
        if subspace is not None:
            raise ValueError("subspace: expected None, a prepared codebook has its own (prepare_codebook's subspace)")
        subspace = prepared.subspace
    _check_pair(features, codes)
    if topk is not None:
        topk = checks.check_int("topk", topk, 2, reference.MOST_NEAREST)
        if topk > codes.shape[-2]:
            raise ValueError(f"topk: expected at most the number of codes {codes.shape[-2]}, got {topk}")
    if subspace is not None:
        check_subspace(subspace, codes)
        subspace = subspace.detach()
    if warm_start is not None:
        checks.check_index("warm_start", warm_start, features.shape[:-1], "(..., N)")
        checks.check_same_device(features=features, warm_start=warm_start)
    lacking = lacking_metric(metric) if topk is None else dict.fromkeys(("triton", "cuda"), "it has no topk")
    chosen = backend_for("codebook_lookup", backend, features.device, lacking)
    packed = None if prepared is None else prepared.packed_for(chosen)
    op = op_of("codebook_lookup", chosen, features.device)
    options = (packed, subspace, warm_start, reference.METRICS.index(metric), topk or 1)
    results: tuple[Tensor, ...]
    if return_distance:
        # The kernel returns the chosen codes only where a backward will read them.
        distance, index, _ = op(features, codes, True, has_gradient(features, codes), *options)
        results = index, distance
    else:
        results = (without_gradient(op, features, codes, False, False, *options)[1],)
    results = results if prepared is None else prepared.checked(results)
    return (results[0], results[1]) if return_distance else results[0]


def straight_through(features: Tensor, codebook: Tensor, index: Tensor, *, backend: str | None = None) -> Tensor:
    """The chosen codes with the straight-through gradient: forward `d_{h_i}`, backward identity to features (eq. 5).

    Args:
        features: (..., N, C) float32, bfloat16 or float16.
        codebook: (K, C) or (..., K, C); it gets no gradient.
        index: int64 (..., N); a negative index (padding) gives a row of zeros.
        backend: as in `codebook_lookup`.

    Returns:
        quantized (..., N, C) in the type of features.

    Raises:
        TypeError, ValueError: types, shapes or devices that do not fit; on a CPU also an index >= K, which the C++ op
            can only pass on as RuntimeError from torch 2.15 on.
    """
    check_chosen(features, codebook, index)
    op = op_for("straight_through", backend, features.device)
    return op(features, codebook.detach(), index)


def _lookup_fake(
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
    shape = features.shape[:-1] if topk == 1 else (*features.shape[:-1], topk)
    distance = features.new_empty(shape if return_distance else (0,), dtype=torch.float32)
    codes = features.new_empty((*shape, features.shape[-1]) if return_codes else (0,), dtype=codebook.dtype)
    return distance, features.new_empty(shape, dtype=torch.int64), codes


def _lookup_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    features, codebook, _, return_codes, *_, metric, _ = inputs
    _, index, codes = output
    ctx.mark_non_differentiable(index)
    ctx.set_materialize_grads(False)
    ctx.codebook_shape, ctx.codebook_type, ctx.metric = codebook.shape, codebook.dtype, metric
    # The chosen codes are an output of the op and kept, not the codebook: that is usually moved before the backward.
    # As a differentiable output they lead a second derivative back to the codebook.
    ctx.save_for_backward(*((features, index, codes) if return_codes else ()))


def _value_gradients(features: Tensor, codes: Tensor, grad: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """What arrives at the metric of rows and codes (..., C), led on to both; grad (...)."""
    grad = grad.unsqueeze(-1)
    if metric == "euclidean":  # d|x - d|^2 = 2 (x - d) (dx - dd)
        of_features = 2 * (features.float() - codes.float()) * grad
        return of_features, -of_features
    if metric == "dot":
        return codes.float() * grad, features.float() * grad
    # With u = x / |x|, v = d / |d|: d(u.v) = (v - (u.v) u) dx / |x| + (u - (u.v) v) dd / |d|; float64 holds squares
    features, codes = features.double(), codes.double()
    norm, code_norm = (reference.norm(t).unsqueeze(-1) for t in (features, codes))
    u, v = features / norm, codes / code_norm
    cosine = (u * v).sum(-1, keepdim=True)
    return ((v - cosine * u) / norm * grad).float(), ((u - cosine * v) / code_norm * grad).float()


def _sum_by_code(values: Tensor, index: Tensor, codebook_shape: torch.Size) -> Tensor:
    """The float32 values (..., N, C) of each code added in ascending position, in the shape of the codebook."""
    num_codes = codebook_shape[:-1].numel()
    if len(codebook_shape) > 2:
        # Of several codebooks one of G * K codes.
        first = torch.arange(0, num_codes, codebook_shape[-2], device=index.device)
        index = index + first.reshape(*codebook_shape[:-2], 1)
    checks.check_untransformed("grad", values)
    if has_gradient(values):
        # Differentiated once more: plain torch, in the same order; on a GPU index_add races and index_put sorts.
        zeros, place, rows = values.new_zeros(num_codes, values.shape[-1]), index.flatten(), values.flatten(0, -2)
        on_cpu = values.device.type == "cpu"
        sums = zeros.index_add(0, place, rows) if on_cpu else zeros.index_put((place,), rows, accumulate=True)
    else:
        sums = op_for("codebook_stats", None, values.device)(values, index, num_codes, None)[1]
    return sums.reshape(codebook_shape)


def _lookup_backward(
    ctx: Any, grad_distance: Tensor | None, grad_index: Tensor | None, grad_codes: Tensor | None
) -> tuple[Tensor | None, ...]:
    """In float32; what arrives at the chosen codes goes on to the codebook."""
    saved = ctx.saved_tensors  # read once: activation checkpointing gives them no second time
    if not saved:
        return (None,) * 9
    features, index, codes = saved
    # Then codes and what arrives are (..., N, k, C), and a feature has the sum over its k codes.
    several = codes.dim() > features.dim()  # topk
    grad_features = grad_codebook = None
    grad_of_codes = None if grad_codes is None else grad_codes.float()
    if grad_distance is not None:
        rows = features.unsqueeze(-2) if several else features
        grad, of_codes = _value_gradients(rows, codes, grad_distance, reference.METRICS[ctx.metric])
        grad_features = (grad.sum(-2) if several else grad).to(features.dtype)
        grad_of_codes = of_codes if grad_of_codes is None else grad_of_codes + of_codes
    if ctx.needs_input_grad[1] and grad_of_codes is not None:
        if several:
            index, grad_of_codes = index.flatten(-2), grad_of_codes.flatten(-3, -2)
        grad_codebook = _sum_by_code(grad_of_codes, index, ctx.codebook_shape).to(ctx.codebook_type)
    return grad_features, grad_codebook, None, None, None, None, None, None, None


def _straight_through_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    """The gradient of features is the incoming one."""
    return grad, None, None


define_op(
    "codebook_lookup",
    "(Tensor features, Tensor codebook, bool return_distance, bool return_codes, Tensor? packed=None,"
    " Tensor? subspace=None, Tensor? warm_start=None, int metric=0, int topk=1) -> (Tensor, Tensor, Tensor)",
    reference=reference.codebook_lookup,
    fake=_lookup_fake,
    backward=_lookup_backward,
    setup_context=_lookup_setup,
)
define_op(
    "straight_through",
    "(Tensor features, Tensor codebook, Tensor index) -> Tensor",
    reference=reference.straight_through,
    fake=lambda features, codebook, index: features.new_empty(features.shape),
    backward=_straight_through_backward,
)
