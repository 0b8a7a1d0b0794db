"""codebook_lookup with topk: a stable sort of all float64 distances or similarities says which codes in what order."""

import pytest
import torch

from soho_fast import ops
from soho_fast.ops import codebook_lookup, triton_backend

# Backends of a GPU refuse topk by name; see test_refusals.py.
pytestmark = [
    pytest.mark.skipif(triton_backend.INTERPRETING, reason="Triton's kernels have no topk"),
    pytest.mark.parametrize("family", ["cpu"], indirect=True),
]
BACKENDS = [name for name in ops.available_backends() if name in ("reference", "cpu")]


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


SIZES = [(0, 5, 8), (1, 2, 3), (6, 16, 8), (7, 17, 9), (100, 130, 65), (3, 4, 0), (300, 16, 12), (70, 1000, 24)]


@pytest.mark.parametrize("topk", [2, 5, 16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, topk, check_lookup, metrics):
    num_rows, num_codes, num_channels = size
    features, codebook = _random(num_rows, num_channels), _random(num_codes, num_channels, seed=1)
    check_lookup(features, codebook, metrics, min(topk, num_codes))


@pytest.mark.parametrize("features_type", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codebook_type", [torch.float32, torch.bfloat16])
def test_types_mix_freely(features_type, codebook_type, check_lookup, metrics):
    features, codebook = _random(70, 19).to(features_type), _random(90, 19, seed=1).to(codebook_type)
    check_lookup(features, codebook, metrics, topk=4)


def _copies():
    """Every code many times, zeros by hundreds: copies are codes of their own."""
    codebook = torch.cat([torch.zeros(90, 12), _random(7, 12, seed=1).repeat(9, 1), -torch.zeros(60, 12)])
    return torch.cat([_random(50, 12), _random(20, 12, seed=2) * 0.01]), codebook


def _few_distinct():
    """Fewer different codes than are asked for."""
    return _random(30, 8), _random(3, 8, seed=1)[torch.arange(40) % 3]


def _not_finite():
    features, codebook = _random(40, 17), _random(20, 17, seed=1)
    features[3, 5], features[4, 0], features[5, 16] = torch.nan, torch.inf, -torch.inf
    codebook[[0, 4, 9, 13, 19], [3, 0, 1, 2, 16]] = torch.tensor(
        [torch.nan, torch.inf, -torch.inf, torch.nan, torch.inf]
    )
    codebook[7] = codebook[2]
    return features, codebook


def _cluster_and_others():
    """More near ties than a list holds, behind some codes that are nearer, before some that are farther."""
    near = 1 + _random(700, 16, seed=1) * 2.0**-22
    return 1.5 + _random(30, 16) * 0.1, torch.cat([near[:300], _random(5, 16, seed=2) * 0.3 + 1.5, near[300:]])


HARD = {
    "copies": _copies,
    "few distinct codes": _few_distinct,
    "not finite": _not_finite,
    "no finite code": lambda: (_random(5, 9), torch.full((18, 9), torch.nan)),
    "one cluster of near ties": lambda: (_random(20, 16), 1 + _random(700, 16, seed=1) * 2.0**-22),
    "cluster and others": _cluster_and_others,
    "each code nearer": lambda: (torch.zeros(9, 10), torch.linspace(5, 1, 400)[:, None].expand(400, 10) * 1.0),
    "each code farther": lambda: (torch.zeros(9, 10), torch.linspace(1, 5, 400)[:, None].expand(400, 10) * 1.0),
    "signs for zeros": lambda: (torch.zeros(30, 12), _random(600, 12).sign()),
    "integers with ties": lambda: (_random(200, 4).round(), _random(60, 4, seed=1).round()),
    "offset 1e4": lambda: (_random(60, 33) + 1e4, _random(100, 33, seed=1) + 1e4),
    "norms over 30 orders": lambda: (
        _random(60, 12) * 10.0 ** torch.linspace(-15, 15, 60)[:, None],
        _random(100, 12, seed=1) * 10.0 ** torch.linspace(15, -15, 100)[:, None],
    ),
    "subnormal": lambda: (_random(20, 9) * 1e-42, _random(30, 9, seed=1) * 1e-42),
    "squares overflow": lambda: (_random(20, 9) * 1e25, _random(30, 9, seed=1) * 1e25),
    "multiples of a code": lambda: (
        _random(50, 8), _random(6, 8, seed=1).repeat(30, 1) * (1 + torch.arange(180) // 6)[:, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("topk", [2, 16])
@pytest.mark.parametrize("name", HARD)
def test_adversarial(name, topk, check_lookup, metrics):
    check_lookup(*HARD[name](), metrics, topk)


def test_the_first_is_the_nearest_code(at_every_level, metrics):
    features, codebook = _random(2, 40, 9), _random(60, 9, seed=1)
    for metric in metrics:
        top = at_every_level(codebook_lookup, features, codebook, metric=metric, topk=7)
        assert top.shape == (2, 40, 7)
        nearest = at_every_level(codebook_lookup, features, codebook, metric=metric)
        assert torch.equal(top[..., 0], nearest), metric
        top_3 = at_every_level(codebook_lookup, features, codebook, metric=metric, topk=3)
        assert torch.equal(top[..., :3], top_3), metric


def test_batched_codebooks(at_every_level, exact_lookup, metrics):
    features, codebook = _random(2, 3, 14, 9), _random(2, 3, 20, 9, seed=1)
    for metric in metrics:
        options = {"return_distance": True, "metric": metric, "topk": 3}
        index, value = at_every_level(codebook_lookup, features, codebook, **options)
        for batch in ((outer, inner) for outer in range(2) for inner in range(3)):
            expected = exact_lookup(features[batch], codebook[batch], metric, 3)
            assert torch.equal(index[batch], expected[0]) and torch.equal(value[batch], expected[1]), metric


@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_gradients(batch, metric, at_every_level):
    """First and second order, against plain torch in float64."""
    features, codebook = _random(*batch, 9, 5), _random(*batch, 12, 5, seed=1)
    weight = _random(*batch, 9, 4, seed=2)
    index = at_every_level(codebook_lookup, features, codebook, metric=metric, topk=4)

    def expected_value(x, d):
        flat = index.flatten(-2)
        codes = d[flat] if not batch else d.gather(-2, flat[..., None].expand(*flat.shape, 5))
        codes, x = codes.unflatten(-2, (9, 4)), x.unsqueeze(-2)
        if metric == "euclidean":
            return (x - codes).square().sum(-1)
        return (x * codes).sum(-1) if metric == "dot" else torch.cosine_similarity(x, codes, dim=-1, eps=0.0)

    def gradients(of, kind):
        inputs = [t.to(kind).requires_grad_() for t in (features.clone(), codebook.clone())]
        grads = torch.autograd.grad((of(*inputs) * weight).sum(), inputs, create_graph=True)
        return *grads, *torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)

    def of_lookup(backend):
        options = {"return_distance": True, "metric": metric, "topk": 4, "backend": backend}
        return gradients(lambda x, d: codebook_lookup(x, d, **options)[1], torch.float32)

    for grad, wanted in zip(at_every_level(of_lookup), gradients(expected_value, torch.float64), strict=True):
        assert wanted.any()
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_compiled_in_one_graph(metric, backend, family):
    torch._dynamo.reset()
    features, codebook = _random(50, 8), _random(40, 8, seed=1)

    def lookup(x):
        return codebook_lookup(x, codebook, return_distance=True, metric=metric, topk=3, backend=backend)

    compiled = torch.compile(lookup, fullgraph=True, dynamic=True, backend="aot_eager")
    for got, wanted in zip(compiled(features), lookup(features), strict=True):
        assert torch.equal(got, wanted)
