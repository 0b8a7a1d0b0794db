"""The reference's float32 screening: what it proves is what float64 says, and what it cannot prove float64 decides."""

import pytest
import torch

from soho_fast import ops
from soho_fast.ops.codebook_lookup import reference

N, K, C = 150, 90, 33


def learnt(scale=1.0):
    codebook = torch.randn(K, C)
    return codebook[torch.randint(K, (N,))] + scale * torch.randn(N, C), codebook


def between():
    """Rows half-way between two codes but for some units in the last place."""
    _, codebook = learnt()
    first, second = codebook[torch.randint(K, (2, N))].double()
    middle = ((first + second) / 2).float()
    return middle + middle * torch.randint(-3, 4, (N, 1)) * 2.0**-24, codebook


def copied():
    features, codebook = learnt()
    codebook[K // 2 :] = codebook[: K // 2].clone()
    return features, codebook


def not_finite():
    features, codebook = learnt()
    features[::7, 0], features[1::9, 1], codebook[::5, 2], codebook[1::6, 3] = torch.tensor(
        [torch.nan, torch.inf, torch.nan, -torch.inf]
    )
    return features, codebook


def of_sizes():
    features, codebook = learnt()
    return features * 10 ** (6 * torch.randn(N, 1)), codebook * 10 ** torch.randn(K, 1)


CASES = {
    "learnt": learnt, "between two codes": between, "whole numbers": lambda: tuple(t.round() for t in learnt()),
    "copied codes": copied, "an offset": lambda: tuple(t + 3e4 for t in learnt(1e-2)),
    "heavy tails": lambda: tuple(t**9 for t in learnt()),
    "squares underflow": lambda: tuple(t * 1e-22 for t in learnt()),
    "subnormal": lambda: tuple(t * 1e-41 for t in learnt()),
    "squares overflow": lambda: tuple(t * 1e19 for t in learnt()),
    "sums overflow": lambda: tuple(t * 3e37 for t in learnt()), "many sizes": of_sizes,
    "half precision": lambda: (learnt()[0].half(), learnt()[1].bfloat16()),
    "not finite": not_finite,
    "no usable code": lambda: (learnt()[0], torch.full((K, C), torch.nan)),
    "a code": lambda: (learnt()[0], torch.randn(1, C)),
}  # fmt: skip


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("name", CASES)
def test_it_is_exact(name, metric, exact_lookup):
    features, codebook = CASES[name]()
    index = ops.codebook_lookup(features, codebook, metric=metric, backend="reference")
    expected = exact_lookup(features, codebook, metric)[0]
    assert torch.equal(index, expected)
    usable_K = codebook.isfinite().all(-1)
    found, proved = reference._screened(features, codebook, usable_K, metric)
    assert torch.equal(found[proved], expected[proved]), "what is proved is exact by itself"
    if name in ("learnt", "half precision"):
        assert proved.float().mean() > 0.9, "most rows are proved"
    if name in ("between two codes", "copied codes") and metric == "euclidean":
        assert proved.float().mean() < 0.6, "what float32 cannot tell is not"


def test_the_bound_holds_for_sums_in_the_worst_order():
    """Products of growing size that float32 adds badly: a.b is off by more than units in its last place."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.cat([torch.randn(K, C, generator=generator), 1e3 * torch.ones(K, C)], 1)
    features = torch.cat(
        [torch.randn(N, C, generator=generator), torch.tensor([1e3, -1e3]).repeat(C)[:C].expand(N, C)], 1
    )
    difference = features.double()[:, None] - codebook.double()
    assert torch.equal(
        ops.codebook_lookup(features, codebook, backend="reference"), difference.square().sum(-1).argmin(1)
    )


def test_products_that_are_less_than_float32_are_not_trusted(exact_lookup):
    features, codebook = between()
    assert reference._screens(features, codebook)
    try:
        for value in ("tf32", "bf16"):
            torch.backends.mkldnn.matmul.fp32_precision = value
            assert not reference._screens(features, codebook)
            index = ops.codebook_lookup(features, codebook, backend="reference")
            assert torch.equal(index, exact_lookup(features, codebook)[0])
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
