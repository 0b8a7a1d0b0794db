"""Second derivatives, which are those of plain torch's own formulas; forward mode and torch.func, which are refused."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from soho_fast.ops import (
    MovingSubspace,
    codebook_ema_,
    codebook_lookup,
    codebook_stats,
    group_mask,
    prepare_codebook,
    residual_lookup,
    rotation_trick,
    scatter_mean_ema_,
    straight_through,
)

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


def _check_hessians(of, formula, inputs):
    """Second derivatives are the formula's, none of which are all zero."""
    inputs = tuple(value.requires_grad_() for value in inputs)
    got, expected = (torch.autograd.functional.hessian(each, inputs) for each in (of, formula))
    for rows, expected_rows in zip(got, expected, strict=True):
        assert all(map(torch.equal, rows, expected_rows)) and any(block.any() for block in expected_rows)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_second_derivatives_of_the_distance(batch, backend):
    features, codebook = _problem(batch)
    of, formula = _distance(backend), _formula(codebook_lookup(features, codebook, backend=backend))
    _check_hessians(
        lambda x, d: of(x, d).square().sum(), lambda x, d: formula(x, d).square().sum(), (features, codebook)
    )


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


def test_straight_through_twice(backend):
    features, codebook = _problem(())
    features.requires_grad_()
    index, weight = torch.tensor([1, 4, 4, 0, 2]), _whole(5, 3, seed=5)
    quantized = straight_through(features, codebook, index, backend=backend)
    (first,) = torch.autograd.grad((quantized.square() * weight).sum(), features, create_graph=True)
    assert torch.equal(first, 2 * quantized * weight)
    (second,) = torch.autograd.grad(first.sum(), features)
    assert torch.equal(second, 2 * weight)


MASK_INDEX, MASK_TARGET = torch.tensor([[0, 1, 1, 2], [2, 2, 0, -1]]), torch.tensor([1, 2])


def _masked(backend, inplace):
    index, target = (t.to(torch.empty(0).device) for t in (MASK_INDEX, MASK_TARGET))
    return lambda features, token: group_mask(features * 1.0, index, token, target, inplace=inplace, backend=backend)[0]


def _masked_formula(features, token):
    hit = torch.eq(MASK_INDEX, MASK_TARGET[:, None])[..., None]
    return torch.where(hit.to(features.device), token, features)


@pytest.mark.parametrize("inplace", [False, True])
def test_second_derivatives_of_the_mask(inplace, backend):
    of, inputs = _masked(backend, inplace), (_whole(2, 4, 3, seed=6), _whole(3, seed=7))
    _check_hessians(lambda x, t: of(x, t).pow(3).sum(), lambda x, t: _masked_formula(x, t).pow(3).sum(), inputs)


def test_a_distance_within_activation_checkpointing(backend):
    features, codebook = (value.requires_grad_() for value in _problem(()))
    expected = torch.autograd.grad(_distance(backend)(features, codebook).sum(), (features, codebook))
    distance = checkpoint(_distance(backend), features, codebook, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(distance.sum(), (features, codebook)), expected, strict=True):
        assert torch.equal(one, other)


# torch would drop a tangent that enters an op: a wrong derivative, without a word.
FEATURES, CODES = _problem(())
CHOSEN, TOKEN, LABEL = torch.tensor([1, 4, 4, 0, 2]), torch.ones(3), torch.tensor([[0, 1, 0, 1, 1]])
PREPARED = prepare_codebook(CODES)
TRANSFORMS = {
    "vmap": lambda of, x: torch.vmap(of)(x[None]),
    "jvp": lambda of, x: torch.func.jvp(of, (x,), (x,)),
    "grad": lambda of, x: torch.func.grad(lambda x: of(x).sum())(x),
    "vmap of jvp": lambda of, x: torch.vmap(lambda x: torch.func.jvp(of, (x,), (x,)))(x[None]),
}
USES = {
    "lookup": (lambda x: codebook_lookup(x, CODES, return_distance=True)[1], FEATURES),
    "lookup's codes": (lambda d: codebook_lookup(FEATURES, d, return_distance=True)[1], CODES),
    "index": (lambda x: codebook_lookup(x, CODES) * x[0, 0], FEATURES),
    "prepared": (lambda x: codebook_lookup(x, PREPARED, return_distance=True)[1], FEATURES),
    "prepared index": (lambda x: codebook_lookup(x, PREPARED) * x[0, 0], FEATURES),
    "prepare": (lambda d: codebook_lookup(FEATURES, prepare_codebook(d), return_distance=True)[1], CODES),
    "moving subspace": (lambda d: (MovingSubspace().of(d), d)[1], torch.randn(256, 128)),
    "straight through": (lambda x: straight_through(x, CODES, CHOSEN), FEATURES),
    "rotation trick": (lambda x: rotation_trick(x, CODES, CHOSEN), FEATURES),
    "residual": (lambda x: residual_lookup(x, CODES[None])[1], FEATURES),
    "statistics": (lambda x: codebook_stats(x, CHOSEN, 6)[1], FEATURES),
    "moving average": (lambda d: codebook_ema_(d * 1, torch.ones(6), CODES, 0.5), CODES),
    "fused": (lambda d: scatter_mean_ema_(d * 1, FEATURES, CHOSEN, 0.5), CODES),
    "mask": (lambda x: group_mask(x[None], LABEL, TOKEN, LABEL[:, 0])[0], FEATURES),
    "mask's token": (lambda t: group_mask(FEATURES[None], LABEL, t, LABEL[:, 0])[0], TOKEN),
    "mask in place": (lambda x: group_mask(x[None] * 1, LABEL, TOKEN, LABEL[:, 0], inplace=True)[0], FEATURES),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("use", USES)
def test_forward_mode_and_transforms_are_refused(use, transform):
    of, at = USES[use]
    with pytest.raises(NotImplementedError, match=r"^\w+: the ops have neither forward mode nor torch.func"):
        TRANSFORMS[transform](of, at.clone())


def test_a_tangent_that_enters_a_backward_is_refused_as_well():
    codebook = CODES.clone().requires_grad_()
    distance = codebook_lookup(FEATURES, codebook, return_distance=True)[1]
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"^grad: the ops have neither forward mode"):
        torch.autograd.grad(distance, codebook, forward_ad.make_dual(torch.ones(5), torch.ones(5)))


def test_without_tangents_ops_run_beside_forward_mode():
    expected = codebook_lookup(FEATURES, CODES)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(FEATURES, FEATURES)
        assert torch.equal(codebook_lookup(dual.detach(), CODES), expected)


def test_transforms_in_a_compiled_graph_are_right_or_refused():
    """torch maps an op by a loop there."""

    def compiled(function):
        torch._dynamo.reset()
        return torch.compile(function, backend="aot_eager", fullgraph=True)

    of, features = USES["lookup"][0], torch.stack([FEATURES, FEATURES + 1])
    assert torch.equal(compiled(torch.vmap(of))(features), of(features))
    for transform in (lambda x: torch.func.jvp(of, (x,), (x,)), torch.func.grad(lambda x: of(x).sum())):
        with pytest.raises(Exception, match=r"neither forward mode nor|setup_context"):
            compiled(transform)(FEATURES)
