"""Which implementation serves a call: the table of backends, the compiled extension, and op registration.

Each op is registered once per backend, as `torch.ops.soho_fast.<op>_<backend>`, with one schema, one fake kernel and
one gradient. `reference` is written in Python and runs on every device; `cpu` and `cuda` are implemented by
`soho_fast._C`, `triton` by `soho_fast/ops/<op>/triton.py`, imported where Triton can run.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd as BelowAutograd

from soho_fast.ops import self_check, triton_backend

BACKENDS = ("reference", "cpu", "triton", "cuda")
CPU_LEVELS = ("scalar", "neon", "avx2", "avx512", "avx512_bf16", "avx512_vnni", "amx")
LIBRARY = torch.library.Library("soho_fast", "FRAGMENT")

_BEST_FIRST = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # in turn, where none is named
_SCREENED = {"codebook_lookup", "pack_codebook"}  # which go by _triton_first
_NATIVE_OPS: dict[str, set[str]] = {"cpu": set(), "triton": set(), "cuda": set()}
_REFERENCES: dict[str, Callable] = {}
_OPS: dict[tuple[str, str], Callable] = {}  # by name and backend
_NOTHING: Mapping[str, str] = MappingProxyType({})
_fallback_warned = False


def _load_extension() -> tuple[ModuleType | None, str]:
    """The compiled module and "", or None and the reason why it is absent."""
    try:
        return importlib.import_module("soho_fast._C"), ""
    except ModuleNotFoundError as error:
        # Then the extension is there, and what it imports is missing.
        if error.name != "soho_fast._C":
            raise
        folder = os.path.dirname(os.path.dirname(__file__))  # a clone's, if Python starts there
        todo = "install a C++ compiler and reinstall the package, a clone with pip install -e"
        return None, f"the compiled extension soho_fast._C is not built in {folder} ({todo})"
    except ImportError as error:
        return None, f"the compiled extension soho_fast._C does not load: {error}"


_extension, _extension_missing = _load_extension()
# Float64 distances one by one: 2 to 8 times slower than the matrix products of the reference, without AVX2 as well.
_ONLY_SCALAR = _extension is not None and _extension.build_info()["cpu_levels_available"] == ["scalar"]
# Past the dispatcher, where no other backend is better.
small_lookup = None if _extension is None or _ONLY_SCALAR else _extension.small_lookup
_FASTER_THAN_SCALAR = {"codebook_lookup", "pack_codebook", "residual_lookup"}  # the ops whose reference is


def _warning_once(reference: Callable) -> Callable:
    """The reference, saying on the first run of any op that the extension is absent. At run time, so that it is heard
    from compiled graphs as well."""

    @functools.wraps(reference)
    def kernel(*args: Any) -> Any:
        global _fallback_warned
        if _extension is None and not _fallback_warned:
            _fallback_warned = True
            message = f"soho_fast runs its slower plain torch reference: {_extension_missing}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return reference(*args)

    return kernel


def define_op(
    name: str,
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    native: tuple[str, ...] = ("cpu", "triton", "cuda"),
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> None:
    """Register `soho_fast::<name>_<backend>` for the reference and for each native backend that implements it.

    Args:
        name: op name without backend.
        schema: argument list and returns, such as "(Tensor x) -> Tensor".
        reference: the plain torch implementation.
        fake: the shape function used by torch.compile and meta tensors.
        native: backends that implement the op: `cpu` and `cuda` register their code when the extension loads, `triton`
            is the function `name` of the module `triton` beside the reference.
        backward, setup_context: the gradient, as in `torch.library.register_autograd`.
    """
    _REFERENCES[name] = reference
    for backend in native:
        _NATIVE_OPS[backend].add(name)
    for backend in ("reference", *native):
        # To register its op would import Triton.
        if backend == "triton" and triton_backend.MISSING:
            continue
        qualified = f"soho_fast::{name}_{backend}"
        LIBRARY.define(f"{name}_{backend}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        if backend == "reference":
            # Explicit: below autograd, so that the registered gradient holds and not one traced through the body.
            LIBRARY.impl(f"{name}_{backend}", _warning_once(reference), "CompositeExplicitAutograd")
        elif backend == "triton":
            triton_backend.register(LIBRARY, name, home=reference.__module__.rpartition(".")[0])
        torch.library.register_fake(qualified, fake, lib=LIBRARY)
        _OPS[name, backend] = getattr(torch.ops.soho_fast, f"{name}_{backend}").default
        if backward is not None:
            torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)


def _has_cuda_kernels() -> bool:
    return _extension is not None and "cuda_architectures" in _extension.build_info()


def _refusals(name: str, backend: str, device_type: str, lacking: Mapping[str, str]) -> list[str]:
    """Every reason why `backend` cannot serve op `name` on tensors of `device_type`; `lacking` as in `backend_for`."""
    if backend == "reference":
        return []
    reasons: list[str] = []
    if backend == "triton":
        reasons += triton_backend.MISSING
    elif _extension is None:
        reasons.append(_extension_missing)
    elif backend == "cuda" and not _has_cuda_kernels():
        reasons.append(
            "the compiled extension has no CUDA kernels (install nvcc and a CUDA build of torch, then reinstall the "
            "package with SOHO_FAST_CUDA=1)"
        )
    wanted_type = triton_backend.DEVICE_TYPE if backend == "triton" else backend
    if device_type != wanted_type:
        reasons.append(f"it needs tensors on {wanted_type}, these are on {device_type}")
    if name not in _NATIVE_OPS[backend]:
        reasons.append(f"it has no kernel for {name}")
    elif backend in lacking:
        reasons.append(lacking[backend])
    return reasons


def _triton_first(device: torch.device) -> bool:
    """Whether lookups take Triton before the CUDA kernels on this GPU: from sm_90 on, whose wgmma instructions its
    screening is compiled to, that of the CUDA kernels to mma.sync. No card has measured the two yet."""
    return _has_cuda_kernels() and torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (9, 0)


_triton_first._dynamo_marked_constant = True  # type: ignore[attr-defined]  # called while tracing, as self_check.require


def backend_for(name: str, backend: str | None, device: torch.device, lacking: Mapping[str, str] = _NOTHING) -> str:
    """Name of the backend that serves this call; raises as `op_for`.

    `lacking` says of a backend what the arguments of this call ask for and its kernel does not do.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {backend!r}")
    if backend is not None:
        reasons = _refusals(name, backend, device.type, lacking)
        if reasons:
            raise ValueError(f"backend: {backend!r} cannot serve {name}: {'; '.join(reasons)}")
        return backend
    best_first = _BEST_FIRST.get(device.type, ())
    if device.type == "cuda" and name in _SCREENED and _triton_first(device):
        best_first = best_first[::-1]
    for best in best_first:
        if best == "cpu" and _ONLY_SCALAR and name in _FASTER_THAN_SCALAR:
            continue
        # The trial may cost a compilation: only of a backend that nothing else rules out.
        if not _refusals(name, best, device.type, lacking) and (best == "cpu" or _runs(name, best, device)):
            return best
    return "reference"


def _runs(name: str, backend: str, device: torch.device) -> bool:
    tried = "codebook_lookup" if name == "pack_codebook" else name  # which reads what was packed
    return self_check.runs(tried, backend, device, _REFERENCES[tried])


def op_for(name: str, backend: str | None, device: torch.device) -> Callable:
    """The registered op that serves this call.

    Raises:
        ValueError: unknown backend, or a backend asked for by name that cannot serve the call, with every reason.
        RuntimeError: a backend for GPUs that errs on this device, or, if it was asked for, does not run (`self_check`).
    """
    return op_of(name, backend_for(name, backend, device), device)


def op_of(name: str, chosen: str, device: torch.device) -> Callable:
    """The registered op of the backend that `backend_for` chose; RuntimeError as `op_for`."""
    if chosen in ("triton", "cuda"):
        self_check.require(name, chosen, device, _REFERENCES[name])
    return _OPS[name, chosen]


def has_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records what is made of one of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def without_gradient(op: Callable, *arguments: Any) -> Any:
    """`op(*arguments)`, of whose results none has a gradient: past autograd, whose Python takes as long as a lookup."""
    if torch.compiler.is_compiling():
        return op(*(value.detach() if isinstance(value, Tensor) else value for value in arguments))
    with BelowAutograd():
        return op(*arguments)


def mark_changed(tensor: Tensor) -> None:
    """Tell autograd that an op wrote into `tensor`: kernels of torch.library do not count versions themselves."""
    if not torch.compiler.is_compiling():  # a compiled graph writes back by copy_, which counts
        torch.autograd.graph.increment_version(tensor)


def available_backends() -> list[str]:
    """Names of the backends that can run here; `reference` is always among them, `cuda` the last.

    Where none is named a GPU takes `cuda` before `triton`; `codebook_lookup` from sm_90 on `triton` before `cuda`.
    """
    has_device = torch.cuda.is_available()
    runs = {
        "reference": True,
        "cpu": _extension is not None,
        "triton": (has_device or triton_backend.INTERPRETING) and not triton_backend.MISSING,
        "cuda": has_device and _has_cuda_kernels(),
    }
    return [name for name in BACKENDS if runs[name]]


def set_cpu_level(level: str | None) -> None:
    """Force the instruction set of the `cpu` backend, for the whole process.

    Args:
        level: "scalar", "neon" (ARM), "avx2", "avx512", "avx512_bf16", "avx512_vnni" or "amx"; None goes back to the
            best one this machine has.
            An op that has no kernel of the level runs its next lower one.

    Raises:
        ValueError: unknown level, a level this machine or this build lacks, or no compiled extension.
    """
    if level is not None and level not in CPU_LEVELS:
        raise ValueError(f"level: expected one of {', '.join(CPU_LEVELS)} or None, got {level!r}")
    if _extension is None:
        raise ValueError(f"level: {level!r} cannot be set, {_extension_missing}")
    _extension.set_cpu_level(level or "")


def lookup_level(num_codes: int, num_channels: int) -> str:
    """The instruction set of lookups in a codebook of this size by the `cpu` backend."""
    return "" if _extension is None else _extension.lookup_level(num_codes, num_channels)


def build_info() -> dict:
    """What was built and what runs here.

    Returns:
        dict with `extension` (bool), `reason` (why it is absent, or ""), `torch`, and, with the extension, `compiler`,
        `architecture`, `stable_abi` (the oldest libtorch it loads into), `cpu_levels_built`, `cpu_levels_available`
        and `cpu_level` (the one in use); `cuda_architectures` where it has CUDA kernels.
    """
    info = {"extension": _extension is not None, "reason": _extension_missing, "torch": str(torch.__version__)}
    if _extension is not None:
        info.update(_extension.build_info())
    return info


if os.environ.get("SOHO_FAST_CPU_LEVEL"):
    try:
        set_cpu_level(os.environ["SOHO_FAST_CPU_LEVEL"])
    except ValueError as error:
        raise ValueError(f"environment variable SOHO_FAST_CPU_LEVEL: {error}") from error
