"""Small lookups past torch's dispatcher and autograd, which take ten times as long as the lookup of a row."""

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.compiler import is_compiling

from soho_fast.ops.backends import has_gradient, small_lookup
from soho_fast.ops.codebook_lookup.prepared import PreparedCodebook
from soho_fast.ops.codebook_lookup.reference import METRICS, MOST_NEAREST

try:
    from torch._C import (
        _dispatch_keys,
        _is_torch_function_mode_enabled,
        _is_tracing,
        _len_torch_dispatch_stack,
    )

    profiler._is_profiler_enabled  # noqa: B018
    with torch.inference_mode():
        _OF_INFERENCE = torch.empty(0, device="cpu")
    # All that the dispatcher goes by: device, layout, lazy bits, transforms that wrap the tensor.
    _PLAIN = tuple(_dispatch_keys(tensor).raw_repr() for tensor in (_OF_INFERENCE.clone(), _OF_INFERENCE))
except (ImportError, AttributeError):  # another torch, whose private names are others
    small_lookup = None
_CODEBOOKS = (Tensor, torch.nn.Parameter)


def lookup_at_once(
    features: Tensor, codebook: Tensor | PreparedCodebook, metric: str, topk: int | None, return_distance: bool
) -> Tensor | tuple[Tensor, Tensor] | None:
    """What `codebook_lookup` returns, by the CPU kernel after few questions. None where the answer to one is no:
    `codebook_lookup` then asks all of them and says what is wrong."""
    if (
        is_compiling()
        or small_lookup is None
        # Who watches torch sees the op.
        or _len_torch_dispatch_stack() > 0
        or _is_torch_function_mode_enabled()
        or _is_tracing()
        or profiler._is_profiler_enabled
        or type(features) is not Tensor
        or _dispatch_keys(features).raw_repr() not in _PLAIN
        or not (topk is None or (type(topk) is int and 2 <= topk <= MOST_NEAREST))
    ):
        return None
    codes: Tensor
    packed: Tensor | None = None
    if isinstance(codebook, PreparedCodebook):
        if codebook.at_once is None or metric != codebook.at_once[0]:
            return None
        _, codes, packed = codebook.at_once
        codebook.refuse_written()
    elif type(codebook) in _CODEBOOKS and _dispatch_keys(codebook).raw_repr() in _PLAIN and metric in METRICS:
        codes = codebook
    else:
        return None
    if return_distance and has_gradient(features, codes):
        return None
    return small_lookup(features, codes, packed, METRICS.index(metric), topk or 1, return_distance)
