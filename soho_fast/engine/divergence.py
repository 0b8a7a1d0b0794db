"""Is all that a run trains still finite? Found out with one wait for the device."""

from collections.abc import Iterator, Sequence

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn

_NUM_NAMED = 3


def describe_non_finite(engine: DeepSpeedEngine) -> list[str]:
    """What of this rank's parameters, buffers and optimiser state holds Inf or NaN, in words; empty where nothing.

    Under ZeRO this is the rank's own part of what is partitioned.
    """
    named = list(_state(engine))
    if _all_finite([tensor for _, tensor in named]):
        return []
    # The quick look also says no where a sum of squares is too large for float32.
    bad = [name for name, tensor in named if not bool(torch.isfinite(tensor).all())]
    if not bad:
        return []
    more = f" and {len(bad) - _NUM_NAMED} more" if len(bad) > _NUM_NAMED else ""
    return [f"{len(bad)} of {len(named)} tensors ({', '.join(bad[:_NUM_NAMED])}{more})"]


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    # A norm is one read, a fifth of the time of `isfinite`; that of a float16 tensor would overflow in float16.
    wide = [tensor for tensor in tensors if tensor.dtype != torch.float16]
    wide += [torch.linalg.vector_norm(t, dtype=torch.float32) for t in tensors if t.dtype == torch.float16]
    return bool(nn.utils.get_total_norm(wide).isfinite())


def _state(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors, each once, with a name."""
    names = {}
    for name, parameter in engine.module.named_parameters():
        names[parameter] = name
        yield name, getattr(parameter, "ds_tensor", parameter).detach()
    for name, buffer in engine.module.named_buffers():
        if buffer.is_floating_point():
            yield name, buffer
    optimizer = engine.basic_optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            names.setdefault(parameter, f"a partition of {group['name']}")
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield f"{name} of {names.get(parameter, 'a partition')}", value
