"""FSQ and LFQ: against the published formulas, other libraries, and themselves in other batches and layouts."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soho_fast.ops import fsq, fsq_codes, lfq, lfq_codes
from soho_fast.ops.lookup_free import fsq_bounded

LEVELS = [[8, 5, 5, 5], [2, 3, 4, 7], [1000], [8, 8, 8, 6, 5]]


def published(features, levels):
    """The formula of vector-quantize-pytorch, in float64; of two values, which it refuses, the sign."""
    levels = torch.tensor(levels)
    half = (levels.double() - 1) * (1 + 1e-3) / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0).double()
    shift = torch.where(levels == 2, 0.0, (offset / half).atanh())
    bounded = (features.double() + shift).tanh() * half - offset
    rounded = bounded.round()
    places = torch.cumprod(torch.tensor([1, *levels[:-1]]), 0)
    return ((rounded + levels // 2) * places).sum(-1).long(), rounded / (levels // 2), bounded / (levels // 2)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fsq(levels, dtype):
    features = (3 * torch.randn(40, 50, len(levels))).to(dtype).requires_grad_()
    index, quantized = fsq(features, levels)
    expected_index, expected, smooth = published(features, levels)
    assert torch.equal(index, expected_index) and quantized.dtype == dtype
    torch.testing.assert_close(quantized, expected.to(dtype))
    assert torch.equal(fsq_codes(index, levels).to(dtype), quantized)
    torch.testing.assert_close(fsq_bounded(features, levels).double(), smooth, atol=1e-5, rtol=1e-4)
    grad = torch.randn(quantized.shape).to(dtype)
    (found,) = torch.autograd.grad(quantized, features, grad)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
    torch.testing.assert_close(found, torch.autograd.grad(smooth.to(dtype), features, grad)[0], **close)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_all_codes_of_fsq_are_reached_and_none_beyond(levels):
    channels = len(levels)
    features = torch.tensor([math.inf, -math.inf, math.nan, 1e30, -1e30])[:, None].expand(5, channels)
    index = fsq(features, levels)[0]
    last = math.prod(levels) - 1
    assert index.tolist() == [last, 0, 0, last, 0]
    line = torch.linspace(-9, 9, 60_000)[:, None].expand(-1, channels)
    digits = fsq_codes(fsq(line, levels)[0], levels)
    assert [len(column.unique()) for column in digits.T] == levels


def test_the_sign_decides_between_two_levels():
    index, quantized = fsq(torch.tensor([[-1e-6], [1e-6]]), [2])
    assert index.tolist() == [0, 1] and quantized.tolist() == [[-1], [0]]


@pytest.mark.parametrize("codes", [lambda index: fsq_codes(index, [3, 5]), lambda index: lfq_codes(index, 4)])
def test_padding_gives_zeros(codes):
    index = torch.tensor([[-1, 14], [3, -100]])
    found = codes(index)
    assert not found[0, 0].any() and not found[1, 1].any()
    assert torch.equal(found[0, 1], codes(torch.tensor(14))) and found[0, 1].any()
    assert torch.equal(torch.vmap(codes)(index), found)
    assert torch.equal(torch.compile(codes, fullgraph=True, dynamic=True, backend="aot_eager")(index), found)


def test_a_number_between_two_levels_changes_at_the_edge():
    """The edge of tanh(x) * 2.002 between 0 and 1, and the float32 numbers on both sides of it."""
    edge = math.atanh(0.5 / 2.002)
    near = torch.tensor([edge], dtype=torch.float32)
    around = torch.cat([near.nextafter(torch.tensor(-1.0)), near, near.nextafter(torch.tensor(1.0))])
    assert fsq(around[:, None], [5])[0].tolist() == [2 + (float(x) > edge) for x in around]


@pytest.mark.parametrize("call", [lambda x: fsq(x, [8, 5, 5, 5]), lfq])
def test_batch_layout_and_autocast_change_no_bit(call):
    features = 2 * torch.randn(37, 11, 4)
    features[0, 0] = torch.tensor([torch.nan, -0.0, torch.inf, -torch.inf])
    index, quantized = call(features)
    singles = [call(row) for row in features.flatten(0, 1)]
    assert torch.equal(torch.stack([one for one, _ in singles]), index.flatten())
    assert torch.equal(torch.stack([one for _, one in singles]), quantized.flatten(0, 1))
    assert torch.equal(call(features.mT.contiguous().mT)[0], index)
    with torch.autocast("cpu", torch.bfloat16):
        again = call(features)
    assert torch.equal(again[0], index) and torch.equal(again[1], quantized)
    assert call(features[:0])[0].shape == (0, 11)
    assert torch.equal(torch.vmap(call)(features)[0], index)
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")(features)
    assert torch.equal(compiled[0], index) and torch.equal(compiled[1], quantized)


@pytest.mark.parametrize("levels", [[3], [8, 5, 9], [5000, 4000], None], ids=str)
def test_features_stay_and_a_gradient_changes_no_bit(levels):
    def call(features):
        return lfq(features) if levels is None else fsq(features, levels)

    features = 2 * torch.randn(30, 4 if levels is None else len(levels))
    kept, tracked = features.clone(), features.clone().requires_grad_()
    with torch.inference_mode():  # what later calls find kept is made here
        index, quantized = call(features)
    again = call(tracked)
    again[1].sum().backward()
    assert torch.equal(features, kept) and torch.equal(again[0], index) and torch.equal(again[1], quantized)
    assert tracked.grad.isfinite().all() and tracked.grad.any()


@pytest.mark.parametrize("wrong", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("call", [lambda x: fsq(x, [8, 5, 5])[1], lambda x: lfq(x)[1]])
def test_forward_mode_is_backward_mode(call, wrong):
    features, tangent = torch.randn(1, 3), torch.randn(1, 3)
    features[0, 0] = features[0, 0] if wrong is None else wrong
    moved = torch.func.jvp(call, (features,), (tangent,))[1]
    back = torch.func.vjp(call, features)[1](torch.ones(1, 3))[0]
    assert wrong is None or back[0, 0] == 0
    torch.testing.assert_close(moved, back * tangent)  # no channel depends on another


def test_lfq():
    features = torch.randn(6, 20, 10).requires_grad_()
    index, quantized = lfq(features)
    assert torch.equal(quantized, torch.where(features > 0, 1.0, -1.0))
    assert index[2, 3] == int("".join("1" if x > 0 else "0" for x in features[2, 3]), 2)
    assert torch.equal(lfq_codes(index, 10), quantized)
    grad = torch.randn(6, 20, 10)
    assert torch.equal(torch.autograd.grad(quantized, features, grad)[0], grad)
    index, quantized = lfq(torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf]))
    assert index == 0b00010 and quantized.tolist() == [-1, -1, -1, 1, -1]
    assert lfq(torch.ones(63))[0] == 2**63 - 1 and lfq_codes(torch.tensor(2**63 - 1), 63).min() == 1


@pytest.mark.parametrize("num_channels", [1, 9, 24, 25, 52, 53, 63])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_index_of_lfq_has_all_its_bits(num_channels, dtype):
    features = torch.randn(50, num_channels).to(dtype)
    features[-1] = 1
    expected = [int("".join("01"[x > 0] for x in row), 2) for row in features.tolist()]
    assert lfq(features)[0].tolist() == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert lfq(features)[0].tolist() == expected


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("call", [lambda x: fsq(x, [8, 5, 5])[1], lambda x: lfq(x)[1]])
def test_a_feature_that_is_not_finite_has_no_gradient(call, wrong):
    features = torch.randn(4, 3)
    features[1, 2] = wrong
    features.requires_grad_()
    grad = torch.autograd.grad(call(features), features, torch.ones(4, 3))[0]
    assert grad[1, 2] == 0 and (grad != 0).sum() == 11


def test_no_value_of_fsq_is_divided_by_a_number():
    """A GPU multiplies by the number's reciprocal, rounded: 3 / 7 would have other bits than on a CPU."""
    numbers = []

    class Divisions(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.div, torch.ops.aten.div_):
                numbers.append(args[1])
            return func(*args, **(kwargs or {}))

    with Divisions():
        fsq(torch.randn(20, 2), [15, 7])
    assert numbers and all(isinstance(number, torch.Tensor) for number in numbers)


def test_they_are_vector_quantize_pytorchs():
    theirs = pytest.importorskip("vector_quantize_pytorch")
    features = torch.randn(2, 500, 4)
    model = theirs.FSQ([8, 5, 5, 5])
    quantized, index = model(features)
    agree = fsq(features, [8, 5, 5, 5])[0] == index
    assert agree.float().mean() > 0.999  # theirs rounds in float32
    torch.testing.assert_close(fsq(features, [8, 5, 5, 5])[1][agree], quantized[agree])
    quantized, index, _ = theirs.LFQ(dim=4, codebook_size=16).eval()(features)
    assert torch.equal(lfq(features)[0], index) and torch.equal(lfq(features)[1], quantized)
