"""Exact lookups under other libraries' quantisers, and drop-in functions; one module per library, named like it.

`accelerate(model)` and `restore(model)` put classes under a model's modules. Beside them: `fused_l2_nn_argmin` of
`pylibraft`.
"""

from importlib import import_module
from typing import TypeVar

from torch import nn

from soho_fast.adapters import swapping

_Model = TypeVar("_Model", bound=nn.Module)

# Each with where its quantisers are: a project of one's own may be called dac as well.
_LIBRARIES = {
    "transformers": "transformers.models",
    "encodec": "encodec.quantization.core_vq",
    "moshi": "moshi.quantization.core_vq",
    "dac": "dac.nn.quantize",
    "vector_quantize_pytorch": "vector_quantize_pytorch",
}


def accelerate(model: _Model) -> _Model:
    """Put exact lookups under every quantiser of a model that is known, in place.

    The code of a feature is then the nearest one as evaluated in float64, the lowest of equally near ones. The
    originals evaluate distances in float32, or in the half type or autocast in use. Weights, `state_dict`, hooks, names
    and everything else stay. `docs/quantisers.md` says which, and what is compared.

    Args:
        model: a torch module that holds quantisers, or is one. One that is accelerated already stays as it is.

    Returns:
        model, the same object. `restore` undoes it.

    Raises:
        TypeError: not a module. ValueError: no quantiser in it, or some that cannot be served; every one is named,
            with every reason, and nothing is changed.
    """
    found: list[swapping.Found] = []
    reasons: list[str] = []
    for library in _libraries_of(model):
        of_library = import_module(f"{__name__}.{library}").find(model)
        found += of_library[0]
        reasons += of_library[1]
    if reasons:
        raise ValueError(f"model: {'; '.join(reasons)}; nothing was changed")
    if not found and not any(isinstance(module, swapping.Swapped) for module in model.modules()):
        raise ValueError(
            f"model: expected one with a quantiser of {', '.join(_LIBRARIES)} that is known here, "
            f"got {type(model).__name__}"
        )
    for _, module, new in found:
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


def _libraries_of(model: nn.Module) -> list[str]:
    """The libraries, among those with an adapter, that classes of the model's modules come from."""
    _check(model)
    kinds = {base for module in model.modules() for base in type(module).__mro__}
    homes = {f"{kind.__module__}." for kind in kinds}
    return [library for library, home in _LIBRARIES.items() if any(at.startswith(f"{home}.") for at in homes)]
