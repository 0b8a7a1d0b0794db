"""fsq and lfq, forward and backward, against vector-quantize-pytorch's FSQ and the plain formula of LFQ."""

import pytest
import torch

from benchmarks.ops.lookup_baselines import installed
from benchmarks.ops.shapes import FINITE_N
from benchmarks.short import first_by_default
from soho_fast import ops

LEVELS, BITS = [8, 5, 5, 5], 10


def _plain_lfq(features):
    bit = features > 0
    index = (bit * torch.tensor([1 << place for place in range(BITS - 1, -1, -1)])).sum(-1)
    return features + (torch.where(bit, 1.0, -1.0) - features).detach(), index


def _swapped(call):
    return lambda features: call(features)[::-1]


METHODS = {
    ("fsq", "soho_fast"): lambda: _swapped(lambda features: ops.fsq(features, LEVELS)),
    ("fsq", "vector-quantize-pytorch"): lambda: installed("vector_quantize_pytorch", "vector-quantize-pytorch").FSQ(
        LEVELS
    ),
    ("lfq", "soho_fast"): lambda: _swapped(ops.lfq),
    ("lfq", "plain torch"): lambda: _plain_lfq,
}


@pytest.mark.parametrize(("op", "method"), METHODS)
@pytest.mark.parametrize("num_rows", first_by_default(FINITE_N))
def test_forward_and_backward(num_rows, op, method, time_checked, generator):
    shape = (1, num_rows, len(LEVELS) if op == "fsq" else BITS)
    features, grad = torch.randn(shape, generator=generator).requires_grad_(), torch.randn(shape, generator=generator)
    expected = ops.fsq(features, LEVELS)[0] if op == "fsq" else _plain_lfq(features)[1]
    quantise = METHODS[op, method]()

    def call():
        quantized, index = quantise(features)
        return index, torch.autograd.grad(quantized, features, grad)

    call()  # torch imports what the first gradient needs
    time_checked(
        op,
        f"{num_rows} rows",
        shape,
        method,
        call,
        lambda result: (result[0] != expected).double().mean().item(),
        max_wrong=1e-3,  # theirs rounds in float32
    )
