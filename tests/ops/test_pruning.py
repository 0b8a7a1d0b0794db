"""Low-dimensional pruning in a lookup: subspace and warm start decide how long it takes, never what it answers.

N features, K codes, C channels, D dimensions.
"""

import pickle

import pytest
import torch

from soho_fast import ops
from soho_fast.ops import triton_backend

NAN, INF = float("nan"), float("inf")
NUM_ROWS, NUM_CODES = (45, 150) if triton_backend.INTERPRETING else (200, 300)
NUM_CHANNELS, NUM_DIMENSIONS = 170, 6


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _learned(num_channels=NUM_CHANNELS, noise=0.02):
    """Features near codes that differ in few dimensions, their subspace, and the code each feature was made from."""
    subspace_CD = torch.linalg.qr(_normal(num_channels, NUM_DIMENSIONS, seed=1)).Q
    codebook_KC = 5 * _normal(NUM_CODES, NUM_DIMENSIONS, seed=2) @ subspace_CD.T
    codebook_KC += noise * _normal(NUM_CODES, num_channels, seed=3) + 3
    index_N = torch.arange(NUM_ROWS) * 7 % NUM_CODES
    return codebook_KC[index_N] + noise * _normal(NUM_ROWS, num_channels, seed=4), codebook_KC, subspace_CD, index_N


def _decided(backend, features, codes, **options):
    """The index, and the share of the rows that pruning decided."""
    from soho_fast import _C

    before = _C.lookup_totals()["pruning"]
    index = ops.codebook_lookup(features, codes, backend=backend, **options)
    return index, (_C.lookup_totals()["pruning"] - before) / len(features)


def _prunes(backend):
    return backend == "cpu" and ops.build_info()["cpu_level"] != "scalar"


@pytest.mark.parametrize("family", ["cpu"], indirect=True)
@pytest.mark.parametrize("num_channels", [NUM_CHANNELS, 600])  # from 512 on in bfloat16, where the machine has it
@pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels")
def test_decides_what_lies_near_learned_codes(num_channels, at_every_level, exact_lookup):
    """Also where the warm start is wrong."""
    features, codebook, subspace, index_N = _learned(num_channels)
    assert torch.equal(index_N, exact_lookup(features, codebook)[0])

    def check(backend):
        for wrong_by in (None, 0, 1, NUM_CODES // 2):
            warm_start = None if wrong_by is None else (index_N + wrong_by) % NUM_CODES
            found, decided = _decided(backend, features, codebook, subspace=subspace, warm_start=warm_start)
            assert torch.equal(found, index_N) and decided == _prunes(backend), wrong_by
        assert _decided(backend, features, codebook)[1] == 0

    at_every_level(check)


def _subspaces(num_channels=NUM_CHANNELS):
    subspace = _learned(num_channels)[2]
    hiding = torch.linalg.qr(torch.cat([subspace, _normal(num_channels, 12)], 1)).Q[
        :, NUM_DIMENSIONS:
    ]  # all but what tells
    one_nan = subspace.clone()
    one_nan[3, 2] = NAN
    return {
        "good": subspace,
        "stale": torch.linalg.qr(subspace + 0.1 * _normal(num_channels, NUM_DIMENSIONS, seed=8)).Q,
        "hides the difference": hiding.contiguous(), "zero": torch.zeros_like(subspace),
        "a zero direction": torch.cat([subspace, torch.zeros(num_channels, 1)], 1),
        "NaN": one_nan, "infinite": subspace * INF, "norm 100": 100 * subspace,
        "norm 1.1 in one direction": subspace * torch.tensor([1.1, 1, 1, 1, 1, 1]),
        "all directions alike": subspace[:, :1].expand(-1, 40).contiguous(),
        "largest": subspace.sign() * 3e38, "smallest": subspace * 1e-44,
        "twice as many as channels": _normal(num_channels, 128, seed=9),
        "one": subspace[:, :1].contiguous(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def expected_of():
    """What test_any_subspace_is_exact expects of a problem, which does not depend on the subspace."""
    return {}


@pytest.mark.parametrize("kind", _subspaces())
@pytest.mark.parametrize("num_channels", [NUM_CHANNELS] if triton_backend.INTERPRETING else [NUM_CHANNELS, 600])
def test_any_subspace_is_exact(kind, num_channels, at_every_level, exact_lookup, same_bits, expected_of):
    subspace = _subspaces(num_channels)[kind]
    for noise in (2.0,) if triton_backend.INTERPRETING else (0.02, 2.0):
        features, codebook, _, _ = _learned(num_channels, noise)
        features[::3] = (codebook[:NUM_ROWS] / 2 + codebook[1 : NUM_ROWS + 1] / 2)[::3]  # between two codes
        problem = num_channels, noise, features.device
        if problem not in expected_of:
            expected_of[problem] = exact_lookup(features, codebook)
        got = at_every_level(ops.codebook_lookup, features, codebook, subspace=subspace, return_distance=True)
        assert same_bits(got, expected_of[problem]), noise


def _inputs():
    features, codebook, subspace, _ = _learned()
    broken = features.clone()
    broken[5, 7], broken[6, 0], broken[40], broken[41, 3] = NAN, INF, -INF, 3e38
    few = codebook.clone()
    few[::2, 1] = NAN
    ulp = torch.where(torch.rand(codebook.shape, generator=torch.Generator().manual_seed(1)) < 0.02, 1, 0)
    near = codebook[:3].repeat(NUM_CODES // 3, 1)
    near = torch.where(ulp > 0, torch.nextafter(near, torch.tensor(INF)), near)
    orders = 10.0 ** (torch.arange(NUM_CODES)[:, None] / 10 - 15)
    huge = codebook.clone()
    huge[17] *= 1e6
    return {
        "not finite": (broken, codebook, subspace),
        "codes that are not finite": (features, few, subspace),
        "features are codes": (codebook[:NUM_ROWS].clone(), codebook, subspace),
        "copies": (features, codebook[torch.arange(NUM_CODES) % 40], subspace),
        "one ulp apart": (near[:NUM_ROWS] + 1e-6 * features, near, subspace),
        "integers with ties": ((features / 4).round(), (codebook / 4).round(), subspace),
        "offset 1e7": (features + 1e7, codebook + 1e7, subspace),
        "30 orders": (features * orders[:NUM_ROWS], codebook * orders, subspace),
        "one huge code": (features, huge, subspace),
        "subnormal": (features * 1e-40, codebook * 1e-40, subspace),
        "squares overflow": (features * 1e18, codebook * 1e18, subspace),
        "largest": (features * 1e37, codebook * 1e37, subspace),
        "squares vanish": (features * 1e-25, codebook * 1e-25, subspace),
        "two codes": (features, codebook[:2], subspace),
        "all codes alike": (features, codebook[:1].repeat(NUM_CODES, 1), subspace),
        "bfloat16": (features.bfloat16(), codebook.half(), subspace),
    }


@pytest.mark.parametrize("kind", _inputs())
def test_hard_inputs_are_exact(kind, at_every_level, exact_lookup):
    features, codebook, subspace = _inputs()[kind]
    expected = exact_lookup(features, codebook)[0]
    warm_start = torch.arange(NUM_ROWS) * 11 % NUM_CODES - 5
    warm_start[::9], warm_start[1::9] = 2**40, -(2**40)
    for given in (None,) if triton_backend.INTERPRETING else (None, warm_start):
        index = at_every_level(ops.codebook_lookup, features, codebook, subspace=subspace, warm_start=given)
        assert torch.equal(index, expected), "warm" if given is warm_start else "cold"
    assert torch.equal(at_every_level(ops.codebook_lookup, features, codebook, warm_start=warm_start), expected)


@pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels")
def test_more_codes_than_are_kept_at_a_time(at_every_level):
    """A row goes through chunks of 8192 codes, its nearest one in any of them."""
    subspace = torch.linalg.qr(_normal(20, 3)).Q
    codebook = 9 * _normal(20_000, 3, seed=5) @ subspace.T + 0.01 * _normal(20_000, 20, seed=6)
    index_N = torch.arange(64) * 311
    features = codebook[index_N] + 0.001
    assert torch.equal(at_every_level(ops.codebook_lookup, features, codebook, subspace=subspace), index_N)


def test_int8_sums_of_very_many_channels(at_every_level):
    """Codes of two opposite signs in 150,000 channels: a sum of products of their numbers in int8 is above 2^31."""
    num_channels = 150_000
    sign = _normal(num_channels).sign()
    codebook = torch.where(torch.arange(36) % 6 == 0, 1.0, -1.0)[:, None] * sign + 0.01 * _normal(36, num_channels)
    index_N = torch.arange(33) % 6 * 6
    features = codebook[index_N] + 0.002 * _normal(33, num_channels, seed=1)
    subspace = sign[:, None] / num_channels**0.5
    assert torch.equal(at_every_level(ops.codebook_lookup, features, codebook, subspace=subspace), index_N)


def test_batched(at_every_level):
    features, codebook, subspace, index_N = _learned()
    several = torch.stack([codebook, codebook.flip(0), codebook[torch.randperm(NUM_CODES)]])
    subspaces = torch.stack([subspace, subspace * NAN, subspace[:, torch.arange(6) ^ 1]])
    rows = features.expand(3, -1, -1)
    expected = ops.codebook_lookup(rows, several, backend="reference")
    assert torch.equal(expected[0], index_N)
    warm_start = torch.stack([index_N, index_N, -index_N])

    def in_prepared(given, backend):
        prepared = ops.prepare_codebook(several, subspace=given, backend=backend)
        return ops.codebook_lookup(rows, prepared, backend=backend)

    for given in (subspace, subspaces):
        assert torch.equal(
            at_every_level(ops.codebook_lookup, rows, several, subspace=given, warm_start=warm_start), expected
        )
        assert torch.equal(at_every_level(in_prepared, given), expected)


def test_prepared_with_a_subspace(at_every_level):
    features, codebook, subspace, index_N = _learned()

    def check(backend):
        prepared = ops.prepare_codebook(codebook, subspace=subspace, backend=backend)
        for snapshot in (prepared, pickle.loads(pickle.dumps(prepared))):
            assert torch.equal(snapshot.subspace, subspace)
            index, decided = _decided(backend, features, snapshot)
            assert torch.equal(index, index_N) and decided == _prunes(backend)
        without = ops.prepare_codebook(codebook, subspace=False, backend=backend)
        assert without.subspace is None and pickle.loads(pickle.dumps(without)).subspace is None
        index, decided = _decided(backend, features, without)
        assert torch.equal(index, index_N) and decided == 0

    at_every_level(check)


@pytest.mark.parametrize("family", ["cpu"], indirect=True)
@pytest.mark.skipif(triton_backend.INTERPRETING, reason="of the CPU kernels")
def test_the_subspace_follows_a_change_of_level(at_every_level):
    features, codebook, subspace, index_N = _learned()
    prepared = []
    at_every_level(lambda backend: prepared.append(ops.prepare_codebook(codebook, subspace=subspace, backend=backend)))

    def check(snapshot, backend):
        index, decided = _decided(backend, features, snapshot)
        assert torch.equal(index, index_N) and decided == _prunes(backend)

    for snapshot in prepared:
        at_every_level(check, snapshot)


def test_prepare_finds_a_subspace_where_it_can_pay():
    large = _normal(256, 20) @ _normal(20, 128, seed=1)
    small = large[:255]
    on_cpu = "cpu" in ops.available_backends() and ops.build_info()["cpu_levels_available"] != ["scalar"]
    assert (ops.prepare_codebook(large).subspace is not None) == on_cpu
    assert ops.prepare_codebook(_normal(1024, 512)).subspace is None
    assert ops.prepare_codebook(torch.stack([large, _normal(1024, 128)[::4]])).subspace is None or not on_cpu
    assert ops.prepare_codebook(small).subspace is None
    for num_directions, pays in ((8, on_cpu), (40, False)):  # of 48 channels half are compared at most
        few_channels = _normal(1024, num_directions) @ _normal(num_directions, 48, seed=1)
        assert (ops.prepare_codebook(few_channels).subspace is not None) == pays
    assert ops.prepare_codebook(small, subspace=True).subspace.shape == (128, 32)


def test_subspace_holds_what_tells_the_codes_apart():
    _, codebook, subspace, _ = _learned()
    found = ops.codebook_subspace(codebook, dimensions=NUM_DIMENSIONS)
    assert found.shape == subspace.shape and found.dtype == torch.float32
    assert torch.allclose(found.T @ found, torch.eye(NUM_DIMENSIONS), atol=1e-5)
    spread = codebook - codebook.mean(0)
    exact = torch.linalg.svd(spread.double(), full_matrices=False).S[:NUM_DIMENSIONS].norm() / spread.double().norm()
    held = (spread @ found).double().norm() / spread.double().norm()
    assert held > 0.9999 * exact


def test_as_many_dimensions_as_the_codes_need():
    def codes(num_dimensions, num_channels=200):
        return _normal(500, num_dimensions) @ _normal(num_dimensions, num_channels, seed=1)

    assert ops.codebook_subspace(codes(20)).shape == (200, 32)
    assert ops.codebook_subspace(codes(70)).shape == (200, 80)
    assert ops.codebook_subspace(codes(150)).shape == (200, 96)
    assert ops.codebook_subspace(torch.stack([codes(20), codes(40)])).shape == (2, 200, 48)
    assert ops.codebook_subspace(codes(20, 8)).shape == (8, 8)
    assert ops.codebook_subspace(torch.zeros(3, 40)).shape == (40, 40)


def test_subspace_is_turned_from_an_earlier_one():
    _, codebook, subspace, _ = _learned()
    stale = torch.linalg.qr(subspace + 0.2 * _normal(NUM_CHANNELS, NUM_DIMENSIONS, seed=8)).Q
    spread = codebook - codebook.mean(0)
    held = [(spread @ V).norm() / spread.norm() for V in (stale, ops.codebook_subspace(codebook, start=stale))]
    assert held[0] < 0.6 and held[1] > 0.99


@pytest.mark.parametrize("codebook", [torch.zeros(9, 20), torch.full((9, 20), NAN), 1e-44 * torch.ones(9, 20),
                                      torch.full((9, 20), 3e38) * _normal(9, 20).sign()], ids=str)  # fmt: skip
def test_subspace_of_odd_codebooks_is_finite(codebook):
    assert ops.codebook_subspace(codebook, dimensions=4).isfinite().all()


def test_gradients_are_those_of_a_lookup_without_a_subspace(at_every_level, same_bits):
    features, codebook, subspace, _ = _learned()

    def gradients(subspace, backend):
        x, d = features.clone().requires_grad_(), codebook.clone().requires_grad_()
        distance = ops.codebook_lookup(x, d, subspace=subspace, return_distance=True, backend=backend)[1]
        return torch.autograd.grad(distance.square().sum(), (x, d))

    assert same_bits(at_every_level(gradients, None), at_every_level(gradients, subspace))


def test_neither_autocast_nor_the_default_type_changes_a_subspace():
    """4,096 codes of two groups overflow float16 where a product of matrices adds them."""
    codebook = torch.ones(4096, 300) * _normal(4096, 1).sign() + 0.01 * _normal(4096, 300, seed=1)

    def subspaces():
        moving = ops.MovingSubspace().of(codebook)
        return ops.codebook_subspace(codebook), moving, ops.prepare_codebook(codebook).subspace

    expected = subspaces()
    for cast in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=cast):
            assert all(map(torch.equal, subspaces(), expected)), cast
    for default in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(default)
        try:
            assert all(map(torch.equal, subspaces(), expected)), default
        finally:
            torch.set_default_dtype(torch.float32)


def test_no_codebooks_at_all():
    none = torch.zeros(0, 300, 128)
    assert ops.codebook_subspace(none).shape[:2] == (0, 128)
    assert ops.codebook_lookup(torch.zeros(0, 5, 128), ops.prepare_codebook(none)).shape == (0, 5)


def test_a_moving_subspace_follows_its_codebook():
    moving, codebook = ops.MovingSubspace(interval=3), _normal(256, 6) @ _normal(6, 128, seed=1)
    first = moving.of(codebook)
    assert first.shape == (128, 16)

    def held(subspace):
        spread = codebook - codebook.mean(0)
        return float((spread @ subspace).norm() / spread.norm())

    codebook += _normal(256, 6, seed=2) @ _normal(6, 128, seed=3)
    second = moving.of(codebook)
    assert second.shape == (128, 16) and held(first) < 0.9 and held(second) > 0.999
    codebook += _normal(256, 3, seed=8) @ _normal(3, 128, seed=9)
    assert moving.of(codebook) is second
    third = moving.of(codebook)
    assert third.shape == (128, 16) and held(second) < 0.95 and held(third) > 0.999
    codebook += _normal(256, 50, seed=4) @ _normal(50, 128, seed=5)
    assert [moving.of(codebook).shape[1] for _ in range(5)] == [16, 16, 64, 64, 64]
    codebook.copy_(_normal(256, 6, seed=6) @ _normal(6, 128, seed=7))
    assert moving.of(codebook).shape == (128, 16)
    assert moving.of(codebook.expand(2, 256, 128)).shape == (2, 128, 16)
    assert moving.of(_normal(1024, 512)) is None
    assert moving.of(codebook[:255]) is None and moving.of(codebook[:, :127]) is None
