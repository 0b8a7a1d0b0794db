"""Prepared codebooks: the same indices as an unprepared lookup, of the snapshot and never of anything later."""

import copy
import io
import itertools
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from soho_fast import ops

WRITTEN = "codebook: .* snapshot was written to"


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _in_prepared(features, codebook, backend, metric="euclidean"):
    """Index and distance in a codebook that is prepared for them."""
    prepared = ops.prepare_codebook(codebook, metric=metric, backend=backend)
    return ops.codebook_lookup(features, prepared, return_distance=True, metric=metric, backend=backend)


def test_a_change_of_the_codebook_does_not_reach_the_snapshot(at_every_level):
    features, codebook = _random(50, 8), _random(40, 8, seed=1)

    def before_and_after(backend):
        changing = codebook.clone()
        prepared = ops.prepare_codebook(changing, backend=backend)
        changing.neg_()
        return [ops.codebook_lookup(features, codes, backend=backend) for codes in (codebook, changing, prepared)]

    before, changed, of_snapshot = at_every_level(before_and_after)
    assert not torch.equal(changed, before) and torch.equal(of_snapshot, before)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_is_saved_loaded_and_copied(strict):
    class Tokenizer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prepared = ops.prepare_codebook(_random(40, 8, seed=1))

        def forward(self, features):
            return ops.codebook_lookup(features, self.prepared)

    features, file = _random(50, 8), io.BytesIO()
    program = torch.export.export(Tokenizer(), (features,), strict=strict)
    torch.export.save(program, file)
    file.seek(0)
    expected = Tokenizer()(features)
    assert torch.equal(torch.export.load(file).module()(features), expected)
    assert torch.equal(copy.deepcopy(program).module()(features), expected)


@pytest.mark.parametrize("inference", [False, True])
def test_a_written_snapshot_is_refused_and_another_cannot_take_its_place(inference, backend):
    with torch.inference_mode(inference):
        prepared = ops.prepare_codebook(_random(40, 8), backend=backend)
    with pytest.raises(AttributeError, match="codebook"):
        prepared.codebook = _random(40, 8, seed=1)
    prepared.codebook.neg_()
    with pytest.raises(ValueError, match=WRITTEN):
        ops.codebook_lookup(_random(5, 8), prepared, backend=backend)


def _saved_and_loaded(prepared):
    torch.save({"codebook": prepared}, file := io.BytesIO())
    return torch.load(io.BytesIO(file.getvalue()))["codebook"]


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda prepared: pickle.loads(pickle.dumps(prepared)),
    "torch.save": _saved_and_loaded,
    "to a process": lambda prepared: pickle.loads(ForkingPickler.dumps(prepared)),  # as torch.multiprocessing sends it
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_are_snapshots_like_the_first(way, at_every_level):
    features, codebook = _random(50, 8), _random(40, 8, seed=1)

    def check(backend):
        expected = ops.codebook_lookup(features, codebook, backend=backend)
        first = ops.prepare_codebook(codebook, backend=backend)
        second = COPIES[way](COPIES[way](first))
        assert torch.equal(ops.codebook_lookup(features, second, backend=backend), expected)
        first.codebook.neg_()
        assert torch.equal(ops.codebook_lookup(features, second, backend=backend), expected)
        second.codebook.neg_()
        with pytest.raises(ValueError, match=WRITTEN):
            ops.codebook_lookup(features, second, backend=backend)
        with pytest.raises(ValueError, match=WRITTEN):
            COPIES[way](second)

    at_every_level(check)


def test_another_level_than_the_one_it_was_prepared_for(at_every_level, exact_lookup):
    features, codebook = _random(50, 19), _random(40, 19, seed=1)
    prepared = []
    at_every_level(lambda backend: prepared.append(ops.prepare_codebook(codebook, backend=backend)))
    for snapshot in prepared:
        index = at_every_level(ops.codebook_lookup, features, snapshot)
        assert torch.equal(index, exact_lookup(features, codebook)[0])


def test_gradient_of_the_distance_goes_to_the_features(at_every_level):
    features, codebook = _random(9, 5), _random(12, 5, seed=1)

    def gradient(backend):
        x = features.clone().requires_grad_()
        index, distance = _in_prepared(x, codebook, backend)
        return index, torch.autograd.grad(distance.sum(), x)[0]

    index, grad = at_every_level(gradient)
    torch.testing.assert_close(grad, 2 * (features - codebook[index]))


# Inductor takes seconds for each.
GRAPHS = itertools.product(
    ["aot_eager"], ["index", "distance"], [torch.no_grad, torch.inference_mode, torch.enable_grad]
)


@pytest.mark.parametrize(
    ("compiler", "asked", "mode"),
    [*GRAPHS, ("inductor", "index", torch.no_grad), ("inductor", "distance", torch.enable_grad)],
)
def test_a_compiled_graph_refuses_a_written_snapshot(compiler, asked, mode, exact_lookup):
    """The graph is compiled before the snapshot is written to, and not again."""
    torch._dynamo.reset()
    features, codebook = _random(50, 8), _random(40, 8, seed=1)
    prepared = ops.prepare_codebook(codebook)
    counter = CompileCounterWithBackend(compiler)

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(x):
        index, distance = ops.codebook_lookup(x * 1, prepared, return_distance=True)
        return index if asked == "index" else distance

    expected = exact_lookup(features, codebook)[asked == "distance"]
    with mode():
        for _ in range(2):
            assert torch.equal(compiled(features), expected)
        prepared.codebook.neg_()
        with pytest.raises(ValueError, match=WRITTEN):
            compiled(features)
    assert counter.frame_count == 1


def test_a_compiled_graph_takes_a_copy_for_what_it_is():
    features, codebook = _random(50, 8), _random(40, 8, seed=1)
    holder = {"codebook": ops.prepare_codebook(codebook)}
    compiled = torch.compile(lambda x: ops.codebook_lookup(x, holder["codebook"]), fullgraph=True, backend="aot_eager")
    expected = ops.codebook_lookup(features, codebook)
    assert torch.equal(compiled(features), expected)
    holder["codebook"] = copy.deepcopy(holder["codebook"])
    assert torch.equal(compiled(features), expected)
    holder["codebook"] = ops.prepare_codebook(-codebook)
    assert torch.equal(compiled(features), ops.codebook_lookup(features, -codebook))


def test_registration_of_the_check():
    op = torch.ops.soho_fast.snapshot_check.default
    codebook = torch.ones(3, 2)
    assert op(codebook, codebook._version).item() == 0
    assert torch.Tag.cudagraph_unsafe in op.tags


@pytest.mark.parametrize("num_rows", [1, 14, 15, 56, 60])
def test_few_rows_share_the_codes(num_rows, at_every_level, exact_lookup, same_bits):
    """Each thread takes some codes: copies of a code lie in several parts, and one row is not finite."""
    codebook = _random(4096, 72)
    codebook[3000:3500] = codebook[500:1000]
    features = codebook[torch.randint(500, 1000, (num_rows,))] + _random(num_rows, 72, seed=1) * 1e-3
    features[num_rows // 3, 5] = torch.nan
    features[num_rows // 2] = _random(72, seed=2)
    assert same_bits(at_every_level(_in_prepared, features, codebook), exact_lookup(features, codebook))


def test_few_rows_with_nearly_all_codes_in_reach(at_every_level, exact_lookup, same_bits):
    features, codebook = (t.to(torch.empty(0).device) for t in (_random(8, 1100), _random(2000, 1100, seed=1)))
    assert same_bits(at_every_level(_in_prepared, features, codebook), exact_lookup(features, codebook))


def test_plan_names_the_level_and_the_dimensions():
    few, pruned = torch.randn(64, 16), torch.randn(512, 8) @ torch.randn(8, 128)
    if "cpu" not in ops.available_backends():
        assert ops.prepare_codebook(few).plan == "reference"
        return
    levels = ops.build_info()["cpu_levels_available"]
    try:
        for level in levels:
            ops.set_cpu_level(level)
            assert ops.prepare_codebook(few, backend="cpu").plan == f"cpu {level}"
            plan = ops.prepare_codebook(pruned, backend="cpu", subspace=True).plan
            assert plan == f"cpu {level}, pruning in 16 dimensions"
    finally:
        ops.set_cpu_level(None)
    if "avx512_vnni" in levels:
        assert ops.prepare_codebook(few).plan == "cpu avx512"
