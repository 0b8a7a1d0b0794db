"""Quantisers without a codebook: finite scalar quantisation (FSQ) and lookup-free quantisation (LFQ).

Plain torch: they compile, map and differentiate as torch does.

Letters: C channels.
"""

import functools
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from soho_fast.ops import checks
from soho_fast.ops.forward_mode import has_gradient, has_tangent, in_transform, pass_on

_EPSILON = 1e-3  # of FSQ's bound: the outermost values lie this far inside tanh's


def fsq(features: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Finite scalar quantisation (Mentzer et al., arXiv 2309.15505): `round(tanh(x + s) h - o)` in each channel, with
    vector-quantize-pytorch's h = (L - 1) (1 + 1e-3) / 2 and s = atanh(o / h), where the paper's code has 1 - 1e-3 and
    tan; o is 1/2 where L, the number of values, is even. Of two values s is 0, so that the sign decides.

    The values at which rounding changes are found in float64, and features compared with them, exactly: the index
    depends on neither batch, layout, device nor autocast. NaN counts as minus infinity. The gradient is that of the
    formula without `round`; a feature that is not finite has none.

    Args:
        features: (..., C) float32, bfloat16 or float16.
        levels: of each channel, how many values it has, 2 or more; the codes are their product.

    Returns:
        index int64 (...), the first channel's level counting least, and quantized (..., C) in the type of features, in
        steps of 1 / (level // 2) from -1 on.

    Raises:
        TypeError, ValueError: a wrong type, invalid levels, or another number of levels than of channels.
    """
    checks.check_type("features", features)
    levels = _checked_levels(levels)
    if features.dim() < 1 or features.shape[-1] != len(levels):
        raise ValueError(
            f"levels: expected one for each channel of features {tuple(features.shape)}, got {len(levels)}"
        )
    if has_tangent(features):
        index, quantized, _ = _Fsq.forward(features.detach(), levels)
        tanh, slope = _formula(features, levels)
        return index, pass_on((tanh * slope).movedim(0, -1).to(features.dtype), quantized)
    index, quantized, _ = (_Fsq.apply if _recorded(features) else _Fsq.forward)(features, levels)
    return index, quantized


def _with_signature(function: Any) -> Any:
    """The function as it is: what `apply` asks of Python in each call, for as long as many operations take, is kept."""
    function.__signature__ = inspect.signature(function)
    return function


class _Fsq(torch.autograd.Function):
    """(features, levels) -> (index, quantized, tanh (C, N)): channel after channel, since a few channels a row fill no
    vector. `tanh` is an output so that a second derivative finds its way back."""

    generate_vmap_rule = True

    @staticmethod
    @_with_signature
    def forward(features: Tensor, levels: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.stack(features.reshape(-1, len(levels)).unbind(1)).float()  # twice as fast as a copy
        x.nan_to_num_(nan=-torch.finfo(torch.float32).max)
        shift, half, from_one, above, width, _, edges = _constants(levels, x)
        tanh = (x + shift).tanh_()
        # In float32 this is off by far less than 1/2, so that the one edge that can decide is in the step it lies in.
        step = torch.addcmul(from_one, tanh, half).floor_()
        if max(levels) > 1000:  # a thousandth of which is as much as a step
            step = torch.minimum(step.clamp(min=0), step.new_tensor(levels).unsqueeze(-1))
        edge = edges.gather(1, step.long())
        step.add_(x > edge if in_transform() else x.gt_(edge))  # counted from 1; torch maps no `gt_`
        digits = step if math.prod(levels) < 2**23 else step.long()  # float32 holds every sum
        index = digits[-1]
        for channel in range(len(levels) - 2, -1, -1):
            index = torch.add(digits[channel], index, alpha=levels[channel])
        # Steps count from 1, an index from 0: each place is taken off once.
        index = index.long().sub_(sum(_places(levels)))
        quantized = step.sub_(above).div_(width).T.reshape(features.shape)
        return index.reshape(features.shape[:-1]), quantized.to(features.dtype), tanh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.levels, ctx.dtype, ctx.shape = inputs[1], inputs[0].dtype, inputs[0].shape
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(output[2])

    @staticmethod
    def backward(ctx: Any, _: None, grad: Tensor | None, grad_tanh: Tensor | None) -> tuple[Tensor | None, None]:
        (tanh,) = ctx.saved_tensors
        moved = None
        if grad is not None:
            slope = _constants(ctx.levels, tanh)[5].expand(tanh.shape)
            moved = grad * torch.ops.aten.tanh_backward(slope, tanh).T.reshape(grad.shape)
        if grad_tanh is not None:  # of a second derivative
            back = torch.ops.aten.tanh_backward(grad_tanh, tanh).T.reshape(ctx.shape)
            moved = back if moved is None else moved + back
        return None if moved is None else moved.to(ctx.dtype), None


def _table(levels: tuple[int, ...]) -> list[list[float]]:
    """Of each channel s, h, what makes of tanh h the steps from 1 on, the step of zero, L // 2, and h by that; then the
    float32 numbers above which its value rises, the first one minus infinity and the last infinity."""
    rows = []
    for level in levels:
        half, offset, shift = _bound(level)
        values = range(-(level // 2), (level - 1) // 2)
        edges = [_float32_below(math.atanh((value + 0.5 + offset) / half) - shift) for value in values]
        # At the ends of the range a step of 0 so becomes 1, and one of L stays.
        edges = [-math.inf, *edges, *[math.inf] * (max(levels) - len(edges))]
        rows.append(
            [shift, half, level // 2 + 1 - offset, level // 2 + 1.0, float(level // 2), half / (level // 2), *edges]
        )
    return rows


_kept_table = functools.cache(_table)  # graphs that are compiled keep it themselves


def _constants(levels: tuple[int, ...], values: Tensor) -> list[Tensor]:
    """The columns (C, 1) of `_table`, and what else it has (C, L), where the values are; on a CPU made once."""
    if torch.compiler.is_compiling():
        return _columns(values.new_tensor(_table(levels)))
    if type(values) is Tensor and values.is_cpu and not in_transform():
        return _kept_constants(levels)
    return _columns(values.new_tensor(_kept_table(levels)))


@functools.cache
def _kept_constants(levels: tuple[int, ...]) -> list[Tensor]:
    with torch.inference_mode(False):  # an inference tensor would have no place in a graph of autograd
        return _columns(torch.tensor(_table(levels), dtype=torch.float32, device="cpu"))


def _columns(table: Tensor) -> list[Tensor]:
    return [*table[:, :6].T.unsqueeze(-1), table[:, 6:]]


def _formula(features: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """tanh(x + s) (C, ...), flat where x is not finite, and h by the steps from 0 to 1 (C, 1, ...)."""
    half, _, shift = zip(*map(_bound, levels), strict=True)
    x = features.movedim(-1, 0).float().contiguous().nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    slope = [h / (level // 2) for h, level in zip(half, levels, strict=True)]
    return x.add_(_of_channels(x, shift)).tanh_(), _of_channels(x, slope)


def _of_channels(channels: Tensor, values: Sequence[float]) -> Tensor:
    """One value for each of the channels (C, ...), as a tensor (C, 1, ...): by a number a GPU divides inexactly."""
    return channels.new_tensor(values).reshape(-1, *(1,) * (channels.dim() - 1))


def fsq_bounded(features: Tensor, levels: Sequence[int]) -> Tensor:
    """What `fsq` rounds, in the units of its result: float32 (..., C); arguments as there."""
    tanh, slope = _formula(features, levels)
    offset = [_bound(level)[1] / (level // 2) for level in levels]
    return (tanh * slope - _of_channels(tanh, offset)).movedim(0, -1)


def fsq_codes(index: Tensor, levels: Sequence[int]) -> Tensor:
    """What `fsq` made of features: float32 (..., C) of an index int64 (...); a negative one (padding) gives zeros.

    Raises:
        TypeError, ValueError: a wrong type, invalid levels, or on a CPU an index beyond the codes.
    """
    checks.check_type("index", index, (torch.int64,))
    levels = _checked_levels(levels)
    digit = index.unsqueeze(-1) // index.new_tensor(_places(levels)) % index.new_tensor(levels)
    widths = index.new_tensor([level // 2 for level in levels], dtype=torch.float32)
    return _of_codes((digit - widths) / widths, index, math.prod(levels))


def lfq(features: Tensor) -> tuple[Tensor, Tensor]:
    """Lookup-free quantisation (Yu et al., arXiv 2310.05737): the sign of each channel, 1 above zero, else -1 (also of
    NaN), with the straight-through gradient; a feature that is not finite has none.

    Args:
        features: (..., C) float32, bfloat16 or float16, at most 63 channels.

    Returns:
        index int64 (...), the last channel's bit counting least (as in vector-quantize-pytorch; in the paper
        the first one's), and quantized (..., C) in the type of features.

    Raises:
        TypeError, ValueError: a type or a number of channels.
    """
    checks.check_type("features", features)
    if features.dim() < 1 or not 1 <= features.shape[-1] <= 63:
        raise ValueError(f"features: expected (..., C) of 1 to 63 channels, got shape {tuple(features.shape)}")
    if has_tangent(features):
        index, quantized = _Lfq.forward(features.detach())
        return index, pass_on(features, quantized)
    return (_Lfq.apply if _recorded(features) else _Lfq.forward)(features)


class _Lfq(torch.autograd.Function):
    """features -> (index, quantized)"""

    generate_vmap_rule = True

    @staticmethod
    @_with_signature
    def forward(features: Tensor) -> tuple[Tensor, Tensor]:
        num_channels = features.shape[-1]
        # Zero and NaN have no sign, and so become -1: several times as fast as a comparison. In a compiled
        # graph that gains nothing, and in one for ONNX the sign of NaN is NaN.
        sign = (features > 0).to(features.dtype) if torch.compiler.is_compiling() else features.sign()
        quantized = sign.sub_(0.5).sign_()
        if num_channels > 52:
            places = [1 << place for place in range(num_channels - 1, -1, -1)]
            index = ((quantized > 0) * features.new_tensor(places, dtype=torch.int64)).sum(-1)
        else:
            # Its numbers hold every sum; autocast would round those of float32.
            is_short = num_channels <= 24 and not torch.is_autocast_enabled(features.device.type)
            values = quantized.to(torch.float32 if is_short else torch.float64)
            halves = [2.0**place for place in range(num_channels - 2, -2, -1)]
            index = (values @ values.new_tensor(halves)).add_((2**num_channels - 1) / 2).long()
        return index, quantized

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        (features,) = inputs
        ctx.mark_non_differentiable(output[0])
        # Where the host needn't wait: a finite sum has no other terms, and the gradient passes as it is.
        can_look = features.is_cpu and not torch.compiler.is_compiling() and not in_transform()
        ctx.is_finite = can_look and math.isfinite(features.detach().sum().item())
        if not ctx.is_finite:
            ctx.save_for_backward(features)

    @staticmethod
    def backward(ctx: Any, grad_index: Tensor, grad: Tensor) -> Tensor:
        if ctx.is_finite:
            return grad
        (features,) = ctx.saved_tensors
        # Also False of NaN.
        return grad.where(features.detach().abs() < math.inf, 0.0)


def _recorded(features: Tensor) -> bool:
    """Whether autograd has to know: past it there is less to do."""
    return torch.compiler.is_compiling() or has_gradient(features)


def lfq_codes(index: Tensor, num_channels: int) -> Tensor:
    """What `lfq` made of features: float32 (..., C), 1 or -1, of an index int64 (...); a negative one (padding) gives
    zeros.

    Raises:
        TypeError, ValueError: a type, a number of channels, or on a CPU an index beyond the codes.
    """
    checks.check_type("index", index, (torch.int64,))
    num_channels = checks.check_int("num_channels", num_channels, 1, 63)
    bits = index.unsqueeze(-1) >> torch.arange(num_channels - 1, -1, -1, device=index.device)
    return _of_codes(2.0 * (bits & 1) - 1.0, index, 1 << num_channels)


def _of_codes(values: Tensor, index: Tensor, num_codes: int) -> Tensor:
    """The values (..., C) of these codes, zeros where the index (...) names no code."""
    checks.check_below(index, num_codes)
    # num_codes may be 2^63, which int64 does not hold.
    return torch.where(((index >= 0) & (index <= num_codes - 1)).unsqueeze(-1), values, 0.0)


def _checked_levels(levels: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(levels, Sequence) or not levels:
        raise TypeError(f"levels: expected a list of ints, got {levels!r}")
    checked = tuple(checks.check_int("levels", level, 2) for level in levels)
    if math.prod(checked) >= 2**63:
        raise ValueError(f"levels: expected a product below 2^63, got {math.prod(checked)}")
    return checked


def _bound(level: int) -> tuple[float, float, float]:
    """Of a channel h, o, s: half the range, half a step where the number of values is even, and what centres it
    (of two values the edge between them)."""
    half, offset = (level - 1) * (1 + _EPSILON) / 2, 0.0 if level % 2 else 0.5
    return half, offset, 0.0 if level == 2 else math.atanh(offset / half)


def _float32_below(value: float) -> float:
    """The largest float32 number that is not above the value: float32 numbers above one are above the other."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.floor(mantissa * 2**24), exponent - 24)


def _places(levels: Sequence[int]) -> list[int]:
    """What a step of each channel adds to the index."""
    return [math.prod(levels[:channel]) for channel in range(len(levels))]
