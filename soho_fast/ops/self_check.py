"""Tries each op's GPU kernels on a small problem before their first use, and compares with the plain torch reference.

The kernels are compiled by the user's tools and run on the user's GPU; their authors had neither. So each op is tried
once per process, backend and device. That takes some milliseconds, with Triton some seconds to compile, and one wait
for the device. Under torch.compile the trial runs while the graph is traced. It is put off to the next call while a
CUDA graph is captured, where tensors are fake, and within a transform of torch.func.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

N, K, C, B, L = 70, 150, 256, 5, 14  # N = B * L features, K codes, C channels, B images of L tokens

# Whether it ran, and what is wrong with it: "" where it is right.
_verdicts: dict[tuple[str, str, torch.device], tuple[bool, str]] = {}


def _verdict(name: str, backend: str, device: torch.device, reference: Callable) -> tuple[bool, str]:
    key = name, backend, device
    if key not in _verdicts:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return True, ""
        if type(torch.empty(0, device=device)) is not Tensor or peek_interpreter_stack() is not None:
            return True, ""  # somebody traces, or a transform would take the trial for its own
        with torch.inference_mode(False), torch.no_grad():
            try:
                _verdicts[key] = True, _difference(name, backend, device, reference)
            except Exception as error:  # of a compiler or a driver
                if "out of memory" in str(error):
                    raise
                _verdicts[key] = False, f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
    return _verdicts[key]


def require(name: str, backend: str, device: torch.device, reference: Callable) -> None:
    """Try `name` of `backend` on `device` unless that was done.

    Raises:
        RuntimeError: it does not run, or does not give what the reference gives.
    """
    ran, wrong = _verdict(name, backend, device, reference)
    if not ran:
        raise RuntimeError(f"backend: {backend!r} cannot run {name} on {device}: {wrong}")
    if wrong:
        raise RuntimeError(
            f"backend: {backend!r} is wrong on {device} and refused: {name} {wrong} on a small problem. Name another "
            "backend ('reference' runs everywhere) and report it with what soho_fast.ops.build_info() says"
        )


def runs(name: str, backend: str, device: torch.device, reference: Callable) -> bool:
    """Whether `backend` can be compiled and started on `device`, as Triton cannot without a compiler; warns if not."""
    ran, wrong = _verdict(name, backend, device, reference)
    if not ran:
        message = f"backend {backend!r} cannot run on {device} and is not used ({wrong})"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return ran


# What torch.compiler.assume_constant_result sets, which would import the compiler along with the package: torch.compile
# calls the functions while it traces.
require._dynamo_marked_constant = True  # type: ignore[attr-defined]
runs._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _op(name: str, backend: str) -> Callable:
    return getattr(torch.ops.soho_fast, f"{name}_{backend}").default


def _difference(name: str, backend: str, device: torch.device, reference: Callable) -> str:
    """Where the two results differ, in words; "" where they don't."""
    expected_of = _arguments(name)
    got_of = [value.to(device, copy=True) if isinstance(value, Tensor) else value for value in expected_of]
    if name == "pack_codebook":  # tried by a lookup, which reads it
        return ""
    if name == "codebook_lookup":
        got_of[4] = _op("pack_codebook", backend)(got_of[1])
    expected, got = _tensors(reference(*expected_of)), _tensors(_op(name, backend)(*got_of))
    if name.endswith("_"):  # in place: what was written
        expected, got = [expected_of[0], *expected], [got_of[0], *got]
    for position, (wanted, value) in enumerate(zip(expected, got, strict=True)):
        # Copies and numbers of codes are exact; a sum of float32 in another order is far within this.
        near = torch.isclose(value.cpu(), wanted, rtol=2.0**-20, atol=2.0**-18, equal_nan=True)
        if not near.all():
            return f"differs in {int((~near).sum())} of {near.numel()} values of result {position}"
    return ""


def _tensors(result: Any) -> list[Tensor]:
    return [] if result is None else [result] if isinstance(result, Tensor) else list(result)


def _arguments(name: str) -> list:
    """Arguments of the op on the CPU, always the same."""
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32)

    def whole(least: int, most: int, *shape: int) -> Tensor:
        return torch.randint(least, most, shape, generator=generator, device="cpu", dtype=torch.int64)

    # Codes in pairs, from 2^-3 to 2^-8 of a channel apart: some that low precision may just tell apart, some that it
    # must not.
    half, apart = normal(K // 2, C), (2.0 ** -(3 + torch.arange(K // 2, device="cpu") % 6)).float()
    codebook = torch.cat([half, half + normal(K // 2, C) * apart[:, None]])
    index = whole(-1, K, N)
    features = codebook[index] + normal(N, C) * 2.0**-8
    valid, decay = whole(0, 5, N) > 0, 0.9
    image_BLC, label_BL, target_B = features.reshape(B, L, C), whole(-1, 4, B, L), whole(-1, 4, B)
    token_C, uniform_B = normal(C), torch.rand(B, generator=generator, device="cpu", dtype=torch.float64)
    counts_K, sums_KC = whole(0, 3, K).float(), normal(K, C)
    arguments: dict[str, list] = {
        "codebook_lookup": [features, codebook, True, True, None],
        "pack_codebook": [codebook],
        "straight_through": [features, codebook, index],
        "codebook_stats": [features, index, K, valid],
        "codebook_ema_": [codebook, counts_K, sums_KC, decay],
        "scatter_mean_ema_": [codebook, features, index, decay, valid],
        "sample_group": [label_BL, valid.reshape(B, L), uniform_B],
        "group_mask": [image_BLC, label_BL, token_C, target_B, valid.reshape(B, L)],
        "group_mask_": [image_BLC, label_BL, token_C, target_B, valid.reshape(B, L)],
    }
    return arguments[name]
