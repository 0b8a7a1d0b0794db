"""Derivatives taken by tensors that wrap others: forward mode (`torch.autograd.forward_ad`) and all of `torch.func`,
nested as deep as one likes; in a compiled graph one level.

torch.library gives an op a backward and no forward derivative: a tangent that enters it is dropped without a word. The
public functions look for such tensors and take plain torch then, which is differentiable in every mode. What only
`torch.vmap` wraps goes into the op, by its batching rule.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd as BelowAutograd
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor, peek_interpreter_stack
from torch.autograd import forward_ad


def unmapped(tensor: Tensor) -> Tensor:
    """What `torch.vmap` maps over, all slices at once; a graph that is being compiled can't ask for it."""
    while not torch.compiler.is_compiling() and is_batchedtensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def unwrapped(tensor: Tensor) -> Tensor:
    """What the transforms of `torch.func` wrap, of a map all slices at once."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def has_tangent(*tensors: Tensor) -> bool:
    """Whether one of the tensors is being differentiated in forward mode, or by `torch.func`, at any level."""
    tensors = tuple(map(unmapped, tensors))
    # `unpack_dual` sees the innermost level alone; what an outer one differentiates is wrapped; a graph can't ask.
    if not torch.compiler.is_compiling() and any(is_functorch_wrapped_tensor(tensor) for tensor in tensors):
        return True
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def has_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records what is made of one of the tensors. A slice of a map does not know of itself."""
    return torch.is_grad_enabled() and any(unmapped(tensor).requires_grad for tensor in tensors)


def in_transform() -> bool:
    """Whether a transform of `torch.func` (jvp, grad, vmap) is at work, in which no op runs for itself."""
    return peek_interpreter_stack() is not None


def without_gradient(op: Callable, *arguments: Any) -> Any:
    """`op(*arguments)`, of whose results none has a gradient: past autograd, whose Python takes as long as a lookup."""
    if torch.compiler.is_compiling() or in_transform():
        return op(*(value.detach() if isinstance(value, Tensor) else value for value in arguments))
    with BelowAutograd():
        return op(*arguments)


def pass_on(features: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` to the bit, with the derivatives of `features`, in every mode and in compiled graphs, but none where
    a feature is not finite."""
    # Or Inf - Inf below would be NaN; its derivative is 0 where it has put another number.
    features = features.nan_to_num()
    return quantized - (features.detach() - features)  # minus zero, which keeps the sign of one
