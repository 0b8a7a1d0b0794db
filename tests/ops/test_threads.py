"""The number of threads changes no bit of any op, at any level: problems large enough to be shared out."""

import pytest
import torch

from soho_fast import ops
from soho_fast.ops import triton_backend

pytestmark = [
    pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels"),
    pytest.mark.parametrize("family", ["cpu"], indirect=True),
]


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _index(*shape, below, seed=0):
    return torch.randint(-1, below, shape, generator=torch.Generator().manual_seed(seed))


def _lookup(num_rows, num_codes, num_channels, prepare=False, scale=1.0, **options):
    """A lookup among codes of which each comes twice, of rows near some of them."""
    codebook = scale * _random(num_codes, num_channels, seed=1)
    codebook[num_codes // 2 :] = codebook[: num_codes - num_codes // 2]
    features = codebook[torch.arange(num_rows) * 7 % num_codes] + 0.5 * scale * _random(num_rows, num_channels)
    features[num_rows // 3, 0] = torch.nan if num_rows > 1 else 0.0

    def lookup(backend):
        codes = codebook
        if prepare:
            codes = ops.prepare_codebook(codebook, metric=options.get("metric", "euclidean"), backend=backend)
        return ops.codebook_lookup(features, codes, return_distance=True, backend=backend, **options)

    return lookup


def _of_few_dimensions(backend):
    """Low-dimensional pruning decides all rows."""
    subspace = torch.linalg.qr(_random(170, 6, seed=1)).Q
    codebook = 5 * _random(300, 6, seed=2) @ subspace.T + 0.02 * _random(300, 170, seed=3)
    features = codebook[torch.arange(400) % 300] + 0.02 * _random(400, 170, seed=4)
    return ops.codebook_lookup(features, codebook, subspace=subspace, backend=backend)


def _residual(num_rows, scale=1.0):
    features, codebooks = scale * _random(num_rows, 12), scale * _random(4, 33, 12, seed=1)
    return lambda backend: ops.residual_lookup(features, codebooks, return_residual=True, backend=backend)


def _straight_through(backend):
    index = _index(20_000, below=11)
    return ops.straight_through(_random(20_000, 17), _random(11, 17, seed=1), index, backend=backend)


def _update(num_rows, num_codes, num_channels, most_popular=None, scale=1.0):
    """Statistics and both updates; where asked one code has six of seven features."""
    features, codebook = scale * _random(num_rows, num_channels), scale * _random(num_codes, num_channels, seed=1)
    index = _index(num_rows, below=num_codes)
    if most_popular is not None:
        index[torch.arange(num_rows) % 7 > 0] = most_popular
    valid = torch.arange(num_rows) % 5 > 0

    def update(backend):
        counts, sums = ops.codebook_stats(features, index, num_codes, valid=valid, backend=backend)
        moved = ops.codebook_ema_(codebook.clone(), counts, sums, 0.9, backend=backend)
        fused = ops.scatter_mean_ema_(codebook.clone(), features, index, 0.9, valid=valid, backend=backend)
        return counts, sums, moved, fused

    return update


def _mask(backend):
    features, index, token = _random(60, 40, 300), _index(60, 40, below=5), _random(300, seed=1)
    uniform = torch.rand(60, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    target = ops.sample_group(index, uniform=uniform, backend=backend)
    masked = ops.group_mask(features, index, token, target, backend=backend)
    return target, masked, ops.group_mask(features, index, token, target, inplace=True, backend=backend)


PROBLEMS = {
    "lookup of many rows": _lookup(700, 150, 33), "lookup by cosine": _lookup(700, 150, 33, metric="cosine"),
    "lookup by dot product": _lookup(700, 150, 33, metric="dot"),
    "lookup of the five nearest": _lookup(300, 150, 24, topk=5), "lookup of 57 rows": _lookup(57, 40, 9),
    "one row, many codes": _lookup(1, 4096, 72, prepare=True),
    "15 rows, many codes": _lookup(15, 4096, 72, prepare=True),
    "60 rows, many codes": _lookup(60, 4096, 72, prepare=True, metric="dot"),
    "few rows that an int8 pass leaves": _lookup(20, 2000, 600, prepare=True),
    "low-dimensional pruning": _of_few_dimensions, "residual lookup": _residual(700),
    "straight through": _straight_through,
    "update of few codes": _update(50_000, 3, 37), "update of many codes": _update(50_000, 5000, 37),
    "update with a popular code": _update(5000, 6, 200, most_popular=4),
    "update of few rows": _update(500, 17, 65),
    "sampling and masking": _mask,
}  # fmt: skip


@pytest.fixture
def at_threads():
    """Function (number): so many threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PROBLEMS)
def test_threads_change_no_bits(name, at_every_level, at_threads, same_bits):
    results = []
    for threads in (1, 2, 3):
        at_threads(threads)
        results.append(at_every_level(PROBLEMS[name]))
    assert same_bits(results[1], results[0]), "two threads"
    assert same_bits(results[2], results[0]), "three threads"


SUBNORMAL = {
    "lookup": _lookup(40, 50, 9, scale=1e-41),
    "lookup by cosine": _lookup(40, 50, 9, scale=1e-41, metric="cosine"),
    "lookup by dot product": _lookup(40, 50, 9, scale=1e-41, metric="dot"),
    "residual lookup": _residual(40, scale=1e-41),
    "update": _update(500, 17, 65, scale=1e-40),
}


@pytest.mark.parametrize("name", SUBNORMAL)
def test_flushed_subnormals_change_no_bits(name, at_every_level, at_threads, same_bits):
    """torch sets the mode of the calling thread only, so what follows it depends on the number of threads; its own
    operations, as the reference's, follow it."""

    def flushed(backend):
        if backend == "reference" or not torch.set_flush_denormal(True):
            return SUBNORMAL[name](backend)
        try:
            results = SUBNORMAL[name](backend)
            assert (torch.tensor([1e-41]) * 1).item() == 0.0, "the caller's float environment must come back"
        finally:
            torch.set_flush_denormal(False)
        return results

    expected = at_every_level(SUBNORMAL[name])
    for threads in (1, 3):
        at_threads(threads)
        assert same_bits(at_every_level(flushed), expected), threads
