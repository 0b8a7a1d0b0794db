"""Triton as a backend: whether it can run here, how its ops are registered, how its kernels are started.

Kernels live in `soho_fast/ops/<op>/triton.py`. torch.compile sees through their ops as through those of
`torch.library.triton_op`, which cannot be used itself: it imports Inductor along with the package.
"""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

INTERPRETING = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
"""Triton's own switch, read by it when a kernel is defined: kernels run in Python, on CPU tensors."""

DEVICE_TYPE = "cpu" if INTERPRETING else "cuda"  # ROCm calls its devices cuda, too

_tracing: ContextVar[bool] = ContextVar("tracing", default=False)


def _find_missing() -> tuple[str, ...]:
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed (pip install triton)")
    if not INTERPRETING and torch.version.cuda is None and torch.version.hip is None:
        reasons.append(
            "this torch is built without GPU support (TRITON_INTERPRET=1 interprets the kernels on the CPU, slowly)"
        )
    return tuple(reasons)


MISSING = _find_missing()
"""Every reason why Triton cannot run in this process; empty where it can."""


def register(library: torch.library.Library, name: str, home: str) -> None:
    """Implement the op `library.ns::<name>_triton`, defined before, by function `name` of module `<home>.triton`."""
    module = importlib.import_module(f"{home}.triton")
    function = getattr(module, name)
    qualified = f"{library.ns}::{name}_triton"
    library.impl(f"{name}_triton", _on_device_of_first(function), "CompositeExplicitAutograd")
    if INTERPRETING:
        return  # an interpreted kernel is opaque to a compiler

    from torch._library.triton import triton_ops_to_kernels
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    def decompose(mode: Any, op: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        with mode, _traced():
            return function(*args, **kwargs)

    torch.library.register_torch_dispatch(qualified, FunctionalTensorMode, decompose, lib=library)
    triton_ops_to_kernels[qualified] = module.KERNELS  # so that a cached graph is dropped when a kernel changes


def _on_device_of_first(function: Callable) -> Callable:
    def kernel(*args: Any) -> Any:
        device = args[0].device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            return function(*args)

    return kernel


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)


def launch(kernel: Any, num_programs: int, /, **arguments: Any) -> None:
    """Run `num_programs` programs of a kernel on the current stream, or put them into the graph that is traced.

    Arguments go by name, the compiler's options among them. A group of them is a dict here, not a tuple that the kernel
    takes: torch.compile makes a constant of a tuple, sizes and strides included.
    """
    started = torch.library.wrap_triton(kernel) if _tracing.get() else kernel
    started[(num_programs,)](**arguments)


def strided(name: str, tensor: Tensor, letters: str) -> dict[str, Any]:
    """The arguments `name` and `<name>_stride_<letter>` for each dimension of the tensor. The stride over groups (g) of
    a single one is 0, so that no kernel is specialised to the number of rows."""
    strides = {f"{name}_stride_{letter}": tensor.stride(place) for place, letter in enumerate(letters)}
    if letters[0] == "g" and tensor.shape[0] == 1:
        strides[f"{name}_stride_g"] = 0
    return {name: tensor, **strides}


def ceil_div(total: int, part: int) -> int:
    """How many parts make up the total; symbolic where the total is."""
    return (total + part - 1) // part
