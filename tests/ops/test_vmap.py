"""torch.vmap of each op: one call of it, and the result has the bits of a loop over the slices.

Letters: V what is mapped over, G codebooks, N features, K codes, C channels, B images, L tokens per image.
"""

import pytest
import torch

from soho_fast import ops

V, G, N, K, C = 3, 2, 5, 7, 11
NATIVE = "cpu" if "cpu" in ops.available_backends() else "reference"
CAN_COMPILE = "cpu" in ops.available_backends()


@pytest.fixture(autouse=True)
def _no_slow_loop():
    """Where there is no rule torch loops and warns, once in a process; here it raises."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


@pytest.fixture(params=["reference", NATIVE])
def backend(request):
    return request.param


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _whole(least, most, *shape, seed=0):
    return torch.randint(least, most, shape, generator=torch.Generator().manual_seed(seed))


def _as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def _check(function, in_dims, *tensors, out_dims=0):
    """`torch.vmap(function)` gives what a loop over the slices gives, and each result's mapped dimension is where
    `out_dims` puts it."""
    size = next(tensor.shape[dim] for tensor, dim in zip(tensors, in_dims, strict=True) if dim is not None)
    slices = [
        [tensor if dim is None else tensor.select(dim, each) for tensor, dim in zip(tensors, in_dims, strict=True)]
        for each in range(size)
    ]
    expected = [
        torch.stack(each, out_dims) for each in zip(*(_as_tuple(function(*one)) for one in slices), strict=True)
    ]
    mapped = _as_tuple(torch.vmap(function, in_dims, out_dims)(*tensors))
    assert len(mapped) == len(expected)
    for got, wanted in zip(mapped, expected, strict=True):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)


FEATURES = {0: (V, N, C), 1: (N, V, C), 2: (N, C, V), None: (N, C)}
CODEBOOKS = {0: (V, K, C), 1: (K, V, C), -1: (K, C, V), None: (K, C)}
OPTIONS = [{}, {"return_distance": True}, {"topk": 3}, {"topk": 3, "return_distance": True}]
MAPPED = [(0, None), (1, None), (2, None), (0, 0), (1, -1), (None, 1)]


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("in_dims", MAPPED, ids=str)
def test_lookup(in_dims, metric, backend):
    features, codebook = _normal(*FEATURES[in_dims[0]]), _normal(*CODEBOOKS[in_dims[1]], seed=1)
    for options in OPTIONS:
        for out_dims in (0, 1):
            _check(
                lambda x, d, options=options: ops.codebook_lookup(x, d, metric=metric, backend=backend, **options),
                in_dims, features, codebook, out_dims=out_dims,
            )  # fmt: skip


@pytest.mark.parametrize("in_dims", [(0, None), (2, None), (0, 0), (3, 1), (None, 2)], ids=str)
def test_lookup_in_several_codebooks(in_dims, backend):
    shapes = [[G, N, C], [G, K, C]]
    for shape, dim in zip(shapes, in_dims, strict=True):
        if dim is not None:
            shape.insert(dim, V)
    features, codebook = _normal(*shapes[0]), _normal(*shapes[1], seed=1)
    for options in OPTIONS:
        _check(
            lambda x, d, options=options: ops.codebook_lookup(x, d, backend=backend, **options),
            in_dims, features, codebook,
        )  # fmt: skip


def test_lookup_with_subspace_and_warm_start(backend):
    """Subspace and warm start, mapped over or not, in one codebook and in one for each."""
    features = _normal(V, 40, 128)
    for shape, of_codebook in (((300, 128), None), ((V, 300, 128), 0)):
        codebook = _normal(*shape, seed=1)
        one = codebook if of_codebook is None else codebook[0]
        for subspace, of_subspace in (
            (ops.codebook_subspace(one, dimensions=16), None),
            (_normal(V, 128, 16, seed=2), 0),
        ):
            for warm_start in (_whole(-1, 300, V, 40), _whole(-1, 300, 40)):
                _check(
                    lambda x, d, s, w: ops.codebook_lookup(x, d, subspace=s, warm_start=w, backend=backend),
                    (0, of_codebook, of_subspace, 0 if warm_start.dim() == 2 else None),
                    features, codebook, subspace, warm_start,
                )  # fmt: skip


@pytest.mark.parametrize("in_dim", [0, 1])
def test_lookup_within_a_map(in_dim, backend):
    """One map within another."""
    features, codebook = _normal(4, *FEATURES[in_dim]), _normal(4, K, C, seed=1)
    _check(
        torch.vmap(lambda x, d: ops.codebook_lookup(x, d, return_distance=True, backend=backend), (in_dim, None)),
        (0, 0), features, codebook,
    )  # fmt: skip


@pytest.mark.parametrize("in_dim", [0, 1, 2])
def test_prepared_lookup(in_dim, backend):
    prepared = ops.prepare_codebook(_normal(K, C, seed=1), backend=backend)
    for options in (*OPTIONS, {"backend": backend}):
        _check(lambda x, o=options: ops.codebook_lookup(x, prepared, **o), (in_dim,), _normal(*FEATURES[in_dim]))


def test_prepared_lookup_of_single_features(backend):
    """A program for one feature, mapped over many."""
    prepared, features = ops.prepare_codebook(_normal(K, C), backend=backend), _normal(20, C, seed=1)
    index = torch.vmap(lambda x: ops.codebook_lookup(x[None], prepared)[0])(features)
    assert torch.equal(index, ops.codebook_lookup(features, prepared))


def test_codebooks_prepared_within_a_map(backend):
    features, codebook = _normal(V, N, C), _normal(V, K, C, seed=1)

    def lookup(x, d):
        return ops.codebook_lookup(x, ops.prepare_codebook(d, subspace=False, backend=backend), backend=backend)

    _check(lookup, (0, 0), features, codebook)
    _check(lookup, (None, 0), features[0], codebook)


@pytest.mark.parametrize("return_residual", [False, True])
@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (0, 0), (None, 1)], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_residual_lookup(in_dims, return_residual, shared, backend):
    shape = [K, C] if shared else [2, K, C]
    if in_dims[1] is not None:
        shape.insert(in_dims[1], V)
    features, codebooks = _normal(*FEATURES[in_dims[0]]), _normal(*shape, seed=1)
    _check(
        lambda x, d: ops.residual_lookup(x, d, num_levels=2, return_residual=return_residual, backend=backend),
        in_dims, features, codebooks,
    )  # fmt: skip


def test_residual_lookup_of_prepared_codebooks(backend):
    prepared = ops.prepare_codebook(_normal(2, K, C, seed=1), backend=backend)
    _check(lambda x: ops.residual_lookup(x, prepared, backend=backend), (1,), _normal(N, V, C))


@pytest.mark.parametrize("in_dims", [(0, None, 0), (1, None, None), (0, 0, 0), (None, 1, 1), (None, None, 0)], ids=str)
@pytest.mark.parametrize("several", [False, True])
def test_straight_through(in_dims, several, backend):
    shapes = [[N, C], [K, C], [N]] if not several else [[G, N, C], [G, K, C], [G, N]]
    for shape, dim in zip(shapes, in_dims, strict=True):
        if dim is not None:
            shape.insert(dim, V)
    features, codebook, index = _normal(*shapes[0]), _normal(*shapes[1], seed=1), _whole(-1, K, *shapes[2])
    _check(
        lambda x, d, i: ops.straight_through(x, d, i, backend=backend).clone(), in_dims, features, codebook, index
    )  # fmt: skip


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, 0, None), (None, 0, None), (0, None, 0), (None, None, 1)], ids=str)
def test_codebook_stats(in_dims, backend):
    shapes = [[N, C], [N], [N]]
    for shape, dim in zip(shapes, in_dims, strict=True):
        if dim is not None:
            shape.insert(dim, V)
    features, index, valid = _normal(*shapes[0]), _whole(-1, K, *shapes[1]), _whole(0, 2, *shapes[2], seed=1) > 0
    _check(lambda x, i, v: ops.codebook_stats(x, i, K, valid=v, backend=backend), in_dims, features, index, valid)
    if in_dims[:2] != (None, None):
        _check(lambda x, i: ops.codebook_stats(x, i, K, backend=backend), in_dims[:2], features, index)


def test_a_code_too_high_is_no_code_of_the_next_slice(backend):
    index = torch.tensor([[0, 1], [2, K]])
    with pytest.raises((ValueError, RuntimeError), match="index: expected values below num_codes"):
        torch.vmap(lambda x, i: ops.codebook_stats(x, i, K, backend=backend))(_normal(2, 2, C), index)
    counts, _ = torch.vmap(lambda x, i, v: ops.codebook_stats(x, i, K, valid=v, backend=backend))(
        _normal(2, 2, C), index, index < K
    )
    assert counts.tolist() == [[1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("in_dim", [0, 1])
@pytest.mark.parametrize("statistics", [0, None])
def test_moving_averages_in_place(in_dim, statistics, backend):
    codebook = _normal(*{0: (V, K, C), 1: (K, V, C)}[in_dim])
    shape = (V,) if statistics == 0 else ()
    counts, sums = _whole(0, 3, *shape, K).float(), _normal(*shape, K, C, seed=1)
    features, index = _normal(*shape, N, C, seed=2), _whole(-1, K, *shape, N)

    def ema(d, n, s):
        return ops.codebook_ema_(d, n, s, 0.9, backend=backend)

    def scatter(d, x, i):
        return ops.scatter_mean_ema_(d, x, i, 0.9, backend=backend)

    for function, arguments in ((ema, (counts, sums)), (scatter, (features, index))):
        moved, version = codebook.clone(), codebook.clone()
        for each in range(V):
            ours = [one if statistics is None else one[each] for one in arguments]
            function(version.select(in_dim, each), *ours)
        torch.vmap(function, (in_dim, statistics, statistics))(moved, *arguments)
        assert torch.equal(moved, version) and not torch.equal(moved, codebook)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, None, None), (0, 1, None), (None, None, 0)], ids=str)
def test_sample_group(in_dims, backend):
    shapes = [[4, 9], [4, 9], [4]]
    for shape, dim in zip(shapes, in_dims, strict=True):
        if dim is not None:
            shape.insert(dim, V)
    index, valid = _whole(-1, 5, *shapes[0]), _whole(0, 2, *shapes[1], seed=1) > 0
    uniform = torch.rand(shapes[2], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _check(lambda i, v, u: ops.sample_group(i, valid=v, uniform=u, backend=backend), in_dims, index, valid, uniform)


def test_sample_group_draws_as_vmap_is_told(backend):
    index = _whole(0, 50, V, 4, 9)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda i: ops.sample_group(i, backend=backend))(index)
    target = torch.vmap(lambda i: ops.sample_group(i, backend=backend), randomness="different")(index)
    assert target.shape == (V, 4) and bool((index == target[..., None]).any(-1).all())


MASKS = [(0, 0, None, 0, 0), (1, None, None, 0, None), (0, 0, 0, 0, None), (None, 0, None, None, 0), (2, 1, 1, 1, 2)]


def _mask_arguments(in_dims):
    shapes = [[2, 4, C], [2, 4], [C], [2], [2, 4]]
    for shape, dim in zip(shapes, in_dims, strict=True):
        if dim is not None:
            shape.insert(dim, V)
    features, index, token = _normal(*shapes[0]), _whole(-1, 3, *shapes[1]), _normal(*shapes[2], seed=1)
    return features, index, token, _whole(-1, 3, *shapes[3], seed=1), _whole(0, 4, *shapes[4], seed=2) > 0


@pytest.mark.parametrize("in_dims", MASKS, ids=str)
def test_group_mask(in_dims, backend):
    _check(
        lambda x, i, m, t, v: ops.group_mask(x, i, m, t, valid=v, backend=backend), in_dims, *_mask_arguments(in_dims)
    )  # fmt: skip


@pytest.mark.parametrize("in_dims", [dims for dims in MASKS if dims[0] is not None], ids=str)
def test_group_mask_in_place(in_dims, backend):
    features, *others = _mask_arguments(in_dims)

    def mask(x, i, m, t, v):
        return ops.group_mask(x, i, m, t, valid=v, inplace=True, backend=backend)

    written, wanted = features.clone(), features.clone()
    labels = [
        mask(*(t if d is None else t.select(d, each) for t, d in zip((wanted, *others), in_dims, strict=True)))[1]
        for each in range(V)
    ]
    masked, got = torch.vmap(mask, in_dims)(written, *others)
    assert torch.equal(written, wanted) and torch.equal(got, torch.stack(labels))
    assert torch.equal(masked, wanted.movedim(in_dims[0], 0)) and not torch.equal(written, features)
    if in_dims[2] is None:
        none = [t if d is None else t.movedim(d, 0)[:0] for t, d in zip((features, *others), in_dims, strict=True)]
        dims = [None if d is None else 0 for d in in_dims]
        assert torch.vmap(mask, tuple(dims))(*none)[1].shape == (0, 2, 4)


def test_gradients_within_and_around_a_map(backend):
    """Of a distance: per-sample gradients (a map of grad) and the gradient of a mapped call are those of a loop."""
    features, codebook = _normal(V, N, C), _normal(K, C, seed=1)

    def loss(x, d):
        return ops.codebook_lookup(x, d, return_distance=True, backend=backend)[1].square().sum()

    _check(torch.func.grad(loss, (0, 1)), (0, None), features, codebook)
    leaves = [tensor.clone().requires_grad_() for tensor in (features, codebook)]
    torch.vmap(loss, (0, None))(*leaves).sum().backward()
    alone = [tensor.clone().requires_grad_() for tensor in (features, codebook)]
    torch.stack([loss(x, alone[1]) for x in alone[0]]).sum().backward()
    assert torch.equal(leaves[0].grad, alone[0].grad)
    torch.testing.assert_close(leaves[1].grad, alone[1].grad)  # slices are added in another order
    mapped = torch.func.grad(lambda x: torch.vmap(loss, (0, None))(x, codebook).sum())(features)
    torch.testing.assert_close(mapped, alone[0].grad)  # by plain torch, which rounds elsewhere


@pytest.mark.parametrize("straight", [True, False])
def test_gradient_of_what_has_a_straight_through_gradient(straight, backend):
    features, codebook = _normal(V, N, C).requires_grad_(), _normal(K, C, seed=1)

    def quantized(x):
        if straight:
            return ops.straight_through(x, codebook, ops.codebook_lookup(x, codebook), backend=backend)
        return ops.residual_lookup(x, codebook, num_levels=2, backend=backend)[1]

    weights = _normal(V, N, C, seed=2)
    (torch.vmap(quantized)(features) * weights).sum().backward()
    assert torch.equal(features.grad, weights)


@pytest.mark.parametrize(
    "codes",
    [
        lambda x, codebook: ops.diveq(x, codebook, ops.codebook_lookup(x, codebook), variance=0),
        lambda x, codebook: ops.fsq_codes(ops.fsq(x, [3] * C)[0], [3] * C) * x,
        lambda x, codebook: ops.lfq_codes(ops.lfq(x)[0], C) * x,
    ],
)
def test_gradient_by_torch_func_within_a_map(codes):
    """What is mapped lies within what is differentiated; the check of the index reads it there."""
    codebook = _normal(K, C, seed=1)
    gradient = torch.func.grad(lambda x: codes(x, codebook).square().sum())
    features = _normal(V, N, C)
    mapped = torch.vmap(gradient, randomness="different")(features)
    torch.testing.assert_close(mapped, torch.stack([gradient(x) for x in features]))


@pytest.mark.parametrize("codes", [lambda x, i: ops.diveq(x, x, i), lambda x, i: ops.lfq_codes(i, 2) * x.sum()])
def test_an_index_too_high_is_refused_in_a_gradient_within_a_map(codes):
    def gradient(x, index):
        return torch.func.grad(lambda x: codes(x, index + 0 * x.sum().long()).sum())(x)

    with pytest.raises(ValueError, match=f"index: expected values below .*, got {N}"):
        torch.vmap(gradient, randomness="different")(_normal(V, N, C), _whole(N, N + 1, V, N))


@pytest.mark.skipif(not CAN_COMPILE, reason="needs the compiled extension")
def test_a_map_within_a_compiled_graph():
    features, codebook = _normal(V, N, C), _normal(K, C, seed=1)
    mapped = torch.vmap(lambda x: ops.codebook_lookup(x, codebook))
    compiled = torch.compile(mapped, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(features), mapped(features))
