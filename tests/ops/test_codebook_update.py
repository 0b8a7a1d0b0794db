"""codebook_stats, codebook_ema_ and scatter_mean_ema_ against float64, and their determinism."""

import re

import pytest
import torch

from soho_fast.ops import codebook_ema_, codebook_stats, scatter_mean_ema_, set_cpu_level, triton_backend

SIZES = [
    (0, 3, 4),
    (4, 3, 0),
    (1, 1, 1),
    (5, 3, 7),
    (64, 9, 8),
    (65, 9, 9),
    (500, 17, 63),
    (500, 17, 65),
    (300, 1, 130),
    (40, 200, 3),
]


def _case(num_rows, num_codes, num_channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, num_channels, generator=generator)
    index = torch.randint(-1, num_codes, (num_rows,), generator=generator)
    valid = torch.rand(num_rows, generator=generator) < 0.8
    return features, index, valid


def _in_order(features, index, num_codes):
    """The members of each code added in float32 in ascending position, on the CPU: a GPU's index_add_ has no order."""
    sums = torch.zeros(num_codes, features.shape[-1], device="cpu")
    return sums.index_add_(0, index.cpu(), features.float().cpu()).to(features.device)


def _in_float64(features, index, num_codes, valid):
    kept = (index >= 0) & (valid if valid is not None else True)
    counts = torch.bincount(index[kept], minlength=num_codes)
    sums = torch.zeros(num_codes, features.shape[-1], dtype=torch.float64)
    return counts, sums.index_add(0, index[kept], features[kept].double())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_stats(size, masked, backend, threads):
    features, index, valid = _case(*size)
    valid = valid if masked else None
    counts, sums = codebook_stats(features, index, size[1], valid=valid, backend=backend)
    expected_counts, expected_sums = _in_float64(features, index, size[1], valid)
    assert counts.dtype == sums.dtype == torch.float32
    assert torch.equal(counts.long(), expected_counts)
    torch.testing.assert_close(sums.double(), expected_sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
def test_stats_have_the_bits_of_the_documented_order(size, features_type, backend, threads):
    features, index, valid = _case(*size)
    features = features.to(features_type)
    _, sums = codebook_stats(features, index, size[1], valid=valid, backend=backend)
    expected = torch.zeros(size[1], size[2])
    for row in range(size[0]):
        if valid[row] and index[row] >= 0:
            expected[index[row]] += features[row].float()
    assert torch.equal(sums, expected)


def test_one_popular_code_is_shared_without_changing_bits(backend, threads):
    num_rows = 1400 if triton_backend.INTERPRETING else 5000
    features = torch.randn(num_rows, 200, generator=torch.Generator().manual_seed(1))
    index = torch.zeros(num_rows, dtype=torch.int64)
    index[::7] = 4
    counts, sums = codebook_stats(features, index, 6, backend=backend)
    assert torch.equal(sums, _in_order(features, index, 6))
    assert counts.tolist() == [num_rows - len(index[::7]), 0.0, 0.0, 0.0, len(index[::7]), 0.0]


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16])
def test_popular_codes_beside_others(features_type, backend):
    """A GPU takes codes from 512 members on in another way."""
    members = torch.tensor([3, 511, 512, 513, 0, 1100, 1])
    order = torch.randperm(2700, generator=torch.Generator().manual_seed(1))
    index = torch.cat([torch.arange(7).repeat_interleave(members), torch.full((60,), -1)])[order]
    features = torch.randn(2700, 40, generator=torch.Generator().manual_seed(2)).to(features_type)
    counts, sums = codebook_stats(features, index, 8, backend=backend)
    assert counts.tolist() == [*members.tolist(), 0.0]
    assert torch.equal(sums, _in_order(features[index >= 0], index[index >= 0], 8))
    codebook = torch.randn(8, 40)
    expected = codebook_ema_(codebook.clone(), counts, sums, 0.9, backend=backend)
    assert torch.equal(scatter_mean_ema_(codebook, features, index, 0.9, backend=backend), expected)


@pytest.mark.parametrize("num_codes", [3, 50, 5000])
def test_blocks_of_rows_and_pieces_of_codes(num_codes, backend, threads):
    num_rows = 3000 if triton_backend.INTERPRETING else 50000
    features = torch.randn(num_rows, 37, generator=torch.Generator().manual_seed(3))
    index = (torch.rand(num_rows, generator=torch.Generator().manual_seed(4)) ** 3 * num_codes).long() - 1
    valid = torch.arange(num_rows) % 5 > 0
    counts, sums = codebook_stats(features, index, num_codes, valid=valid, backend=backend)
    kept = valid & (index >= 0)
    assert torch.equal(sums, _in_order(features[kept], index[kept], num_codes))
    assert torch.equal(counts.long(), torch.bincount(index[kept], minlength=num_codes))
    codebook = torch.randn(num_codes, 37)
    expected = codebook_ema_(codebook.clone(), counts, sums, 0.9, backend=backend)
    assert torch.equal(scatter_mean_ema_(codebook, features, index, 0.9, valid=valid, backend=backend), expected)


def test_counts_sum_to_the_rows(backend):
    features, index, _ = _case(1000, 30, 5)
    counts, _ = codebook_stats(features, index.clamp(min=0), 30, backend=backend)
    assert counts.sum().item() == 1000


def test_half_precision_sums_do_not_overflow(backend):
    features = torch.full((100, 3), 60000.0, dtype=torch.float16)
    _, sums = codebook_stats(features, torch.zeros(100, dtype=torch.int64), 1, backend=backend)
    assert sums.flatten().tolist() == [6e6] * 3


def test_padding_is_not_read(backend):
    features = torch.ones(4, 2)
    features[1:3] = torch.nan
    index = torch.tensor([0, 0, -1, 1])
    valid = torch.tensor([True, False, True, True])
    counts, sums = codebook_stats(features, index, 2, valid=valid, backend=backend)
    assert counts.tolist() == [1.0, 1.0] and sums.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_index_out_of_range_at_padding_is_ignored(backend):
    counts, _ = codebook_stats(
        torch.ones(2, 2), torch.tensor([0, 99]), 2, valid=torch.tensor([True, False]), backend=backend
    )
    assert counts.tolist() == [1.0, 0.0]


LAYOUTS = {
    "channels permuted": lambda x: x.permute(0, 2, 1).contiguous().permute(0, 2, 1),
    "batch permuted": lambda x: x.permute(1, 0, 2).contiguous().permute(1, 0, 2),
    "channels sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "rows strided": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, backend):
    features, index = torch.randn(3, 10, 12), torch.randint(5, (10, 3)).t()
    valid = torch.rand(10, 3).t() < 0.7
    expected = codebook_stats(features, index.contiguous(), 5, valid=valid.contiguous(), backend=backend)
    got = codebook_stats(LAYOUTS[name](features), index, 5, valid=valid, backend=backend)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_expanded_row(backend):
    counts, sums = codebook_stats(
        torch.tensor([[1.0, 2.0]]).expand(6, 2), torch.tensor([0, 1, 0, 0, 1, 0]), 2, backend=backend
    )
    assert counts.tolist() == [4.0, 2.0] and sums.tolist() == [[4.0, 8.0], [2.0, 4.0]]


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.999, 1.0, 1])
@pytest.mark.parametrize("num_channels", [1, 8, 13])
def test_ema(decay, num_channels, backend):
    codebook, sums = torch.randn(9, num_channels), torch.randn(9, num_channels)
    counts = torch.tensor([0.0, 1, 2, 3, 0, 5, 100, 7, 1e9])
    before = codebook.clone()
    assert codebook_ema_(codebook, counts, sums, decay, backend=backend) is codebook
    used = counts > 0
    expected = decay * before[used].double() + (1 - decay) * sums[used].double() / counts[used].double()[:, None]
    torch.testing.assert_close(codebook[used].double(), expected, rtol=2**-22, atol=2**-22)
    assert torch.equal(codebook[~used], before[~used])


def test_code_without_members_keeps_nan_and_signed_zero(backend):
    codebook = torch.tensor([[torch.nan, -0.0, torch.inf]])
    codebook_ema_(codebook, torch.zeros(1), torch.full((1, 3), torch.nan), 0.9, backend=backend)
    assert codebook.view(torch.int32).equal(torch.tensor([[torch.nan, -0.0, torch.inf]]).view(torch.int32))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fused_has_the_bits_of_the_two_steps(size, backend, threads):
    features, index, valid = _case(*size)
    codebook = torch.randn(size[1], size[2])
    expected = codebook.clone()
    codebook_ema_(
        expected, *codebook_stats(features, index, size[1], valid=valid, backend=backend), 0.7, backend=backend
    )
    assert scatter_mean_ema_(codebook, features, index, 0.7, valid=valid, backend=backend) is codebook
    assert torch.equal(codebook, expected)


@pytest.mark.parametrize("update", ["ema", "fused"])
def test_only_the_codebook_is_written(update, backend):
    memory = torch.full((12, 20), 7.0)
    codebook = memory[2:7, 3:16]  # rows lie apart, sentinels round them
    features, index, _ = _case(50, 5, 13)
    if update == "ema":
        codebook_ema_(codebook, *codebook_stats(features, index, 5, backend=backend), 0.5, backend=backend)
    else:
        scatter_mean_ema_(codebook, features, index, 0.5, backend=backend)
    assert not (codebook == 7.0).any()
    codebook.fill_(7.0)
    assert (memory == 7.0).all()


@pytest.mark.parametrize("update", ["ema", "fused"])
@pytest.mark.parametrize("strides", [(0, 1), (1, 0), (1, 1), (2, 1)], ids=str)
def test_a_codebook_that_overlaps_itself_is_refused(update, strides, backend):
    """Written through, an expanded row would move once for each of its codes."""
    memory = torch.full((20,), 7.0)
    codebook = memory.as_strided((4, 3), strides)
    words = rf"codebook: expected elements that lie apart in memory, got .* strides {re.escape(str(strides))}"
    with pytest.raises(ValueError, match=words):
        if update == "ema":
            codebook_ema_(codebook, torch.ones(4), torch.ones(4, 3), 0.5, backend=backend)
        else:
            scatter_mean_ema_(codebook, torch.ones(2, 3), torch.tensor([0, 1]), 0.5, backend=backend)
    assert (memory == 7.0).all()


@pytest.mark.parametrize("update", ["ema", "fused"])
@pytest.mark.parametrize(("shape", "strides"), [((1, 3), (0, 1)), ((4, 1), (1, 0)), ((1, 1), (0, 0)), ((0, 3), (0, 1))])
def test_strides_of_single_elements_do_not_overlap(update, shape, strides, backend):
    codebook = torch.full((20,), 7.0).as_strided(shape, strides)
    counts, sums = torch.ones(shape[0]), torch.ones(shape)
    if update == "ema":
        codebook_ema_(codebook, counts, sums, 0.0, backend=backend)
    else:
        scatter_mean_ema_(codebook, sums, torch.arange(shape[0]), 0.0, backend=backend)
    assert (codebook == 1.0).all()


@pytest.mark.parametrize("update", ["ema", "fused"])
def test_transposed_codebook(update, backend):
    features, index, _ = _case(50, 5, 13)
    codebook = torch.randn(13, 5).t()
    expected = codebook.contiguous()
    for target in (codebook, expected):
        if update == "ema":
            codebook_ema_(target, *codebook_stats(features, index, 5, backend=backend), 0.5, backend=backend)
        else:
            scatter_mean_ema_(target, features, index, 0.5, backend=backend)
    assert torch.equal(codebook, expected)


def test_flushed_subnormals_do_not_change_the_bits(backend, threads):
    """torch sets the mode of the calling thread only, so what follows it depends on the number of threads."""
    features, index, valid = _case(500, 17, 65)
    features, codebook = features * 1e-40, torch.randn(17, 65) * 1e-40

    def update():
        counts, sums = codebook_stats(features, index, 17, valid=valid, backend=backend)
        moved, fused = codebook.clone(), codebook.clone()
        codebook_ema_(moved, counts, sums, 0.9, backend=backend)
        scatter_mean_ema_(fused, features, index, 0.9, valid=valid, backend=backend)
        return [result.view(torch.int32) for result in (counts, sums, moved, fused)]

    expected = update()
    if backend != "cpu" or not torch.set_flush_denormal(True):
        pytest.skip("torch's own operations and numpy's, which interpret Triton, follow the flag")
    try:
        results = update()
        still_flushed = (torch.tensor([1e-41]) * 1).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert expected[1].count_nonzero() > 1000
    assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))
    assert still_flushed, "the caller's float environment must come back"


def test_levels_and_reference_give_the_same_bits():
    features, index, valid = _case(700, 40, 77)
    results = [codebook_stats(features, index, 40, valid=valid, backend="reference")[1]]
    for level in ("scalar", "avx2", "avx512", "amx"):
        try:
            set_cpu_level(level)
        except ValueError:
            continue
        codebook = torch.ones(40, 77)
        results.append(codebook_stats(features, index, 40, valid=valid, backend="cpu")[1])
        scatter_mean_ema_(codebook, features, index, 0.9, valid=valid)
    set_cpu_level(None) if len(results) > 1 else None
    assert all(torch.equal(result, results[0]) for result in results)


def test_parameter_and_gradients_are_left_alone(backend):
    codebook = torch.nn.Parameter(torch.randn(4, 3))
    features = torch.randn(10, 3, requires_grad=True)
    index = torch.randint(4, (10,))
    counts, sums = codebook_stats(features, index, 4, backend=backend)
    assert not sums.requires_grad
    version = codebook._version
    codebook_ema_(codebook, counts, sums, 0.9, backend=backend)
    scatter_mean_ema_(codebook, features, index, 0.9, backend=backend)
    assert codebook.is_leaf and codebook._version > version, "autograd must see that the codebook changed"


FEATURES, INDEX = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
CODEBOOK, COUNTS = torch.ones(3, 2), torch.ones(3)
REFUSALS = [
    (lambda: codebook_stats(FEATURES, INDEX, 0), ValueError, "num_codes: expected at least 1, got 0"),
    (lambda: codebook_stats(FEATURES, INDEX, 2.0), TypeError, "num_codes: expected an int, got float"),
    (lambda: codebook_stats(FEATURES, INDEX.int(), 3), TypeError, "index: expected int64, got int32"),
    (lambda: codebook_stats(FEATURES, INDEX[:3], 3), ValueError, r"index: expected shape \(4,\)"),
    (lambda: codebook_stats(FEATURES, INDEX, 3, valid=INDEX), TypeError, "valid: expected bool"),
    (lambda: codebook_stats(FEATURES, INDEX, 3, valid=INDEX[:2].bool()), ValueError, r"valid: expected shape \(4,\)"),
    (lambda: codebook_stats(FEATURES.double(), INDEX, 3), TypeError, "features: expected float32"),
    (
        lambda: codebook_ema_(CODEBOOK.half(), COUNTS, CODEBOOK, 0.5),
        TypeError,
        "codebook: expected float32 .*got float16",
    ),
    (
        lambda: codebook_ema_(CODEBOOK[0], COUNTS, CODEBOOK, 0.5),
        ValueError,
        r"codebook: expected 2 dimensions \(K, C\)",
    ),
    (
        lambda: codebook_ema_(CODEBOOK, COUNTS[:2], CODEBOOK, 0.5),
        ValueError,
        r"counts: expected shape \(3,\) = \(K,\), got \(2,\)",
    ),
    (lambda: codebook_ema_(CODEBOOK, COUNTS, CODEBOOK[:, :1], 0.5), ValueError, r"sums: expected shape \(3, 2\)"),
    (
        lambda: codebook_ema_(CODEBOOK, COUNTS, CODEBOOK, 1.5),
        ValueError,
        r"decay: expected a value in \[0, 1\], got 1.5",
    ),
    (lambda: codebook_ema_(CODEBOOK, COUNTS, CODEBOOK, torch.tensor(0.5)), TypeError, "decay: expected a Python float"),
    (lambda: codebook_ema_(CODEBOOK, COUNTS, CODEBOOK, float("nan")), ValueError, "decay: expected a value"),
    (
        lambda: scatter_mean_ema_(CODEBOOK, torch.ones(4, 5), INDEX, 0.5),
        ValueError,
        "features: expected 2 channels like codebook",
    ),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case[2])
def test_refusals(case):
    with pytest.raises(case[1], match=case[2]):
        case[0]()


def test_index_beyond_the_codebook_is_refused(backend):
    if backend in ("triton", "cuda"):
        pytest.skip("on a device a refusal would need a sync")
    codebook = torch.ones(3, 2)
    with pytest.raises((ValueError, RuntimeError), match="index: expected values below num_codes = 3, got 5"):
        codebook_stats(FEATURES, torch.tensor([0, 1, 5, 2]), 3, backend=backend)
    with pytest.raises((ValueError, RuntimeError), match=r"index: expected values below .* = 3, got 7"):
        scatter_mean_ema_(codebook, FEATURES, torch.tensor([0, 7, 0, 2]), 0.5, backend=backend)
    assert torch.equal(codebook, torch.ones(3, 2)), "a refused call must not change the codebook"


def test_index_beyond_the_codebook_is_not_counted_on_a_device(backend):
    if backend not in ("triton", "cuda"):
        pytest.skip("refused on a CPU")
    features, codebook = torch.ones(4, 2), torch.zeros(3, 2)
    counts, sums = codebook_stats(features, torch.tensor([0, 1, 5, 2**40]), 3, backend=backend)
    assert counts.tolist() == [1.0, 1.0, 0.0] and sums[:, 0].tolist() == [1.0, 1.0, 0.0]
    scatter_mean_ema_(codebook, features, torch.tensor([0, 7, 0, 2**31]), 0.0, backend=backend)
    assert codebook[:, 0].tolist() == [1.0, 0.0, 0.0]
