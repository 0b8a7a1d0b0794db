"""residual_lookup against the loop over codebook_lookup that it replaces, bit by bit."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from soho_fast import ops
from soho_fast.ops import codebook_lookup, residual_lookup, triton_backend

# Backends of a GPU have no kernel; see test_refusals.py.
pytestmark = [
    pytest.mark.skipif(triton_backend.INTERPRETING, reason="Triton has no kernel for it"),
    pytest.mark.parametrize("family", ["cpu"], indirect=True),
]
BACKENDS = [name for name in ops.available_backends() if name in ("reference", "cpu")]


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def _loop(features, codebooks, num_levels):
    """By the reference lookup."""
    residual, quantized, index = features.float(), torch.zeros(features.shape), []
    for level in range(num_levels):
        codebook = codebooks if codebooks.dim() == 2 else codebooks[level]
        index.append(codebook_lookup(residual, codebook, backend="reference"))
        codes = codebook[index[-1]].float()
        residual, quantized = residual - codes, quantized + codes
    return torch.stack(index, -1), quantized.to(features.dtype), residual


def _in_each_form(features, codebooks, num_levels, backend):
    """What is found in the codebooks as they are, prepared with a subspace and without, and with one that says little;
    the same without the residual."""
    prepared = [ops.prepare_codebook(codebooks, subspace=subspace, backend=backend) for subspace in (False, None)]
    if codebooks.shape[-1] > 1:
        subspace = _random(*codebooks.shape[:-2], codebooks.shape[-1], 2, seed=9)
        prepared.append(ops.prepare_codebook(codebooks, subspace=subspace, backend=backend))
    results = []
    for books in (codebooks, *prepared):
        options = {"num_levels": num_levels, "backend": backend}
        found = residual_lookup(features, books, return_residual=True, **options)
        assert all(value.is_contiguous() for value in found)
        results.append((found, residual_lookup(features, books, **options)))
    return results


@pytest.fixture
def check(at_every_level, same_bits):
    """Function (features, codebooks, num_levels): each form of the codebooks gives what the loop gives."""

    def check(features, codebooks, num_levels):
        expected = _loop(features, codebooks, num_levels)
        for form, (got, without) in enumerate(at_every_level(_in_each_form, features, codebooks, num_levels)):
            assert same_bits(got, expected), form
            assert same_bits(without, expected[:2]), form

    return check


@pytest.mark.parametrize("shared", [False, True], ids=["own codebooks", "one codebook"])
@pytest.mark.parametrize("size", [(0, 2, 5, 8), (1, 1, 1, 1), (57, 3, 40, 19), (700, 4, 33, 12), (3, 2, 4, 0)], ids=str)
def test_sizes(size, shared, check):
    num_rows, num_levels, num_codes, num_channels = size
    shape = (num_codes, num_channels) if shared else (num_levels, num_codes, num_channels)
    check(_random(num_rows, num_channels), _random(*shape, seed=1), num_levels)


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codebook_type", [torch.float32, torch.bfloat16, torch.float16])
def test_types_mix_freely(features_type, codebook_type, check):
    features, codebooks = _random(70, 19).to(features_type), _random(3, 40, 19, seed=1).to(codebook_type)
    check(features, codebooks, 3)


def _not_finite():
    features, codebooks = _random(40, 17), _random(3, 30, 17, seed=1)
    features[3, 5], features[4, 0], features[5, 16] = torch.nan, torch.inf, -torch.inf
    codebooks[1, 0, 3], codebooks[1, 7, 0], codebooks[2, 0] = torch.nan, torch.inf, torch.nan
    return features, codebooks


def _sums_of_codes():
    """Features that the first levels describe to the last bit: what is left is zero, or a rounding."""
    codebooks = _random(3, 30, 16, seed=1)
    return codebooks[0] + codebooks[1], codebooks


HARD = {
    "not finite": _not_finite,
    "no finite code at one level": lambda: (
        _random(9, 5), torch.cat([_random(1, 4, 5), torch.full((1, 4, 5), torch.nan), _random(1, 4, 5)]),
    ),
    "sums of codes": _sums_of_codes,
    "near ties at each level": lambda: (_random(30, 16), 1 + _random(3, 700, 16, seed=1) * 2.0**-22),
    "exact ties": lambda: (_random(200, 6).round(), _random(4, 90, 6, seed=1).sign()),
    "subnormal": lambda: (_random(50, 9) * 1e-41, _random(3, 30, 9, seed=1) * 1e-41),
    "squares overflow": lambda: (_random(50, 9) * 1e25, _random(3, 30, 9, seed=1) * 1e25),
    "levels of falling size": lambda: (
        _random(300, 24) * 100, _random(4, 64, 24, seed=1) * 10.0 ** (2 - 3 * torch.arange(4.0))[:, None, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_adversarial(name, check):
    features, codebooks = HARD[name]()
    check(features, codebooks, codebooks.shape[0])


def test_layouts(laid_out, check):
    features, codebooks = _random(3, 10, 12), _random(2, 31, 12, seed=1)
    check(laid_out(features), codebooks, 2)
    check(features, laid_out(codebooks), 2)
    check(features[:1, :1].expand(4, 6, 12), codebooks, 2)


def test_codebooks_prepared_for_another_level(at_every_level, same_bits):
    features, codebooks = _random(60, 12), _random(2, 31, 12, seed=1)
    expected = _loop(features, codebooks, 2)[:2]
    prepared = []
    at_every_level(lambda backend: prepared.append(ops.prepare_codebook(codebooks, backend=backend)))
    for books in prepared:
        assert same_bits(at_every_level(residual_lookup, features, books), expected)


def test_the_gradient_goes_straight_through(at_every_level):
    features, codebooks, weight = _random(2, 9, 5), _random(3, 12, 5, seed=1), _random(2, 9, 5, seed=2)

    def gradients(backend):
        x, books = features.clone().requires_grad_(), codebooks.clone().requires_grad_()
        index, quantized, residual = residual_lookup(x, books, return_residual=True, backend=backend)
        assert quantized.requires_grad and not index.requires_grad and not residual.requires_grad
        return torch.autograd.grad((quantized * weight).sum(), (x, books), allow_unused=True)

    of_features, of_codebooks = at_every_level(gradients)
    assert torch.equal(of_features, weight) and of_codebooks is None


@pytest.mark.parametrize("of", ["tensor", "prepared"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_in_one_graph_without_recompiling(of, backend, family):
    torch._dynamo.reset()
    codebooks = _random(3, 40, 8, seed=1)
    books = ops.prepare_codebook(codebooks, backend=backend) if of == "prepared" else codebooks
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: residual_lookup(x, books, return_residual=True, backend=backend),
        fullgraph=True, dynamic=True, backend=counter,
    )  # fmt: skip
    for num_rows in (50, 31, 77):
        features = _random(2, num_rows, 8)
        for got, wanted in zip(compiled(features), _loop(features, codebooks, 3), strict=True):
            assert torch.equal(got, wanted)
    assert counter.frame_count == 1
