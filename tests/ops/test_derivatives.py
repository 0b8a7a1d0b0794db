"""Second derivatives and forward mode: what plain torch's own formulas give, by every way torch has of asking."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from soho_fast.ops import codebook_lookup, codebook_stats, group_mask, straight_through, triton_backend

# The formulas are at most quadratic: with whole numbers and a power of two as a step, differences have no error.
EXACT = {"eps": 0.125, "atol": 1e-6, "rtol": 0.0}
BATCHES = [(), (2,)]


def _whole(*shape, seed):
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


def _problem(batch):
    """Features near codes that lie far apart, so that a step changes no index."""
    codebook = _whole(*batch, 6, 3, seed=0) + 64.0 * torch.arange(6)[:, None]
    features = codebook[..., [1, 4, 4, 0, 2], :] + _whole(*batch, 5, 3, seed=1)
    return features, codebook


def _chosen(codebook, index):
    return codebook[index] if codebook.dim() == 2 else codebook.gather(-2, index[..., None].expand(*index.shape, 3))


def _formula(index):
    return lambda features, codebook: (features - _chosen(codebook, index)).square().sum(-1)


def _distance(backend):
    return lambda features, codebook: codebook_lookup(features, codebook, return_distance=True, backend=backend)[1]


@pytest.mark.parametrize("batch", [(), (3,)], ids=["shared codebook", "batched codebook"])
def test_gradient_of_the_codebook_has_the_bits_of_the_statistics(batch, backend):
    """Members are added in order, by the op that is deterministic on every device; nothing is added by atomics."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(*batch, 200, 5, generator=generator)
    codebook = torch.randn(*batch, 4, 5, generator=generator).requires_grad_()
    index, distance = codebook_lookup(features, codebook, return_distance=True, backend=backend)
    called = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        (grad,) = torch.autograd.grad(distance.sum(), codebook)
    assert sum("codebook_stats" in name for name in called) == 1
    assert not [name for name in called if any(word in name for word in ("index_add", "scatter", "index_put"))]
    chosen = torch.take_along_dim(codebook.detach(), index.unsqueeze(-1), -2) if batch else codebook.detach()[index]
    part = -2 * (features - chosen)
    books = zip(part, index, grad, strict=True) if batch else [(part, index, grad)]
    for part_NC, index_N, grad_KC in books:
        assert torch.equal(codebook_stats(part_NC, index_N, 4, backend=backend)[1], grad_KC)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_second_derivatives_of_the_distance(batch, backend):
    features, codebook = (t.requires_grad_() for t in _problem(batch))
    index = codebook_lookup(features, codebook, backend=backend)
    got, expected = (
        torch.autograd.functional.hessian(lambda x, d, of=of: of(x, d).square().sum(), (features, codebook))
        for of in (_distance(backend), _formula(index))
    )
    for rows, expected_rows in zip(got, expected, strict=True):
        for block, expected_block in zip(rows, expected_rows, strict=True):
            assert expected_block.any() and torch.equal(block, expected_block)


@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision")
@pytest.mark.skipif(triton_backend.INTERPRETING, reason="hundreds of lookups, which cost the interpreter minutes")
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_second_derivatives_against_differences(batch, backend):
    features, codebook = (t.requires_grad_() for t in _problem(batch))
    weight = _whole(*batch, 5, seed=2).requires_grad_()
    assert gradgradcheck(_distance(backend), (features, codebook), weight, **EXACT)


def test_second_derivatives_where_the_codebook_alone_is_differentiated(backend):
    features, codebook = _problem(())
    codebook.requires_grad_()
    distance = _distance(backend)(features, codebook)
    (first,) = torch.autograd.grad(distance.sum(), codebook, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), codebook)
    counts = torch.tensor([1, 1, 1, 0, 2, 0])[:, None]
    assert torch.equal(second, 4 * counts * first.detach())


def test_the_codebook_may_move_before_a_second_backward(backend):
    """The usual order of a training step; the distance keeps the chosen codes, not the codebook."""
    features, codebook = _problem(())
    features.requires_grad_()
    distance = _distance(backend)(features, codebook)
    codebook.neg_()
    (first,) = torch.autograd.grad(distance.sum(), features, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), features)
    assert torch.equal(second, 4 * first.detach())


def _tangents(batch):
    return _whole(*batch, 5, 3, seed=3), _whole(*batch, 6, 3, seed=4)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("of", ["features", "codebook", "both"])
def test_forward_mode_of_the_distance(batch, of, backend):
    inputs, tangents = _problem(batch), list(_tangents(batch))
    for position, name in enumerate(("features", "codebook")):
        if of not in (name, "both"):
            tangents[position].zero_()
    index, _ = codebook_lookup(*inputs, return_distance=True, backend=backend)
    got = torch.func.jvp(_distance(backend), inputs, tuple(tangents))
    expected = torch.func.jvp(_formula(index), inputs, tuple(tangents))
    assert expected[1].any() and torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_forward_mode_has_the_bits_of_the_distance(backend):
    features, codebook = torch.randn(40, 19), torch.randn(30, 19)
    distance = _distance(backend)(features, codebook)
    dual, _ = torch.func.jvp(_distance(backend), (features, codebook), (features, codebook))
    assert torch.equal(dual, distance)


def test_forward_mode_over_reverse_mode(backend):
    """Hessian times vector, of a function of the distance."""
    features, codebook = _problem(())
    tangents = _tangents(())
    index = codebook_lookup(features, codebook, backend=backend)
    results = []
    for of in (_distance(backend), _formula(index)):
        inputs = [t.clone().requires_grad_() for t in (features, codebook)]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, v) for t, v in zip(inputs, tangents, strict=True)]
            grads = torch.autograd.grad(of(*duals).square().sum(), inputs, create_graph=True)
            results.append([forward_ad.unpack_dual(grad).tangent for grad in grads])
    for got, expected in zip(*results, strict=True):
        assert expected.any() and torch.equal(got, expected)


def test_reverse_mode_over_forward_mode(backend):
    features, codebook = _problem(())
    index = codebook_lookup(features, codebook, backend=backend)
    grads = []
    for of in (_distance(backend), _formula(index)):
        inputs = [t.clone().requires_grad_() for t in (features, codebook)]
        _, tangent = torch.func.jvp(lambda *x, of=of: of(*x).square().sum(), tuple(inputs), _tangents(()))
        grads.append(torch.autograd.grad(tangent, inputs))
    for got, expected in zip(*grads, strict=True):
        assert expected.any() and torch.equal(got, expected)


def test_straight_through_in_forward_mode(backend):
    features, codebook = _problem(())
    index, tangent = torch.tensor([1, 4, -1, 0, 2]), _tangents(())[0]
    codes = straight_through(features, codebook, index, backend=backend)
    value, moved = torch.func.jvp(
        lambda x: straight_through(x, codebook, index, backend=backend), (features,), (tangent,)
    )
    assert torch.equal(value, codes) and torch.equal(moved, tangent)
    value, moved = torch.func.jvp(
        lambda d: straight_through(features, d, index, backend=backend), (codebook,), (_tangents(())[1],)
    )
    assert torch.equal(value, codes) and not moved.any(), "a codebook gets no derivative"


def _nested(of, x, along, weight):
    """The derivative of x along `along` of a derivative of another variable."""
    inner = lambda x: torch.func.jvp(lambda w: (w * of(x)).square(), (weight,), (torch.ones_like(weight),))[1]  # noqa: E731
    return torch.func.jvp(inner, (x,), (along,))[1]


def test_forward_mode_within_forward_mode(backend):
    """The outer derivative is of a variable that the inner one does not know."""
    features, codebook = _problem(())
    index, (along, along_codes) = torch.tensor([1, 4, 4, 0, 2]), _tangents(())
    distance, formula = _distance(backend), _formula(index)
    weight = _whole(5, seed=7)
    for variable, moved, of, expected in (
        (features, along, lambda x: distance(x, codebook), lambda x: formula(x, codebook)),
        (codebook, along_codes, lambda d: distance(features, d), lambda d: formula(features, d)),
    ):
        wanted = _nested(expected, variable, moved, weight)
        assert wanted.any() and torch.equal(_nested(of, variable, moved, weight), wanted)
    image, label, token, target = _whole(2, 5, 3, seed=8), torch.tensor([[0, 1, 0, 1, 1]] * 2), _whole(3, seed=9), TWO
    hit = (label == target[:, None])[..., None]
    wanted = _nested(lambda x: torch.where(hit, token, x), image, image, torch.ones(()))
    got = _nested(lambda x: group_mask(x, label, token, target, backend=backend)[0], image, image, torch.ones(()))
    assert wanted.any() and torch.equal(got, wanted)


TWO = torch.tensor([0, 1])


def test_straight_through_in_forward_mode_twice(backend):
    """d/dt of codes(x)^2 along v is 2 codes v, and its derivative along v is 2 v^2."""
    features, codebook = _problem(())
    index, along = torch.tensor([1, 4, 4, 0, 2]), _tangents(())[0]
    square = lambda x: straight_through(x, codebook, index, backend=backend).square()  # noqa: E731
    first = lambda x: torch.func.jvp(square, (x,), (along,))[1]  # noqa: E731
    value, second = torch.func.jvp(first, (features,), (along,))
    assert torch.equal(value, 2 * codebook[index] * along) and torch.equal(second, 2 * along.square())


def test_derivatives_by_torch_func(backend):
    features, codebook = _problem(())
    distance, formula = _distance(backend), _formula(torch.tensor([1, 4, 4, 0, 2]))
    for derivative in (torch.func.grad, torch.func.hessian):
        got, expected = (
            derivative(lambda x, of=of: of(x, codebook).square().sum())(features) for of in (distance, formula)
        )
        assert expected.any() and torch.equal(got, expected)
    index = torch.tensor([1, 4, 4, 0, 2])
    got = torch.func.grad(lambda x: straight_through(x, codebook, index, backend=backend).square().sum())(features)
    assert torch.equal(got, 2 * codebook[index])


def test_straight_through_twice(backend):
    features, codebook = _problem(())
    features.requires_grad_()
    index, weight = torch.tensor([1, 4, 4, 0, 2]), _whole(5, 3, seed=5)
    quantized = straight_through(features, codebook, index, backend=backend)
    (first,) = torch.autograd.grad((quantized.square() * weight).sum(), features, create_graph=True)
    assert torch.equal(first, 2 * quantized * weight)
    (second,) = torch.autograd.grad(first.sum(), features)
    assert torch.equal(second, 2 * weight)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(features, _tangents(())[0])
        quantized = straight_through(dual, codebook, index, backend=backend)
        (grad,) = torch.autograd.grad((quantized.square() * weight).sum(), features, create_graph=True)
        assert torch.equal(forward_ad.unpack_dual(grad).tangent, 2 * _tangents(())[0] * weight)


MASK_INDEX, MASK_TARGET = torch.tensor([[0, 1, 1, 2], [2, 2, 0, -1]]), torch.tensor([1, 2])


def _masked(backend, inplace):
    index, target = (t.to(torch.empty(0).device) for t in (MASK_INDEX, MASK_TARGET))
    return lambda features, token: group_mask(features * 1.0, index, token, target, inplace=inplace, backend=backend)[0]


def _masked_formula(features, token):
    hit = torch.eq(MASK_INDEX, MASK_TARGET[:, None])[..., None]
    return torch.where(hit.to(features.device), token, features)


@pytest.mark.parametrize("inplace", [False, True])
def test_second_derivatives_of_the_mask(inplace, backend):
    features, token = _whole(2, 4, 3, seed=6).requires_grad_(), _whole(3, seed=7).requires_grad_()
    got, expected = (
        torch.autograd.functional.hessian(lambda x, t, of=of: of(x, t).pow(3).sum(), (features, token))
        for of in (_masked(backend, inplace), _masked_formula)
    )
    for rows, expected_rows in zip(got, expected, strict=True):
        assert all(map(torch.equal, rows, expected_rows)) and any(block.any() for block in expected_rows)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("of", ["features", "token", "both"])
def test_forward_mode_of_the_mask(inplace, of, backend):
    inputs = _whole(2, 4, 3, seed=6), _whole(3, seed=7)
    tangents = _whole(2, 4, 3, seed=8), _whole(3, seed=9) + 9
    tangents = tuple(
        t if of in (name, "both") else t * 0 for t, name in zip(tangents, ("features", "token"), strict=True)
    )
    got = torch.func.jvp(_masked(backend, inplace), inputs, tangents)
    expected = torch.func.jvp(_masked_formula, inputs, tangents)
    assert expected[1].any() and all(map(torch.equal, got, expected))


def test_forward_mode_in_a_compiled_graph():
    features, codebook = _problem(())
    index = codebook_lookup(features, codebook)
    tangents = _tangents(())
    compiled = torch.compile(
        lambda *x: torch.func.jvp(_distance(None), x, tangents), backend="aot_eager", fullgraph=True
    )
    got, expected = compiled(features, codebook), torch.func.jvp(_formula(index), (features, codebook), tangents)
    assert all(map(torch.equal, got, expected))


def test_a_distance_within_activation_checkpointing(backend):
    features, codebook = (value.requires_grad_() for value in _problem(()))
    expected = torch.autograd.grad(_distance(backend)(features, codebook).sum(), (features, codebook))
    distance = checkpoint(_distance(backend), features, codebook, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(distance.sum(), (features, codebook)), expected, strict=True):
        assert torch.equal(one, other)
