"""Exact lookups under the quantisers of vector_quantize_pytorch: `accelerate(model)`, and back, `restore(model)`."""

from typing import TypeVar

from torch import nn

from soho_fast.adapters import swapping

_Model = TypeVar("_Model", bound=nn.Module)


def accelerate(model: _Model) -> _Model:
    """Put exact lookups under every `VectorQuantize`, `ResidualVQ` and `SimVQ` of a model, in place.

    The code of a feature is then the nearest one as evaluated in float64, the lowest of equally near ones. The
    originals evaluate distances in float32, or in the half type or autocast in use. Weights, `state_dict`, hooks, names
    and everything else stay.

    Args:
        model: a torch module that holds quantisers, or is one. One that is accelerated already stays as it is.

    Returns:
        model, the same object. `restore` undoes it.

    Raises:
        TypeError: not a module. ValueError: no quantiser in it, or some that cannot be served; every one is named,
            with every reason, and nothing is changed. ModuleNotFoundError: vector_quantize_pytorch is not installed.
    """
    _check(model)
    from soho_fast.adapters import vector_quantize_pytorch

    found, reasons = vector_quantize_pytorch.find(model)
    if reasons:
        raise ValueError(f"model: {'; '.join(reasons)}; nothing was changed")
    if not found and not any(isinstance(module, swapping.Swapped) for module in model.modules()):
        raise ValueError(
            "model: expected one with a VectorQuantize, ResidualVQ or SimVQ of vector_quantize_pytorch, "
            f"got {type(model).__name__}"
        )
    for module, new in found:
        swapping.put(module, new)
    return model


def restore(model: _Model) -> _Model:
    """Give every module of a model that `accelerate` changed its own class and methods again, in place.

    Raises:
        TypeError: not a module.
    """
    _check(model)
    for module in model.modules():
        swapping.undo(module)
    return model


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
