"""What this machine can do, by the library calls that get nearest to it: the ops are measured in shares of these.

A product's limit is the faster of what torch and numpy reach, no theoretical peak: a share may exceed 100 %.
"""

import time

import pytest
import torch

from benchmarks.ops.shapes import BANDWIDTH_ELEMENTS, PRODUCT_SIDE


def _seconds(call) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _product(dtype):
    a, b = (torch.randn(PRODUCT_SIDE, PRODUCT_SIDE).to(dtype) for _ in range(2))
    exact = a[:8].double() @ b.double()

    def share_wrong(product) -> float:
        tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
        scale = exact.abs().mean()
        return ((product[:8].double() - exact).abs() > tolerance * scale * 4).double().mean().item()

    transposed = b.T.contiguous()
    calls = [lambda: a @ b, lambda: torch.nn.functional.linear(a, transposed)]
    if dtype == torch.float32:
        calls.append(lambda: torch.from_numpy(a.numpy() @ b.numpy()))
    return min(calls, key=_seconds), share_wrong, 2.0 * PRODUCT_SIDE**3


def _copy():
    source, target = torch.randn(BANDWIDTH_ELEMENTS), torch.empty(BANDWIDTH_ELEMENTS)
    return lambda: target.copy_(source), lambda copied: float(not torch.equal(copied, source)), 8.0 * BANDWIDTH_ELEMENTS


def _read():
    source = torch.ones(BANDWIDTH_ELEMENTS)
    return source.sum, lambda total: float(total.item() != BANDWIDTH_ELEMENTS), 4.0 * BANDWIDTH_ELEMENTS


LIMITS = {
    "float32 product": lambda: _product(torch.float32),
    "bfloat16 product": lambda: _product(torch.bfloat16),
    "copy": _copy,
    "read": _read,
}


@pytest.mark.parametrize("limit", LIMITS)
def test_machine_limit(limit, time_checked):
    call, share_wrong, amount = LIMITS[limit]()
    time_checked("machine limit", limit, (), limit, call, share_wrong, max_wrong=0.01, work={limit: amount})
