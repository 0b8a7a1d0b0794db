"""A prepared lookup of one row: the short way to the kernel gives what the long way does, and is short."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soho_fast import ops
from soho_fast.ops import backends
from soho_fast.ops.codebook_lookup.prepared import PreparedCodebook

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
    answers, nearest = [], PreparedCodebook.nearest
    monkeypatch.setattr(
        PreparedCodebook, "nearest", lambda *arguments: answers.append(nearest(*arguments)) or answers[-1]
    )
    return answers


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_both_ways_give_the_same(pair, metric, asked):
    row, codebook = pair
    prepared = ops.prepare_codebook(codebook, metric=metric)
    expected = ops.codebook_lookup(row, codebook, metric=metric, backend="reference")
    for features in (row, row.bfloat16(), row[0].expand(2, 3, 128), row.expand(5, 128).T.contiguous().T, row[:0]):
        index = ops.codebook_lookup(features, prepared, metric=metric)
        assert asked[-1] is index and not index.requires_grad
        assert torch.equal(index, ops.codebook_lookup(features, prepared, metric=metric, backend="cpu"))
    assert torch.equal(ops.codebook_lookup(row, prepared, metric=metric), expected)


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

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    with Watching():
        ops.codebook_lookup(row, prepared)
    assert asked[-1] is not None and "soho_fast.codebook_lookup_cpu.default" in seen


def test_the_short_way_steps_aside(pair, asked):
    """For a subclass, and in a graph that is compiled."""
    row, codebook = pair
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
