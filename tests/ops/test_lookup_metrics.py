"""codebook_lookup by cosine and dot product, where it is not as by squared distance; see test_codebook_lookup.py."""

import pytest
import torch

from soho_fast import ops
from soho_fast.ops import codebook_lookup, triton_backend

# Backends of a GPU refuse the metrics by name; see test_refusals.py.
pytestmark = [
    pytest.mark.skipif(triton_backend.INTERPRETING, reason="Triton's kernels serve no other metric"),
    pytest.mark.parametrize("family", ["cpu"], indirect=True),
]
BACKENDS = [name for name in ops.available_backends() if name in ("reference", "cpu")]
METRICS = ("cosine", "dot")


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def _scaled_copies(factors):
    """Codes of few directions: their cosines differ by rounding alone, or not at all."""
    codes = _random(5, 24, seed=1)
    return _random(90, 24), codes.repeat(40, 1) * factors(torch.arange(200))[:, None]


def _opposed():
    """Nothing but zero codes has a similarity above that of others, which are all negative."""
    features, codebook = _random(60, 12).abs(), -_random(100, 12, seed=1).abs()
    codebook[40], codebook[70] = 0.0, -0.0
    return features, codebook


def _sizes_of_rows():
    """From below what a float32 square holds to above."""
    features, codebook = _random(120, 33), _random(300, 33, seed=1)
    return features * 10.0 ** torch.linspace(-44, 37, 120)[:, None], codebook


def _one_direction(spread):
    features, codebook = _random(60, 20), _random(400, 20, seed=1)
    return features, torch.ones(20) + codebook * spread


HARD = {
    "powers of two of a code": lambda: _scaled_copies(lambda code: 2.0 ** (code // 5 - 20)),
    "multiples of a code": lambda: _scaled_copies(lambda code: 1.0 + code // 5),
    "all similarities negative": _opposed,
    "zero rows": lambda: (torch.zeros(9, 12), _random(30, 12)),
    "orthogonal codes": lambda: (torch.eye(24)[:9], torch.eye(24)[9:].repeat(9, 1)),
    "rows of all sizes": _sizes_of_rows,
    "one direction": lambda: _one_direction(2.0**-12),
    "one direction to the last bits": lambda: _one_direction(2.0**-22),
    "codes of one subnormal channel": lambda: (
        _random(30, 6).abs(), torch.ones(40, 6) + torch.eye(6)[0] * torch.arange(40.0)[:, None] * 1e-43,
    ),
    "two large codes in the same direction": lambda: (
        _random(50, 9), _random(30, 9, seed=1) * 10.0 ** torch.linspace(-38, 37, 30)[:, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_adversarial(name, check_lookup):
    check_lookup(*HARD[name](), METRICS)


def test_a_zero_vector_has_cosine_zero(at_every_level):
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    codebook = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [0.0, -3.0]])
    index, value = at_every_level(codebook_lookup, features, codebook, return_distance=True, metric="cosine")
    assert index.tolist() == [1, 0] and value.tolist() == [0.0, 0.0]
    features = torch.tensor([[3.0, 4.0]])
    index, value = at_every_level(codebook_lookup, features, codebook[:1], return_distance=True, metric="cosine")
    assert index.item() == 0 and value.item() == torch.tensor(-0.6).item()


def test_the_cosine_of_a_code_with_itself_is_one(at_every_level):
    codebook = torch.eye(20) * torch.arange(1.0, 21.0)[:, None]
    index, value = at_every_level(codebook_lookup, codebook, codebook, return_distance=True, metric="cosine")
    assert torch.equal(index, torch.arange(20)) and torch.equal(value, torch.ones(20))


def _value(metric, features, codes):
    if metric == "dot":
        return (features * codes).sum(-1)
    return torch.nn.functional.cosine_similarity(features, codes, dim=-1, eps=0.0)


@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_gradients(batch, metric, at_every_level):
    """First and second order, against plain torch in float64."""
    features, codebook = _random(*batch, 9, 5), _random(*batch, 12, 5, seed=1)
    weight = _random(*batch, 9, seed=2)
    index = at_every_level(codebook_lookup, features, codebook, metric=metric)

    def expected_value(x, d):
        codes = d[index] if not batch else d.gather(-2, index[..., None].expand(*index.shape, 5))
        return _value(metric, x, codes)

    def gradients(of, kind):
        inputs = [t.to(kind).requires_grad_() for t in (features.clone(), codebook.clone())]
        grads = torch.autograd.grad((of(*inputs) * weight).sum(), inputs, create_graph=True)
        return *grads, *torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)

    def of_lookup(backend):
        options = {"return_distance": True, "metric": metric, "backend": backend}
        return gradients(lambda x, d: codebook_lookup(x, d, **options)[1], torch.float32)

    expected = gradients(expected_value, torch.float64)
    for got, wanted in zip(at_every_level(of_lookup), expected, strict=True):
        assert wanted.any()
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_gradient_where_squares_leave_float32(at_every_level):
    features, codebook = (_random(4, 6, seed=seed) for seed in (0, 1))

    def gradient(size, backend):
        x = (features * size).requires_grad_()
        options = {"return_distance": True, "metric": "cosine", "backend": backend}
        return torch.autograd.grad(codebook_lookup(x, codebook / size, **options)[1].sum(), x)[0] * size

    expected = at_every_level(gradient, 1.0)
    assert expected.any()
    torch.testing.assert_close(at_every_level(gradient, 1e25), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
def test_compiled_in_one_graph(metric, backend, family):
    torch._dynamo.reset()
    features, codebook = _random(50, 8), _random(40, 8, seed=1)
    prepared = ops.prepare_codebook(codebook, metric=metric, backend=backend)

    def both(x):
        return [
            codebook_lookup(x, d, return_distance=True, metric=metric, backend=backend) for d in (codebook, prepared)
        ]

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(features), both(features), strict=True):
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
