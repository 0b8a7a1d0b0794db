"""residual_lookup against the loop over codebook_lookup that it replaces, bit by bit."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from soho_fast import ops
from soho_fast.ops import codebook_lookup, residual_lookup, triton_backend

pytestmark = pytest.mark.skipif(triton_backend.INTERPRETING, reason="Triton has no kernel for it")


@pytest.fixture
def of_backend(backend):
    """Backends of the GPU have no kernel; see test_refusals."""
    return None if backend in ("triton", "cuda") else backend


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


def _bits(tensor):
    return tensor.contiguous().view(torch.int64 if tensor.dtype == torch.int64 else torch.uint8)


def _check(features, codebooks, num_levels, backend):
    expected = _loop(features, codebooks, num_levels)
    prepared = [ops.prepare_codebook(codebooks, basis=basis, backend=backend) for basis in (False, None)]
    if codebooks.shape[-1] > 1:  # directions that say little
        basis = _random(*codebooks.shape[:-2], codebooks.shape[-1], 2, seed=9)
        prepared.append(ops.prepare_codebook(codebooks, basis=basis, backend=backend))
    for books in (codebooks, *prepared):
        got = residual_lookup(features, books, num_levels=num_levels, return_residual=True, backend=backend)
        assert got[0].dtype == torch.int64 and got[2].dtype == torch.float32
        for value, wanted in zip(got, expected, strict=True):
            assert value.shape == wanted.shape and value.dtype == wanted.dtype and value.is_contiguous()
            assert torch.equal(value.isnan(), wanted.isnan())
            assert torch.equal(_bits(value.nan_to_num(nan=7.0)), _bits(wanted.nan_to_num(nan=7.0)))
        without = residual_lookup(features, books, num_levels=num_levels, backend=backend)
        assert len(without) == 2 and torch.equal(without[0], expected[0])
        assert torch.equal(_bits(without[1].nan_to_num(nan=7.0)), _bits(expected[1].nan_to_num(nan=7.0)))


@pytest.mark.parametrize("shared", [False, True], ids=["own codebooks", "one codebook"])
@pytest.mark.parametrize("size", [(0, 2, 5, 8), (1, 1, 1, 1), (57, 3, 40, 19), (700, 4, 33, 12), (3, 2, 4, 0)], ids=str)
def test_sizes(size, shared, of_backend, threads):
    num_rows, num_levels, num_codes, num_channels = size
    shape = (num_codes, num_channels) if shared else (num_levels, num_codes, num_channels)
    _check(_random(num_rows, num_channels), _random(*shape, seed=1), num_levels, of_backend)


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codebook_type", [torch.float32, torch.bfloat16, torch.float16])
def test_types_mix_freely(features_type, codebook_type, of_backend):
    features, codebooks = _random(70, 19).to(features_type), _random(3, 40, 19, seed=1).to(codebook_type)
    _check(features, codebooks, 3, of_backend)


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
def test_adversarial(name, of_backend):
    features, codebooks = HARD[name]()
    _check(features, codebooks, codebooks.shape[0], of_backend)


LAYOUTS = {
    "channels permuted": lambda x: x.permute(0, 2, 1).contiguous().permute(0, 2, 1),
    "batch permuted": lambda x: x.permute(1, 0, 2).contiguous().permute(1, 0, 2),
    "channels sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "rows strided": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, of_backend):
    features, codebooks = _random(3, 10, 12), _random(2, 31, 12, seed=1)
    laid_out = LAYOUTS[name](features)
    assert torch.equal(laid_out, features)
    _check(laid_out, codebooks, 2, of_backend)
    _check(features, LAYOUTS[name](codebooks), 2, of_backend)
    _check(features[:1, :1].expand(4, 6, 12), codebooks, 2, of_backend)


def test_codebooks_prepared_for_another_level(of_backend):
    if of_backend != "cpu":
        pytest.skip("of the CPU kernels")
    features, codebooks = _random(60, 12), _random(2, 31, 12, seed=1)
    level = ops.build_info()["cpu_level"]
    expected = _loop(features, codebooks, 2)
    for other in ops.build_info()["cpu_levels_available"]:
        ops.set_cpu_level(other)
        prepared = ops.prepare_codebook(codebooks, backend="cpu")
        ops.set_cpu_level(level)
        index, quantized = residual_lookup(features, prepared, backend="cpu")
        assert torch.equal(index, expected[0]) and torch.equal(quantized, expected[1])


def test_the_gradient_goes_straight_through(of_backend):
    features, codebooks = _random(2, 9, 5).requires_grad_(), _random(3, 12, 5, seed=1).requires_grad_()
    index, quantized, residual = residual_lookup(features, codebooks, return_residual=True, backend=of_backend)
    assert quantized.requires_grad and not index.requires_grad and not residual.requires_grad
    weight = _random(2, 9, 5, seed=2)
    (quantized * weight).sum().backward()
    assert torch.equal(features.grad, weight) and codebooks.grad is None


def test_forward_mode(of_backend):
    features, codebooks, tangent = _random(9, 5), _random(3, 12, 5, seed=1), _random(9, 5, seed=2)
    value, moved = torch.func.jvp(
        lambda x: residual_lookup(x, codebooks, backend=of_backend)[1], (features,), (tangent,)
    )
    assert torch.equal(value, _loop(features, codebooks, 3)[1]) and torch.equal(moved, tangent)


@pytest.mark.parametrize("of", ["tensor", "prepared"])
def test_compiled_in_one_graph_without_recompiling(of, of_backend):
    torch._dynamo.reset()
    codebooks = _random(3, 40, 8, seed=1)
    books = ops.prepare_codebook(codebooks, backend=of_backend) if of == "prepared" else codebooks
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: residual_lookup(x, books, return_residual=True, backend=of_backend),
        fullgraph=True, dynamic=True, backend=counter,
    )  # fmt: skip
    for num_rows in (50, 31, 77):
        features = _random(2, num_rows, 8)
        for got, wanted in zip(compiled(features), _loop(features, codebooks, 3), strict=True):
            assert torch.equal(got, wanted)
    assert counter.frame_count == 1


def test_flushed_subnormals_change_nothing(of_backend):
    features, codebooks = _random(40, 9) * 1e-41, _random(2, 30, 9, seed=1) * 1e-41
    expected = _loop(features, codebooks, 2)
    if of_backend != "cpu" or not torch.set_flush_denormal(True):
        pytest.skip("torch's own operations follow the flag")
    try:
        got = residual_lookup(features, codebooks, return_residual=True, backend="cpu")
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(value, wanted) for value, wanted in zip(got, expected, strict=True))


ONE = torch.ones(4, 3)
REFUSALS = [
    ([1.0], ONE[None], {}, TypeError, "features: expected a torch.Tensor, got list"),
    (ONE, [ONE], {}, TypeError, "codebooks: expected a torch.Tensor, got list"),
    (ONE.double(), ONE[None], {}, TypeError, "features: expected float32, bfloat16, float16, got float64"),
    (ONE[0], ONE[None], {}, ValueError, "features: expected at least 2 dimensions"),
    (ONE, ONE[0], {}, ValueError, r"codebooks: expected \(L, K, C\), or \(K, C\) for all levels"),
    (ONE, ONE[None, None], {}, ValueError, r"codebooks: expected \(L, K, C\), or \(K, C\) for all levels"),
    (ONE, torch.ones(2, 0, 3), {}, ValueError, r"with a code, got shape \(2, 0, 3\)"),
    (ONE, torch.ones(2, 4, 5), {}, ValueError, "codebooks: expected 3 channels like features"),
    (ONE, ONE, {}, ValueError, "num_levels: expected the number of levels with one codebook"),
    (ONE, ONE[None], {"num_levels": 2}, ValueError, "num_levels: expected 1 as there are codebooks, or None, got 2"),
    (ONE, ONE, {"num_levels": 0}, ValueError, "num_levels: expected at least 1, got 0"),
    (ONE, torch.ones(0, 4, 3), {}, ValueError, "num_levels: expected at least 1, got 0"),
    (ONE, ONE, {"num_levels": 2.0}, TypeError, "num_levels: expected an int or None, got float"),
    (ONE.to("meta"), ONE[None], {}, ValueError, "codebooks: expected device meta like features"),
    (ONE, ops.prepare_codebook(ONE[None], metric="dot"), {}, ValueError, "prepared for 'euclidean', got 'dot'"),
    (ONE, ONE[None], {"backend": "triton"}, ValueError, "'triton' cannot serve residual_lookup: .*it has no kernel"),
    (ONE, ONE[None], {"backend": "cuda"}, ValueError, "'cuda' cannot serve residual_lookup: .*it has no kernel"),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case[4])
def test_refusals(case):
    features, codebooks, options, error, words = case
    with pytest.raises(error, match=words):
        residual_lookup(features, codebooks, **options)


def test_a_written_snapshot_is_refused():
    prepared = ops.prepare_codebook(_random(2, 9, 5))
    prepared.codebook.neg_()
    with pytest.raises(ValueError, match="the prepared snapshot was written to"):
        residual_lookup(_random(4, 5), prepared)
