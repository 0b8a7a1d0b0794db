"""codebook_stats, codebook_ema_ and scatter_mean_ema_ against float64, and their determinism."""

import pytest
import torch

from soho_fast.ops import codebook_ema_, codebook_stats, scatter_mean_ema_, triton_backend

SIZES = [
    (0, 3, 4), (4, 3, 0), (1, 1, 1), (5, 3, 7), (64, 9, 8), (65, 9, 9), (500, 17, 63), (500, 17, 65), (300, 1, 130),
    (40, 200, 3),
]  # fmt: skip


def _case(num_rows, num_codes, num_channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, num_channels, generator=generator)
    index = torch.randint(-1, num_codes, (num_rows,), generator=generator)
    valid = torch.rand(num_rows, generator=generator) < 0.8
    return features, index, valid


def _in_order(features, index, num_codes):
    """The members of each code added in float64 in ascending position, on the CPU: a GPU's index_add_ has no order."""
    sums = torch.zeros(num_codes, features.shape[-1], dtype=torch.float64, device="cpu")
    return sums.index_add_(0, index.cpu(), features.double().cpu()).float().to(features.device)


def _moved(codebook, counts, sums, decay, backend):
    """What codebook_ema_ makes of a copy."""
    return codebook_ema_(codebook.clone(), counts, sums, decay, backend=backend)


def _moved_by_members(codebook, features, index, decay, valid=None, *, backend):
    """What scatter_mean_ema_ makes of a copy."""
    return scatter_mean_ema_(codebook.clone(), features, index, decay, valid=valid, backend=backend)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
def test_stats_have_the_bits_of_the_documented_order(size, features_type, masked, at_every_level):
    features, index, valid = _case(*size)
    features, kept = features.to(features_type), (index >= 0) & (valid if masked else True)
    options = {"valid": valid if masked else None}
    counts, sums = at_every_level(codebook_stats, features, index, size[1], **options)
    assert torch.equal(counts, torch.bincount(index[kept], minlength=size[1]).float())
    expected = torch.zeros(size[1], size[2], dtype=torch.float64)
    for row in kept.nonzero()[:, 0].tolist():
        expected[index[row]] += features[row].double()
    assert torch.equal(sums, expected.float())
    wide_counts, wide_sums = at_every_level(codebook_stats, features, index, size[1], wide=True, **options)
    assert wide_counts.dtype == torch.float64 and torch.equal(wide_counts, counts.double())
    assert torch.equal(wide_sums, expected)


@pytest.mark.parametrize("num_rows", [600, 40_000])
def test_float32_would_lose_what_is_added_to_a_large_sum(num_rows, at_every_level):
    """Also where members lie in several blocks of rows."""
    num_rows = min(num_rows, 1400) if triton_backend.INTERPRETING else num_rows
    features = torch.ones(num_rows, 3)
    features[0] = 2.0**24
    index = torch.zeros(num_rows, dtype=torch.int64)
    _, sums = at_every_level(codebook_stats, features, index, 2)
    assert sums[0].tolist() == [2.0**24 + num_rows - 1 + (num_rows - 1) % 2] * 3  # rounded once, to even
    wide_sums = at_every_level(codebook_stats, features, index, 2, wide=True)[1]
    assert wide_sums[0].tolist() == [2.0**24 + num_rows - 1] * 3
    equal = at_every_level(_moved_by_members, torch.zeros(2, 3), torch.full((num_rows, 3), 0.1), index, 0.0)
    assert equal[0].tolist() == [torch.tensor(0.1).item()] * 3


@pytest.mark.skipif(triton_backend.INTERPRETING, reason="an interpreter would take minutes")
def test_the_mean_of_20_million_ones():
    features, index = torch.ones(1, 1).expand(20_000_000, 1), torch.zeros(1, dtype=torch.int64).expand(20_000_000)
    counts, sums = codebook_stats(features, index, 1)
    assert (sums / counts).item() == 1.0
    assert scatter_mean_ema_(torch.zeros(1, 1), features, index, 0.0).item() == 1.0


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16])
def test_popular_codes_beside_others(features_type, at_every_level):
    """A GPU takes codes from 512 members on in another way."""
    members = torch.tensor([3, 511, 512, 0, 1] if triton_backend.INTERPRETING else [3, 511, 512, 513, 0, 1100, 1])
    num_rows, num_codes = int(members.sum()) + 60, len(members) + 1
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(1))
    index = torch.cat([torch.arange(len(members)).repeat_interleave(members), torch.full((60,), -1)])[order]
    features = torch.randn(num_rows, 40, generator=torch.Generator().manual_seed(2)).to(features_type)
    counts, sums = at_every_level(codebook_stats, features, index, num_codes)
    assert counts.tolist() == [*members.tolist(), 0.0]
    assert torch.equal(sums, _in_order(features[index >= 0], index[index >= 0], num_codes))
    codebook = torch.randn(num_codes, 40)
    expected = at_every_level(_moved, codebook, counts, sums, 0.9)
    assert torch.equal(at_every_level(_moved_by_members, codebook, features, index, 0.9), expected)


@pytest.mark.parametrize("num_codes", [3, 50, 5000])
def test_blocks_of_rows_and_pieces_of_codes(num_codes, at_every_level):
    num_rows = 3000 if triton_backend.INTERPRETING else 50000
    features = torch.randn(num_rows, 37, generator=torch.Generator().manual_seed(3))
    index = (torch.rand(num_rows, generator=torch.Generator().manual_seed(4)) ** 3 * num_codes).long() - 1
    valid = torch.arange(num_rows) % 5 > 0
    counts, sums = at_every_level(codebook_stats, features, index, num_codes, valid=valid)
    kept = valid & (index >= 0)
    assert torch.equal(sums, _in_order(features[kept], index[kept], num_codes))
    assert torch.equal(counts.long(), torch.bincount(index[kept], minlength=num_codes))
    codebook = torch.randn(num_codes, 37)
    expected = at_every_level(_moved, codebook, counts, sums, 0.9)
    assert torch.equal(at_every_level(_moved_by_members, codebook, features, index, 0.9, valid), expected)


def test_padding_is_not_read(at_every_level):
    """Neither its features nor its index, which may be beyond the codes."""
    features, index = torch.ones(5, 2), torch.tensor([0, 0, -1, 1, 99])
    features[1:3] = torch.nan
    valid = torch.tensor([True, False, True, True, False])
    counts, sums = at_every_level(codebook_stats, features, index, 2, valid=valid)
    assert counts.tolist() == [1.0, 1.0] and sums.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_feature_that_is_not_finite_moves_no_code(value, compiled, at_every_level):
    features, index, valid = _case(50, 4, 9)
    features[7, 3] = value
    valid[7] = True
    without = valid & (torch.arange(50) != 7)

    def moved(features, index, valid, backend):
        counts, sums = codebook_stats(features, index, 4, valid=valid, backend=backend)
        codebook = scatter_mean_ema_(torch.ones(4, 9), features, index, 0.7, valid=valid, backend=backend)
        return counts, sums, codebook

    run = torch.compile(moved, backend="aot_eager", fullgraph=True) if compiled else moved
    got = at_every_level(run, features, index.abs(), valid)
    expected = at_every_level(moved, features.nan_to_num(), index.abs(), without)
    assert all(map(torch.equal, got, expected)) and all(t.isfinite().all() for t in got)
    everything = at_every_level(codebook_stats, features, index.abs(), 4, wide=True)
    assert everything[0].sum() == 49 and everything[1].isfinite().all()


def test_layouts(laid_out, at_every_level, same_bits):
    features, index = torch.randn(3, 10, 12), torch.randint(5, (10, 3)).t()
    valid = torch.rand(10, 3).t() < 0.7
    expected = at_every_level(codebook_stats, features, index.contiguous(), 5, valid=valid.contiguous())
    assert same_bits(at_every_level(codebook_stats, laid_out(features), index, 5, valid=valid), expected)


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.999, 1.0, 1])
@pytest.mark.parametrize("num_channels", [1, 8, 13])
def test_ema(decay, num_channels, at_every_level):
    codebook, sums = torch.randn(9, num_channels), torch.randn(9, num_channels)
    counts = torch.tensor([0.0, 1, 2, 3, 0, 5, 100, 7, 1e9])

    def moved_in_place(backend):
        copy = codebook.clone()
        assert codebook_ema_(copy, counts, sums, decay, backend=backend) is copy
        return copy

    moved, used = at_every_level(moved_in_place), counts > 0
    expected = decay * codebook[used].double() + (1 - decay) * sums[used].double() / counts[used].double()[:, None]
    torch.testing.assert_close(moved[used].double(), expected, rtol=2**-22, atol=2**-22)
    assert torch.equal(moved[~used], codebook[~used])


def test_code_without_members_keeps_nan_and_signed_zero(at_every_level):
    codebook = torch.tensor([[torch.nan, -0.0, torch.inf]])
    moved = at_every_level(_moved, codebook, torch.zeros(1), torch.full((1, 3), torch.nan), 0.9)
    assert torch.equal(moved.view(torch.int32), codebook.view(torch.int32))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fused_has_the_bits_of_the_two_steps(size, at_every_level):
    features, index, valid = _case(*size)
    codebook = torch.randn(size[1], size[2])

    def in_two_steps(backend):
        stats = codebook_stats(features, index, size[1], valid=valid, backend=backend)
        return _moved(codebook, *stats, 0.7, backend)

    def fused(backend):
        copy = codebook.clone()
        assert scatter_mean_ema_(copy, features, index, 0.7, valid=valid, backend=backend) is copy
        return copy

    assert torch.equal(at_every_level(fused), at_every_level(in_two_steps))


def _by_ema(codebook, features, index, decay, backend):
    stats = codebook_stats(features, index, codebook.shape[0], backend=backend)
    return codebook_ema_(codebook, *stats, decay, backend=backend)


def _by_members(codebook, features, index, decay, backend):
    return scatter_mean_ema_(codebook, features, index, decay, backend=backend)


UPDATES = pytest.mark.parametrize("update", [_by_ema, _by_members], ids=["ema", "fused"])


@UPDATES
def test_only_the_codebook_is_written(update, at_every_level):
    features, index, _ = _case(50, 5, 13)

    def written(backend):
        memory = torch.full((12, 20), 7.0)
        update(memory[2:7, 3:16], features, index, 0.5, backend)  # rows lie apart, sentinels round them
        return memory

    memory = at_every_level(written)
    assert not (memory[2:7, 3:16] == 7.0).any()
    memory[2:7, 3:16] = 7.0
    assert (memory == 7.0).all()


@pytest.mark.parametrize(("shape", "strides"), [((1, 3), (0, 1)), ((4, 1), (1, 0)), ((1, 1), (0, 0)), ((0, 3), (0, 1))])
def test_strides_of_single_elements_do_not_overlap(shape, strides, at_every_level):
    counts, sums, index = torch.ones(shape[0]), torch.ones(shape), torch.arange(shape[0])

    def moved(backend):
        by_ema, by_members = (torch.full((20,), 7.0).as_strided(shape, strides) for _ in range(2))
        codebook_ema_(by_ema, counts, sums, 0.0, backend=backend)
        scatter_mean_ema_(by_members, sums, index, 0.0, backend=backend)
        return by_ema, by_members

    assert all((codebook == 1.0).all() for codebook in at_every_level(moved))


@UPDATES
def test_transposed_codebook(update, at_every_level):
    features, index, _ = _case(50, 5, 13)
    codebook = torch.randn(13, 5).t()

    def moved(target, backend):
        return update(target.clone(), features, index, 0.5, backend)

    assert codebook.clone().stride() == (1, 5)
    assert torch.equal(at_every_level(moved, codebook), at_every_level(moved, codebook.contiguous()))


def test_parameter_and_gradients_are_left_alone(at_every_level):
    features, index = torch.randn(10, 3, requires_grad=True), torch.randint(4, (10,))

    @torch.no_grad()
    def check(backend):
        codebook = torch.nn.Parameter(torch.ones(4, 3))
        counts, sums = codebook_stats(features, index, 4, backend=backend)
        assert not sums.requires_grad
        version = codebook._version
        codebook_ema_(codebook, counts, sums, 0.9, backend=backend)
        moved = codebook._version
        scatter_mean_ema_(codebook, features, index, 0.9, backend=backend)
        assert codebook.is_leaf and codebook._version > moved > version, "autograd must see that the codebook changed"

    at_every_level(check)


def test_a_leaf_that_requires_grad_is_refused_where_torch_refuses_it():
    features, index = torch.randn(10, 3), torch.randint(2, (10,))
    counts, sums = codebook_stats(features, index, 2)

    def move(codebook):
        return codebook_ema_(codebook, counts, sums, 0.5)

    def move_fused(codebook):
        return scatter_mean_ema_(codebook, features, index, 0.5)

    leaf = torch.ones(4, 3, requires_grad=True)
    whole, view, viewing = leaf[:2].detach().clone().requires_grad_(), leaf[1:3], torch.ones(4, 3)[:2].requires_grad_()
    told = "leaf Variable that requires grad is being used in an in-place operation"
    for refusing in (move, move_fused, lambda codebook: codebook.mul_(0.5)):
        for codebook in (whole, view, viewing):
            with pytest.raises(RuntimeError, match=told):
                refusing(codebook)
            assert (codebook == 1).all() and codebook._version == 0
    with pytest.raises(RuntimeError, match=told):
        torch.compile(move, backend="eager")(view)
    for allowed in (move, move_fused):
        computed = 1 * whole
        assert allowed(computed) is computed and not (computed == 1).all(), "no leaf: torch allows it"
        with torch.no_grad():
            for codebook in (whole.clone().requires_grad_(), leaf.clone().requires_grad_()[1:3]):
                assert allowed(codebook) is codebook and not (codebook == 1).all()


def test_index_beyond_the_codebook_is_refused_on_a_cpu_and_not_counted_elsewhere(at_every_level):
    features, index = torch.ones(4, 2), torch.tensor([0, 1, 5, 2**40])

    def check(backend):
        codebook = torch.zeros(3, 2)
        if backend in ("triton", "cuda"):  # where a refusal would need a sync
            counts, sums = codebook_stats(features, index, 3, backend=backend)
            assert counts.tolist() == [1.0, 1.0, 0.0] and sums[:, 0].tolist() == [1.0, 1.0, 0.0]
            scatter_mean_ema_(codebook, features, torch.tensor([0, 7, 0, 2**31]), 0.0, backend=backend)
            assert codebook[:, 0].tolist() == [1.0, 0.0, 0.0]
            return
        with pytest.raises((ValueError, RuntimeError), match=r"index: .*num_codes = 3.*got 5"):
            codebook_stats(features, index.clamp(max=5), 3, backend=backend)
        with pytest.raises((ValueError, RuntimeError), match=r"index: .*= 3.*got 7"):
            scatter_mean_ema_(codebook, features, torch.tensor([0, 7, 0, 2]), 0.5, backend=backend)
        assert not codebook.any(), "a refused call must not change the codebook"

    at_every_level(check)
