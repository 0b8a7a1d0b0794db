"""Argument checks shared by the ops: each raises with the argument's name, what was expected and what came."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_type(name: str, value: object, types: tuple[torch.dtype, ...] = FLOAT_TYPES, why: str = "") -> Tensor:
    """`value`; TypeError unless it is a dense tensor of one of the `types`, `why` explains them in the message;
    NotImplementedError as `check_untransformed`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in types:
        expected = ", ".join(str(one).removeprefix("torch.") for one in types)
        raise TypeError(f"{name}: expected {expected}{why}, got {str(value.dtype).removeprefix('torch.')}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one of layout {value.layout}")
    check_untransformed(name, value)
    return value


def check_untransformed(name: str, value: Tensor) -> None:
    """NotImplementedError where forward mode differentiates `value`, or a transform of `torch.func` wraps it:
    torch.library has no forward derivative of an op, and would drop the tangent without a word."""
    # A graph that is being compiled can't ask whether it is wrapped.
    is_wrapped = not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(value)
    if is_wrapped or (value.is_floating_point() and forward_ad.unpack_dual(value).tangent is not None):
        raise NotImplementedError(
            f"{name}: the ops have neither forward mode nor torch.func's transforms (vmap, jvp, grad), within which it "
            "is; take torch.autograd, and a batch dimension in the place of vmap"
        )


def check_index(name: str, value: object, shape: tuple[int, ...], meaning: str) -> None:
    """TypeError unless `value` is an int64 tensor, ValueError unless it has `shape`."""
    check_shape(name, check_type(name, value, (torch.int64,)), shape, meaning)


def values_of(tensor: Tensor) -> Tensor | None:
    """What a check can read: a tensor on a CPU; None in a graph that is being compiled, and of a class with operations
    of its own, as fake tensors are."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    # A fake tensor's class overrides this; a Parameter's does not.
    return tensor if type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__ else None


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are, of a tensor that can be read; else False."""
    values = values_of(tensor)
    # One sum is quick, but may overflow though all are finite.
    return values is not None and bool(values.sum().isfinite() or values.isfinite().all())


def check_uniform(uniform: Tensor) -> None:
    """ValueError where a value that can be read is outside of [0, 1)."""
    values = values_of(uniform)
    # As not inside, so that NaN is outside.
    if values is not None and len(outside := values[~((values >= 0) & (values < 1))]):
        raise ValueError(f"uniform: expected values in [0, 1), got {float(outside[0])}")


def check_valid(value: object, shape: tuple[int, ...], meaning: str) -> None:
    """TypeError unless `valid` is None or a bool tensor, ValueError unless it has `shape`."""
    if value is not None:
        check_shape("valid", check_type("valid", value, (torch.bool,), " (True = real position)"), shape, meaning)


def check_codebook(value: object, with_values: bool = False) -> None:
    """TypeError unless `value` is a tensor of a floating type, ValueError unless (K, C) or (..., K, C) with a code, or
    `with_values` of a meta tensor."""
    if not isinstance(value, Tensor) and hasattr(value, "codebook"):
        raise TypeError(f"codebook: expected a torch.Tensor, got {type(value).__name__}; pass its `codebook`")
    codebook = check_type("codebook", value)
    if codebook.dim() < 2 or codebook.shape[-2] < 1:
        raise ValueError(f"codebook: expected (K, C) or (..., K, C) with a code, got shape {tuple(codebook.shape)}")
    if with_values and codebook.is_meta:
        raise ValueError("codebook: expected a tensor with values, got one on the meta device")


def check_channels(features: Tensor, codebook: Tensor, name: str = "codebook") -> None:
    """ValueError unless `features` are (..., N, C) and the codebook, called `name`, has C channels."""
    shape = tuple(features.shape)
    if len(shape) < 2:
        raise ValueError(f"features: expected at least 2 dimensions (..., N, C), got shape {shape}")
    if codebook.shape[-1] != shape[-1]:
        expected = f"{shape[-1]} channels, the last dimension of features {shape}"
        raise ValueError(f"{name}: expected {expected}, got shape {tuple(codebook.shape)}")


def check_int(name: str, value: Any, least: int, most: int | None = None) -> Any:
    """`value`, as a Python int where it is a numpy integer; TypeError unless it is an int (a SymInt of torch.compile is
    one; numpy's are arrays with fullgraph=True), ValueError unless within the limits."""
    # True is an Integral.
    if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    number: Any = value if isinstance(value, (int, torch.SymInt)) else int(value)
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: expected {limits}, got {number}")
    return number


def check_shape(name: str, value: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """ValueError unless `value` has `shape`, which `meaning` spells in letters."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)} = {meaning}, got {tuple(value.shape)}")


def check_writable(name: str, value: Tensor, instead: str) -> None:
    """ValueError where elements of `value` share memory, as in an expanded tensor: what is written to one is written to
    others. Views whose dimensions interlace are refused with them. `instead` says what to pass."""
    if value.numel() == 0:
        return
    extents = [(stride, size) for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
    for position, (stride, _) in enumerate(extents):
        others = extents[:position] + extents[position + 1 :]
        # Elements lie apart where each stride steps beyond all that the smaller strides reach together.
        if sum(other * (size - 1) for other, size in others if other <= stride) >= stride:
            raise ValueError(
                f"{name}: expected elements that lie apart in memory, got an expanded or overlapping tensor of "
                f"shape {tuple(value.shape)}, strides {tuple(value.stride())}; {instead}"
            )


def check_same_device(**tensors: Tensor | None) -> None:
    """ValueError unless all given tensors live on the first one's device."""
    given = {name: value.device for name, value in tensors.items() if value is not None}
    first_name, first = next(iter(given.items()))
    for name, device in given.items():
        if device != first:
            raise ValueError(f"{name}: expected device {first} like {first_name}, got {device}")


def check_decay(decay: float) -> None:
    """TypeError unless `decay` is a number, ValueError unless it lies in [0, 1]."""
    if isinstance(decay, bool) or not isinstance(decay, (int, float)):
        raise TypeError(f"decay: expected a Python float in [0, 1], got {type(decay).__name__}")
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay: expected a value in [0, 1], got {decay}")
