"""A lookup of few rows: the short way to the kernel gives what the long way does, and is short."""

import importlib
import sys
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soho_fast import ops
from soho_fast.ops import backends

pytestmark = pytest.mark.skipif(
    "cpu" not in ops.available_backends() or backends._ONLY_SCALAR, reason="a lookup takes the reference here"
)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 128, generator=generator), torch.randn(1024, 128, generator=generator)


@pytest.fixture
def asked(monkeypatch):
    """What the short way answered to each lookup."""
    module = sys.modules["soho_fast.ops.codebook_lookup"]
    answers, at_once = [], module.lookup_at_once
    monkeypatch.setattr(module, "lookup_at_once", lambda *them: answers.append(at_once(*them)) or answers[-1])
    return answers


@pytest.mark.parametrize("topk", [None, 2, 16])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_both_ways_give_the_same(pair, metric, topk, asked, same_bits):
    row, codebook = pair
    options = {"metric": metric, "topk": topk}
    for codes in (codebook, torch.nn.Parameter(codebook), ops.prepare_codebook(codebook, metric=metric)):
        for features in (row, row.bfloat16(), row.half(), row[0].expand(2, 2, 128), row[:0], row[None]):
            index = ops.codebook_lookup(features, codes, **options)
            assert asked[-1] is index and not index.requires_grad and index.is_contiguous()
            assert same_bits(index, ops.codebook_lookup(features, codes, **options, backend="cpu"))
            with torch.no_grad():
                both = ops.codebook_lookup(features, codes, return_distance=True, **options)
            assert asked[-1] is both
            long = ops.codebook_lookup(features, codes, return_distance=True, **options, backend="cpu")
            assert same_bits(both, tuple(tensor.detach() for tensor in long))
            expected = ops.codebook_lookup(features, codebook, **options, backend="reference")
            assert torch.equal(index, expected) and torch.equal(both[0], expected)


def test_a_torch_with_other_private_names_goes_the_long_way(pair, monkeypatch):
    small = sys.modules["soho_fast.ops.codebook_lookup.small"]
    with monkeypatch.context() as other:
        other.delattr(torch._C, "_is_tracing")
        importlib.reload(small)
        assert small.lookup_at_once(*pair, "euclidean", None, False) is None
    importlib.reload(small)
    assert small.lookup_at_once(*pair, "euclidean", None, False) is not None


def test_a_result_is_an_ordinary_tensor(pair):
    row, codebook = pair
    index = ops.codebook_lookup(row, codebook)
    assert index.resize_(100).shape == (100,)
    with torch.inference_mode():
        assert ops.codebook_lookup(row, codebook).is_inference()
        assert torch.equal(ops.codebook_lookup(row.clone(), codebook.clone()), index[:1])


def test_several_threads_at_once(pair):
    row, codebook = pair
    prepared = ops.prepare_codebook(codebook)
    features = torch.cat([row, codebook[:63]])
    expected = ops.codebook_lookup(features, prepared, backend="cpu")
    found = [torch.empty(0)] * 4

    def look_up(n):
        for _ in range(50):
            found[n] = torch.cat([ops.codebook_lookup(few, prepared) for few in features.split(1 + n)])

    threads = [threading.Thread(target=look_up, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(index, expected) for index in found)


@pytest.mark.parametrize("num_codes", [3, 40, 3000])
def test_the_nearest_of_few_rows_in_any_codebook(num_codes, check_lookup):
    """Many at one distance, more near than a list holds, codes that are not finite, squares that overflow."""
    generator = torch.Generator().manual_seed(num_codes)
    for num_channels in (1, 7, 40):
        codebook = torch.randn(num_codes, num_channels, generator=generator)
        rows = torch.randn(3, num_channels, generator=generator)
        for kind in range(5):
            if kind == 1:
                codebook = codebook.round()
            elif kind == 2:
                codebook[: num_codes - 1] = codebook[0]
            elif kind == 3:
                codebook[: num_codes - 2] = torch.nan
            elif kind == 4:
                codebook = codebook * 1e30
            for topk in (None, 2, 3):
                check_lookup(rows, codebook, topk=topk)
                check_lookup(rows[:1], codebook, topk=topk)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("num_codes", "num_channels"), [(7, 3), (600, 20), (2100, 70), (8192, 33), (8195, 5)])
def test_few_rows_are_decided_as_among_many(num_codes, num_channels, num_rows, at_every_level):
    generator = torch.Generator().manual_seed(num_codes)
    codebook = torch.randn(num_codes, num_channels, generator=generator)
    codebook[num_codes // 2] = codebook[-1]  # a tie: the lower index is right
    nearest = torch.randint(num_codes, (24,), generator=generator)
    nearest[::5] = num_codes - 1
    away = 0.1 * torch.randn(24, num_channels, generator=generator)
    away[::5] = 0
    rows = codebook[nearest] + away
    rows[::7] = (codebook[3] + codebook[4]) / 2
    rows[1::7] = codebook.mean(0)  # all scores are below 0
    rows[9] = torch.nan
    expected = ops.codebook_lookup(rows, codebook, backend="reference")

    def few_at_a_time(backend):
        prepared = ops.prepare_codebook(codebook)
        return torch.cat([ops.codebook_lookup(few, prepared, backend=backend) for few in rows.split(num_rows)])

    assert torch.equal(at_every_level(few_at_a_time), expected)


def test_a_gradient_is_not_recorded_and_the_features_keep_theirs(pair, asked):
    row, codebook = pair
    row.requires_grad_()
    prepared = ops.prepare_codebook(codebook)
    index = ops.codebook_lookup(row, prepared)
    assert asked[-1] is index and index.grad_fn is None
    ops.straight_through(row, codebook, index).sum().backward()
    assert torch.equal(row.grad, torch.ones_like(row))
    with torch.inference_mode():
        assert torch.equal(ops.codebook_lookup(row, prepared), index)


def test_who_watches_torch_sees_the_lookup(pair, asked):
    row, codebook = pair
    prepared, seen = ops.prepare_codebook(codebook), []
    with torch.profiler.profile() as profile:
        ops.codebook_lookup(row, prepared)
    assert asked[-1] is None
    assert "soho_fast::codebook_lookup_cpu" in {event.name for event in profile.events()}

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    with Watching():
        ops.codebook_lookup(row, prepared)
    assert asked[-1] is None and "soho_fast.codebook_lookup_cpu.default" in seen
    with torch.device("meta"):  # where torch makes new tensors
        assert ops.codebook_lookup(row, prepared).device.type == "cpu"


def test_the_short_way_steps_aside(pair, asked):
    """For a subclass, a view that is negated when read, many rows, a gradient, and in a graph that is compiled."""
    row, codebook = pair
    negated = torch._neg_view(row)
    assert torch.equal(ops.codebook_lookup(negated, codebook), ops.codebook_lookup(-row, codebook))
    assert [answer is None for answer in asked] == [True, False]
    many = torch.cat([row] * 5)
    assert torch.equal(ops.codebook_lookup(many, codebook), ops.codebook_lookup(row, codebook).expand(5))
    assert [answer is None for answer in asked[2:]] == [True, False]
    _, distance = ops.codebook_lookup(row.clone().requires_grad_(), codebook, return_distance=True)
    assert asked[-1] is None and distance.requires_grad
    with pytest.raises(NotImplementedError, match="vmap"):
        torch.vmap(lambda x: ops.codebook_lookup(x[None], codebook))(many)
    prepared = ops.prepare_codebook(codebook)
    index = ops.codebook_lookup(row, prepared)

    class Own(torch.Tensor):
        pass

    assert torch.equal(ops.codebook_lookup(row.as_subclass(Own), prepared).as_subclass(torch.Tensor), index)
    assert asked[-1] is None
    graph = torch.compile(lambda x: ops.codebook_lookup(x, prepared), fullgraph=True, backend="aot_eager")
    assert torch.equal(graph(row), index)


@pytest.mark.parametrize("features", ["row", torch.zeros(1, 127), torch.zeros(128), torch.zeros(1, 128).double()])
def test_what_is_wrong_is_said_by_the_long_way(pair, features, asked):
    with pytest.raises((TypeError, ValueError), match=r"(features|codebook): expected"):
        ops.codebook_lookup(features, ops.prepare_codebook(pair[1]))
    assert asked == [None]
    prepared = ops.prepare_codebook(pair[1])
    prepared.codebook.add_(1)
    with pytest.raises(ValueError, match="the prepared snapshot was written to"):
        ops.codebook_lookup(pair[0], prepared)
    with pytest.raises(ValueError, match="metric: expected 'euclidean' as the codebook was prepared for, got 'dot'"):
        ops.codebook_lookup(pair[0], ops.prepare_codebook(pair[1]), metric="dot")
