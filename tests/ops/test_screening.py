"""The reference's float32 screening: what it proves is what float64 says, and what it cannot prove float64 decides."""

import pytest
import torch
from hard_problems import ADVERSARIAL

from soho_fast import ops
from soho_fast.ops.codebook_lookup import reference

N, K, C = 100, 90, 33


def learnt(scale=1.0):
    codebook = torch.randn(K, C)
    return codebook[torch.randint(K, (N,))] + scale * torch.randn(N, C), codebook


def between():
    """Rows half-way between two codes but for some units in the last place."""
    _, codebook = learnt()
    first, second = codebook[torch.randint(K, (2, N))].double()
    middle = ((first + second) / 2).float()
    return middle + middle * torch.randint(-3, 4, (N, 1)) * 2.0**-24, codebook


def heavy_tails():
    return tuple(t**9 for t in learnt())


OWN = {"learnt": learnt, "between two codes": between, "heavy tails": heavy_tails}
OTHERS = (
    "duplicates by hundreds", "one ulp apart", "integers with ties", "offset 1e4", "norms over 30 orders", "not finite",
    "subnormal and normal", "squares overflow", "largest floats", "no finite code",
)  # fmt: skip


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("name", [*OWN, *OTHERS])
def test_it_is_exact(name, metric, exact_lookup):
    features, codebook = OWN[name]() if name in OWN else ADVERSARIAL[name]()
    features = features.repeat(-(-N // len(features)), 1)  # few rows are not screened
    index = ops.codebook_lookup(features, codebook, metric=metric, backend="reference")
    expected = exact_lookup(features, codebook, metric)[0]
    assert torch.equal(index, expected)
    usable_K = codebook.isfinite().all(-1)
    found, proved = reference._screened(features, codebook, usable_K, metric)
    assert torch.equal(found[proved], expected[proved]), "what is proved is exact by itself"
    assert name != "learnt" or proved.float().mean() > 0.9, "most rows are proved"
    if name in ("between two codes", "duplicates by hundreds") and metric == "euclidean":
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
