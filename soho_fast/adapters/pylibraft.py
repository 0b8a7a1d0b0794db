"""`fused_l2_nn_argmin`, the function that pylibraft had in `pylibraft.distance` until it was removed in 24.12.

Letters: m rows of X, n rows of Y, k columns.
"""

from typing import Any

import torch
from torch import Tensor

from soho_fast.adapters.kept_codebook import nearest_code
from soho_fast.ops import checks


def _as_matrix(name: str, value: object) -> Tensor:
    strides = (getattr(value, "__array_interface__", None) or {}).get("strides") or ()
    if any(stride < 0 for stride in strides):
        value = value.copy()  # type: ignore[attr-defined]  # torch has no negative strides
    try:
        matrix = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected a torch tensor, a numpy array or an array with __cuda_array_interface__, "
            f"got {type(value).__name__} ({error})"
        ) from error
    if matrix.dim() != 2:
        raise ValueError(f"{name}: expected 2 dimensions (rows, columns), got shape {tuple(matrix.shape)}")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: expected float32 or float64, got {str(matrix.dtype).removeprefix('torch.')}")
    return matrix.detach()


def _check_pair(x_MK: Tensor, y_NK: Tensor) -> None:
    if x_MK.shape[1] != y_NK.shape[1]:
        raise ValueError(f"Y: expected {x_MK.shape[1]} columns like X, got shape {tuple(y_NK.shape)}")
    if y_NK.shape[0] < 1:
        raise ValueError(f"Y: expected at least one row, got shape {tuple(y_NK.shape)}")
    if x_MK.dtype != y_NK.dtype:
        expected, got = (str(dtype).removeprefix("torch.") for dtype in (x_MK.dtype, y_NK.dtype))
        raise ValueError(f"Y: expected {expected} like X, got {got}")
    checks.check_same_device(X=x_MK, Y=y_NK)


def _as_target(out: object, x_MK: Tensor) -> Any:
    """`out` as a tensor or a numpy array (m,) or (m, 1) that shares its memory."""
    in_numpy = hasattr(out, "__array_interface__")
    if not (in_numpy or isinstance(out, Tensor) or hasattr(out, "__cuda_array_interface__")):
        raise TypeError(f"out: expected a torch tensor, a numpy or CUDA array, got {type(out).__name__}")
    target: Any
    if in_numpy:
        import numpy as np

        target, device = np.asarray(out), torch.device("cpu")
        if not target.flags.writeable:
            raise ValueError("out: expected a writable array, got a read-only one")
    else:
        target = torch.as_tensor(out)
        device = target.device
    if str(target.dtype).removeprefix("torch.") != "int32":
        raise ValueError(f"out: expected int32, got {str(target.dtype).removeprefix('torch.')}")
    num_rows = x_MK.shape[0]
    if tuple(target.shape) not in ((num_rows,), (num_rows, 1)):
        raise ValueError(f"out: expected shape ({num_rows},) or ({num_rows}, 1), got {tuple(target.shape)}")
    if device != x_MK.device:
        raise ValueError(f"out: expected device {x_MK.device} like X, got {device}")
    return target


def fused_l2_nn_argmin(X: Any, Y: Any, out: Any = None, sqrt: bool = True, handle: Any = None) -> Any:
    """Index of the row of Y nearest to each row of X in the L2 distance, as `pylibraft.distance` had it.

    The index is the argmin of the distance evaluated in float64, ties to the lowest; the original evaluated it in
    float32. float32 runs on `soho_fast.ops.codebook_lookup`, float64 on its plain-torch reference; neither
    holds an m x n matrix. Any strides are accepted, numpy's negative ones too.

    Args:
        X: (m, k) float32 or float64: a torch tensor, a numpy array, or an array with `__cuda_array_interface__`.
        Y: (n, k) of the type of X.
        out: int32 (m,) or (m, 1) to write into; None makes a new one.
        sqrt: whether distances are compared as roots, as the original could. The index is the same either way.
        handle: accepted for the sake of calls that pass one. The result is complete on return, with or without.

    Returns:
        out where given; else int32 (m,), a numpy array if X is one, a torch tensor otherwise.

    Raises:
        TypeError: X, Y or out that is no array. ValueError: a shape, type or device that does not fit.
    """
    x_MK, y_NK = _as_matrix("X", X), _as_matrix("Y", Y)
    _check_pair(x_MK, y_NK)
    target = None if out is None else _as_target(out, x_MK)
    index_M = nearest_code(x_MK, y_NK).to(torch.int32)
    if target is not None:
        target[...] = index_M.reshape(target.shape)
    if x_MK.is_cuda:
        torch.cuda.current_stream(x_MK.device).synchronize()
    if out is not None:
        return out
    return index_M.numpy() if hasattr(X, "__array_interface__") else index_M
