"""torch.library registration: opcheck of every op and backend, and torch.compile with dynamic sizes in one graph."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from soho_fast import ops
from soho_fast.ops import triton_backend


def _features(*shape, requires_grad=False):
    return torch.randn(*shape, requires_grad=requires_grad)


def _samples():
    codebook, index = torch.randn(9, 5), torch.randint(9, (3, 7))
    valid, target = torch.rand(3, 7) < 0.8, torch.randint(9, (3,))
    uniform = torch.rand(3, dtype=torch.float64)
    shapes = itertools.cycle((((7, 5), (9, 5)), ((3, 7, 5), (3, 9, 5))))
    others = [
        (*(torch.randn(shape, requires_grad=True) for shape in pair), True, True, None, None, None, metric, topk)
        for pair, (metric, topk) in zip(shapes, ((1, 1), (2, 1), (0, 3), (1, 4)), strict=False)
    ]
    return {
        "codebook_lookup": [
            (_features(3, 7, 5), codebook, False, False),
            (_features(7, 5, requires_grad=True), codebook.clone().requires_grad_(), True, True),
            (_features(3, 7, 5, requires_grad=True), torch.randn(3, 9, 5, requires_grad=True), True, True),
            (_features(0, 5), codebook, True, False),
            (_features(40, 5), codebook, True, False, None, torch.randn(5, 2), torch.randint(-1, 9, (40,))),
            *others,
        ],
        "pack_codebook": [
            (codebook,),
            (torch.randn(3, 9, 5),),
            (codebook, torch.randn(5, 3)),
            *((args[1].detach(), None, args[7]) for args in others[:2]),
        ],
        "residual_lookup": [
            (_features(3, 7, 5), codebook, 2, False),
            (_features(7, 5, requires_grad=True), torch.randn(3, 9, 5), 3, True),
            (_features(7, 5).bfloat16().requires_grad_(), torch.randn(3, 9, 5), 3, True),
        ],
        "straight_through": [
            (_features(3, 7, 5, requires_grad=True), codebook, index),
            (_features(3, 7, 5).bfloat16(), torch.randn(3, 9, 5), index),
        ],
        "codebook_stats": [(_features(3, 7, 5), index, 9, None), (_features(3, 7, 5).half(), index, 9, valid)],
        "codebook_ema_": [(codebook.clone(), torch.ones(9), torch.randn(9, 5), 0.9)],
        "scatter_mean_ema_": [
            (codebook.clone(), _features(3, 7, 5), index, 0.9, valid),
            (codebook.clone(), _features(3, 7, 5), index, 0.9, None),
        ],
        "sample_group": [(index, None, uniform), (index, valid, uniform)],
        "group_mask": [
            (_features(3, 7, 5, requires_grad=True), index, torch.randn(5, requires_grad=True), target, valid),
            (_features(3, 5, 7).transpose(1, 2), index, torch.randn(5), target, None),
        ],
        "group_mask_": [(_features(3, 7, 5), index, torch.randn(5), target, valid)],
    }


ON_GPU = [name for name in ops.available_backends() if name in ("triton", "cuda")] if torch.cuda.is_available() else []
ON_CPU = ("triton",) if triton_backend.INTERPRETING else ("reference", "cpu")
BACKENDS = [name for name in ops.available_backends() if name in ON_CPU]


METRIC_AT = {"codebook_lookup": 7, "pack_codebook": 2}


@pytest.mark.parametrize("name", _samples())
@pytest.mark.parametrize("backend_name", [*BACKENDS, *ON_GPU])
def test_opcheck(name, backend_name):
    if backend_name in ("triton", "cuda") and name == "residual_lookup":
        pytest.skip("refused by name")
    op = getattr(torch.ops.soho_fast, f"{name}_{backend_name}").default
    with torch.device("cuda" if backend_name in ON_GPU else "cpu"):
        samples = _samples()[name]
    if backend_name in ("triton", "cuda"):  # which have the metric of number 0 and no topk
        samples = [args for args in samples if name not in METRIC_AT or args[METRIC_AT[name] :] in ((), (0,))]
    for args in samples:
        torch.library.opcheck(op, args)


def _dictionary(features, codebook, mask_token, valid, uniform, backend):
    """All ops in the way the visual dictionary uses them."""
    found = ops.codebook_lookup(features, codebook, backend=backend)
    index, distance = ops.codebook_lookup(
        features,
        codebook,
        subspace=codebook[:4].T.contiguous(),
        warm_start=found,
        return_distance=True,
        backend=backend,
    )
    others = [("cosine", None), ("dot", 3)] if backend not in ("triton", "cuda") else []
    found = [
        ops.codebook_lookup(features, codebook, return_distance=True, metric=metric, topk=topk, backend=backend)
        for metric, topk in others
    ]
    quantized = ops.straight_through(features, codebook, index, backend=backend)
    counts, sums = ops.codebook_stats(features, index, codebook.shape[0], valid=valid, backend=backend)
    ops.codebook_ema_(codebook, counts, sums, 0.9, backend=backend)
    ops.scatter_mean_ema_(codebook, features, index, 0.5, valid=valid, backend=backend)
    target = ops.sample_group(index, valid=valid, uniform=uniform, backend=backend)
    masked, labels = ops.group_mask(quantized, index, mask_token, target, valid=valid, backend=backend)
    with torch.no_grad():
        copy = masked * 2
        ops.group_mask(copy, index, mask_token, target, inplace=True, backend=backend)
    return masked, labels, distance, copy, found


def _inputs(num_images, num_tokens, device):
    torch.manual_seed(num_images)
    with torch.device(device):
        return (
            torch.randn(num_images, num_tokens, 12, requires_grad=True),
            torch.randn(20, 12),
            torch.randn(12, requires_grad=True),
            torch.rand(num_images, num_tokens) < 0.8,
            torch.rand(num_images, dtype=torch.float64),
        )


def _run(function, inputs, backend):
    features, codebook, mask_token, valid, uniform = inputs
    codebook = codebook.clone()
    masked, labels, distance, copy, found = function(features, codebook, mask_token, valid, uniform, backend)
    grads = torch.autograd.grad(masked.square().sum() + distance.sum(), [features, mask_token])
    return [masked, labels, distance, copy, codebook, found, *grads]


@pytest.mark.parametrize("backend_name", [None, *BACKENDS, *ON_GPU])
def test_compile_in_one_graph_without_recompiling(backend_name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_dictionary, backend=counter, fullgraph=True, dynamic=True)
    for num_images, num_tokens in [(3, 11), (5, 17), (4, 30)]:
        inputs = _inputs(num_images, num_tokens, "cuda" if backend_name in ON_GPU else "cpu")
        expected = _run(_dictionary, inputs, backend_name)
        for got, wanted in zip(_run(compiled, inputs, backend_name), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend_name", [None, *ON_GPU])
def test_compile_with_inductor(backend_name):
    torch._dynamo.reset()
    compiled = torch.compile(_dictionary, fullgraph=True, dynamic=True)
    inputs = _inputs(3, 11, "cuda" if backend_name in ON_GPU else "cpu")
    expected = _run(_dictionary, inputs, backend_name)
    for got, wanted in zip(_run(compiled, inputs, backend_name), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_compile_in_place_mask_with_gradient(backend_name):
    torch._dynamo.reset()

    def function(features, index, token, target):
        return ops.group_mask(features * 2, index, token, target, inplace=True, backend=backend_name)

    index, target = torch.randint(4, (3, 8)), torch.tensor([0, 1, -1])
    results = []
    for call in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        features, token = torch.randn(3, 8, 6, requires_grad=True), torch.randn(6, requires_grad=True)
        masked, labels = call(features, index, token, target)
        results.append([masked, labels, *torch.autograd.grad(masked.square().sum(), [features, token])])
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda x, d, index: ops.codebook_lookup(x, d, topk=2), (7, 2)),
        (lambda x, d, index: ops.rotation_trick(x, d, index), (7, 5)),
        (lambda x, d, index: ops.sample_group(index[None], uniform=x[:1, 0].double()), (1,)),
    ],
)
def test_fake_tensors_get_shapes(call, shape):
    """Their values, as whether an index is beyond the codes, nobody can ask for."""
    with FakeTensorMode():
        assert call(torch.randn(7, 5), torch.randn(9, 5), torch.zeros(7, dtype=torch.int64)).shape == shape


def test_meta_tensors_get_shapes():
    features, codebook = torch.empty(2, 7, 5, device="meta"), torch.empty(9, 5, device="meta")
    index, distance = ops.codebook_lookup(features, codebook, return_distance=True)
    assert index.shape == distance.shape == (2, 7)
    counts, sums = ops.codebook_stats(features, index, 9)
    assert counts.shape == (9,) and sums.shape == (9, 5)
    masked, labels = ops.group_mask(features, index, torch.empty(5, device="meta"), ops.sample_group(index))
    assert masked.shape == (2, 7, 5) and labels.shape == (2, 7)
