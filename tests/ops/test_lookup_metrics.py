"""codebook_lookup by cosine and dot product, where it is not as by squared distance; see test_codebook_lookup.py."""

import pytest
import torch

from soho_fast import ops
from soho_fast.ops import codebook_lookup, triton_backend

pytestmark = pytest.mark.skipif(triton_backend.INTERPRETING, reason="Triton's kernels serve no other metric")


@pytest.fixture(params=("cosine", "dot"))
def metric(request):
    return request.param


@pytest.fixture
def of_backend(backend):
    """Backends of the GPU refuse the metrics by name; see test_refusals."""
    return None if backend in ("triton", "cuda") else backend


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def _check(features, codebook, metric, backend, exact_lookup):
    expected_index, expected_value = exact_lookup(features, codebook, metric)
    for codes in (codebook, ops.prepare_codebook(codebook, metric=metric, backend=backend)):
        index, value = codebook_lookup(features, codes, return_distance=True, metric=metric, backend=backend)
        assert index.dtype == torch.int64 and value.dtype == torch.float32
        assert torch.equal(index, expected_index)
        assert torch.equal(value.nan_to_num(nan=-9.0), expected_value.nan_to_num(nan=-9.0))
        assert torch.equal(codebook_lookup(features, codes, metric=metric, backend=backend), expected_index)


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
def test_adversarial(name, metric, of_backend, exact_lookup):
    _check(*HARD[name](), metric, of_backend, exact_lookup)


def test_batched_codebooks(metric, of_backend, exact_lookup):
    features, codebook = _random(2, 3, 14, 9), _random(2, 3, 20, 9, seed=1)
    prepared = ops.prepare_codebook(codebook, metric=metric, backend=of_backend)
    for codes in (codebook, prepared):
        index, value = codebook_lookup(features, codes, return_distance=True, metric=metric, backend=of_backend)
        for outer in range(2):
            for inner in range(3):
                expected = exact_lookup(features[outer, inner], codebook[outer, inner], metric)
                assert torch.equal(index[outer, inner], expected[0])
                assert torch.equal(value[outer, inner], expected[1])


def test_a_zero_vector_has_cosine_zero(of_backend):
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    codebook = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [0.0, -3.0]])
    index, value = codebook_lookup(features, codebook, return_distance=True, metric="cosine", backend=of_backend)
    assert index.tolist() == [1, 0] and value.tolist() == [0.0, 0.0]
    index, value = codebook_lookup(
        torch.tensor([[3.0, 4.0]]), codebook[:1], return_distance=True, metric="cosine", backend=of_backend
    )
    assert index.item() == 0 and value.item() == torch.tensor(-0.6).item()


def test_the_cosine_of_a_code_with_itself_is_one(of_backend):
    codebook = torch.eye(20) * torch.arange(1.0, 21.0)[:, None]
    index, value = codebook_lookup(codebook, codebook, return_distance=True, metric="cosine", backend=of_backend)
    assert torch.equal(index, torch.arange(20)) and torch.equal(value, torch.ones(20))


def _value(metric, features, codes):
    if metric == "dot":
        return (features * codes).sum(-1)
    return torch.nn.functional.cosine_similarity(features, codes, dim=-1, eps=0.0)


@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_gradients(batch, metric, of_backend):
    """First and second order, against plain torch in float64."""
    features, codebook = _random(*batch, 9, 5), _random(*batch, 12, 5, seed=1)
    weight = _random(*batch, 9, seed=2)
    index = codebook_lookup(features, codebook, metric=metric, backend=of_backend)

    def expected_value(x, d):
        codes = d[index] if not batch else d.gather(-2, index[..., None].expand(*index.shape, 5))
        return _value(metric, x, codes)

    results = []
    for of, kind in (
        (lambda x, d: codebook_lookup(x, d, return_distance=True, metric=metric, backend=of_backend)[1], torch.float32),
        (expected_value, torch.float64),
    ):
        inputs = [t.detach().clone().to(kind).requires_grad_() for t in (features, codebook)]
        grads = torch.autograd.grad((of(*inputs) * weight).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)
        results.append([*grads, *second])
    for got, wanted in zip(*results, strict=True):
        assert wanted.any()
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_gradient_where_squares_leave_float32(of_backend):
    features, codebook = (_random(4, 6, seed=seed) for seed in (0, 1))
    results = []
    for size in (1.0, 1e25):
        x = (features * size).requires_grad_()
        value = codebook_lookup(x, codebook / size, return_distance=True, metric="cosine", backend=of_backend)[1]
        results.append(torch.autograd.grad(value.sum(), x)[0] * size)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert results[0].any()


def test_forward_mode(metric, of_backend):
    features, codebook = _random(9, 5), _random(12, 5, seed=1)
    tangents = _random(9, 5, seed=2), _random(12, 5, seed=3)
    index, value = codebook_lookup(features, codebook, return_distance=True, metric=metric, backend=of_backend)
    got = torch.func.jvp(
        lambda x, d: codebook_lookup(x, d, return_distance=True, metric=metric, backend=of_backend)[1],
        (features, codebook), tangents,
    )  # fmt: skip
    expected = torch.func.jvp(lambda x, d: _value(metric, x, d[index]), (features, codebook), tangents)
    assert torch.equal(got[0], value)
    torch.testing.assert_close(got[1], expected[1])


def test_compiled_in_one_graph(metric, of_backend):
    torch._dynamo.reset()
    features, codebook = _random(50, 8), _random(40, 8, seed=1)
    prepared = ops.prepare_codebook(codebook, metric=metric, backend=of_backend)

    def both(x):
        return [
            codebook_lookup(x, d, return_distance=True, metric=metric, backend=of_backend) for d in (codebook, prepared)
        ]

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(features), both(features), strict=True):
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


def test_flushed_subnormals_do_not_change_the_index(metric, of_backend, exact_lookup):
    features, codebook = (_random(40, 9, seed=seed) * 1e-41 for seed in (0, 1))
    expected, _ = exact_lookup(features, codebook, metric)
    if of_backend != "cpu" or not torch.set_flush_denormal(True):
        pytest.skip("torch's own operations follow the flag")
    try:
        index = codebook_lookup(features, codebook, metric=metric, backend="cpu")
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(index, expected)


def test_a_prepared_codebook_serves_its_own_metric(metric, of_backend):
    features, codebook = _random(50, 8), _random(40, 8, seed=1)
    prepared = ops.prepare_codebook(codebook, metric=metric, backend=of_backend)
    assert prepared.metric == metric
    with pytest.raises(ValueError, match=f"metric: expected '{metric}' as the codebook was prepared for, got 'euc"):
        codebook_lookup(features, prepared)
    with pytest.raises(ValueError, match=f"metric: expected 'euclidean' as the .*, got '{metric}'"):
        codebook_lookup(features, ops.prepare_codebook(codebook), metric=metric)


def test_refusals(metric):
    features, codebook = torch.ones(2, 3), torch.ones(4, 3)
    for call in (
        lambda name: codebook_lookup(features, codebook, metric=metric, backend=name),
        lambda name: ops.prepare_codebook(codebook, metric=metric, backend=name),
    ):
        for name in ("triton", "cuda"):
            with pytest.raises(ValueError, match=f"backend: '{name}' cannot serve .*it has no metric '{metric}'"):
                call(name)


@pytest.mark.parametrize("unknown", ["l2", "Cosine", None, 1])
def test_unknown_metrics_are_refused(unknown):
    for call in (
        lambda: codebook_lookup(torch.ones(2, 3), torch.ones(4, 3), metric=unknown),
        lambda: ops.prepare_codebook(torch.ones(4, 3), metric=unknown),
    ):
        with pytest.raises(ValueError, match=f"metric: expected one of euclidean, cosine, dot, got {unknown!r}"):
            call()
