"""codebook_lookup by cosine and dot product, where it is not as by squared distance, and of several codes, which a
stable sort of all float64 distances or similarities ranks; see test_codebook_lookup.py."""

import pytest
import torch
from hard_problems import ADVERSARIAL

from soho_fast import ops
from soho_fast.ops import codebook_lookup, triton_backend

# Backends of a GPU refuse the metrics and topk by name; see test_refusals.py.
pytestmark = [
    pytest.mark.skipif(triton_backend.INTERPRETING, reason="Triton's kernels serve no other metric and no topk"),
    pytest.mark.parametrize("family", ["cpu"], indirect=True),
]
BACKENDS = [name for name in ops.available_backends() if name in ("reference", "cpu")]
METRICS = ("euclidean", "cosine", "dot")


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
    check_lookup(*HARD[name](), METRICS[1:])


SIZES = [(0, 5, 8), (1, 2, 3), (6, 16, 8), (7, 17, 9), (100, 130, 65), (3, 4, 0), (300, 16, 12), (70, 1000, 24)]


@pytest.mark.parametrize("topk", [2, 5, 16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_of_topk(size, topk, check_lookup):
    num_rows, num_codes, num_channels = size
    features, codebook = _random(num_rows, num_channels), _random(num_codes, num_channels, seed=1)
    check_lookup(features, codebook, METRICS, min(topk, num_codes))


@pytest.mark.parametrize("features_type", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codebook_type", [torch.float32, torch.bfloat16])
def test_types_of_topk(features_type, codebook_type, check_lookup):
    check_lookup(_random(70, 19).to(features_type), _random(90, 19, seed=1).to(codebook_type), METRICS, topk=4)


def _few_distinct():
    """Fewer different codes than are asked for."""
    return _random(30, 8), _random(3, 8, seed=1)[torch.arange(40) % 3]


def _cluster_and_others():
    """More near ties than a list holds, behind some codes that are nearer, before some that are farther."""
    near = 1 + _random(700, 16, seed=1) * 2.0**-22
    return 1.5 + _random(30, 16) * 0.1, torch.cat([near[:300], _random(5, 16, seed=2) * 0.3 + 1.5, near[300:]])


TOPK = {
    **{
        name: ADVERSARIAL[name] for name in (
            "duplicates by hundreds", "not finite", "one cluster of near ties", "each code nearer", "signs for zeros",
            "integers with ties", "offset 1e4", "norms over 30 orders", "subnormal codes", "squares overflow",
        )
    },
    "few distinct codes": _few_distinct,
    "no finite code": lambda: (_random(5, 9), torch.full((18, 9), torch.nan)),
    "cluster and others": _cluster_and_others,
    "each code farther": lambda: (torch.zeros(9, 10), torch.linspace(1, 5, 400)[:, None].expand(400, 10) * 1.0),
    "multiples of a code": lambda: (
        _random(50, 8), _random(6, 8, seed=1).repeat(30, 1) * (1 + torch.arange(180) // 6)[:, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("topk", [2, 16])
@pytest.mark.parametrize("name", TOPK)
def test_adversarial_topk(name, topk, check_lookup):
    check_lookup(*TOPK[name](), METRICS, topk)


def test_batched_topk(check_lookup):
    check_lookup(_random(2, 3, 14, 9), _random(2, 3, 20, 9, seed=1), METRICS, topk=3)


@pytest.mark.parametrize("metric", METRICS)
def test_the_first_is_the_nearest_code(metric, at_every_level):
    features, codebook = _random(2, 40, 9), _random(60, 9, seed=1)
    nearest, three, seven = (
        at_every_level(codebook_lookup, features, codebook, metric=metric, topk=topk) for topk in (None, 3, 7)
    )
    assert seven.shape == (2, 40, 7)
    assert torch.equal(seven[..., 0], nearest) and torch.equal(seven[..., :3], three)


def test_a_zero_vector_has_cosine_zero(at_every_level):
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    codebook = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [0.0, -3.0]])
    index, value = at_every_level(codebook_lookup, features, codebook, return_distance=True, metric="cosine")
    assert index.tolist() == [1, 0] and value.tolist() == [0.0, 0.0]
    features = torch.tensor([[3.0, 4.0]])
    index, value = at_every_level(codebook_lookup, features, codebook[:1], return_distance=True, metric="cosine")
    assert index.item() == 0 and value.item() == torch.tensor(-0.6).item()


@pytest.mark.parametrize("topk", [None, 4])
@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_gradients(batch, metric, topk, at_every_level):
    """First and second order, against plain torch in float64."""
    features, codebook = _random(*batch, 9, 5), _random(*batch, 12, 5, seed=1)
    index = at_every_level(codebook_lookup, features, codebook, metric=metric, topk=topk)
    weight = _random(*index.shape, seed=2)

    def expected_value(x, d):
        flat = index.reshape(*batch, -1)
        codes = d.gather(-2, flat[..., None].expand(*flat.shape, 5)) if batch else d[flat]
        codes, x = codes.reshape(*index.shape, 5), x if topk is None else x.unsqueeze(-2)
        if metric == "euclidean":
            return (x - codes).square().sum(-1)
        return (x * codes).sum(-1) if metric == "dot" else torch.cosine_similarity(x, codes, dim=-1, eps=0.0)

    def gradients(of, kind):
        inputs = [t.to(kind).requires_grad_() for t in (features.clone(), codebook.clone())]
        grads = torch.autograd.grad((of(*inputs) * weight).sum(), inputs, create_graph=True)
        return *grads, *torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)

    def of_lookup(backend):
        options = {"return_distance": True, "metric": metric, "topk": topk, "backend": backend}
        return gradients(lambda x, d: codebook_lookup(x, d, **options)[1], torch.float32)

    for got, wanted in zip(at_every_level(of_lookup), gradients(expected_value, torch.float64), strict=True):
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
