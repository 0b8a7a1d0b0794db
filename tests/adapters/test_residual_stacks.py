"""A ResidualVQ in evaluation: one op for all levels, with the results of the loop over them.

Letters: B sequences, L tokens, C channels, K codes.
"""

import copy

import pytest
import torch
from quantizers import B, C, K, L, trained_pair
from vector_quantize_pytorch import ResidualVQ

from soho_fast import ops
from soho_fast.adapters import accelerate


@pytest.fixture
def calls(monkeypatch):
    """How many levels each call of `ops.residual_lookup` had."""
    levels, residual_lookup = [], ops.residual_lookup
    monkeypatch.setattr(
        ops,
        "residual_lookup",
        lambda *given, **named: (levels.append(named["num_levels"]), residual_lookup(*given, **named))[1],
    )
    return levels


def pair(**options):
    return trained_pair(ResidualVQ, **{"num_quantizers": 3, **options})


def check(original, accelerated, features, rtol=0.0, **arguments):
    for _ in range(3):
        expected, got = original(features, **arguments), accelerated(features, **arguments)
        assert len(got) == len(expected)
        for value, wanted in zip(got, expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=rtol, atol=rtol)  # types too


OPTIONS = {
    "plain": {},
    "shared codebook": {"shared_codebook": True},
    "projected": {"codebook_dim": 8},
    "first codes by k-means": {"kmeans_init": True, "kmeans_iters": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", [(B, L, C), (L, C)], ids=["sequences", "one token each"])
def test_residual_vq(options, shape, calls):
    original, accelerated = pair(**options)
    check(original, accelerated, torch.randn(shape), return_all_codes=len(shape) == 3)
    check(original, accelerated, torch.randn(shape).requires_grad_())
    assert calls == [3] * 5
    quantized = accelerated(torch.randn(B, L, C).requires_grad_())[0]
    assert quantized.requires_grad == ("codebook_dim" in options)


ONE_BY_ONE = {
    "a mask": ({}, {"mask": torch.arange(L) < torch.tensor([L, 7, 30, 1])[:, None]}),
    "cosine": ({"use_cosine_sim": True}, {}),
    "channels first": ({"channel_last": False}, {}),
    "sizes of their own": ({"codebook_size": (16, 32, 64)}, {}),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_residual_vq_level_by_level(name, calls):
    options, arguments = ONE_BY_ONE[name]
    if name == "channels first":
        torch.manual_seed(6)
        original = ResidualVQ(dim=C, codebook_size=K, num_quantizers=3, **options).eval()
        accelerated = accelerate(copy.deepcopy(original))
        for _ in range(3):
            layer_input = torch.randn(B, C, L)
            for one, other in zip(original.layers, accelerated.layers, strict=True):
                assert torch.equal(one(layer_input)[1], other(layer_input)[1])
    else:
        original, accelerated = pair(**options)
        check(original, accelerated, torch.randn(B, L, C), **arguments)
    assert not calls


def test_half_types_of_a_residual_vq(calls):
    original, accelerated = pair()
    check(original, accelerated, torch.randn(B, L, C).bfloat16())
    assert not calls


def test_hooks_of_a_level_run(calls):
    _, accelerated = pair()
    features, seen = torch.randn(B, L, C), []
    expected = [accelerated(features) for _ in range(3)][2]
    handle = accelerated.layers[1].register_forward_hook(lambda *_: seen.append(1))
    num_calls = len(calls)
    assert torch.equal(accelerated(features)[1], expected[1]) and seen == [1] and len(calls) == num_calls
    handle.remove()
    assert torch.equal(accelerated(features)[1], expected[1]) and len(calls) == num_calls + 1


def by_training(quantizer):
    quantizer.train()(torch.randn(B, L, C))
    quantizer.eval()


def by_training_a_level(quantizer):
    quantizer.layers[2].train()(torch.randn(B, L, C))
    quantizer.layers[2].eval()


def by_hand_in_evaluation(quantizer):
    codebook = quantizer.layers[2]._codebook
    codebook.embed_avg.mul_(torch.linspace(0.5, 2, C))
    codebook.update_ema()


def by_replacement_in_evaluation(quantizer):
    quantizer.layers[2]._codebook.replace(torch.randn(1, K, C), torch.ones(1, K, dtype=torch.bool))


def by_loading(quantizer):
    quantizer.load_state_dict(pair(decay=0.5)[0].state_dict())


CHANGES = [by_training, by_training_a_level, by_hand_in_evaluation, by_replacement_in_evaluation, by_loading]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_codes_of_a_residual_vq_are_seen(change):
    original, accelerated = pair()
    features = torch.randn(B, L, C)
    before = [accelerated(features) for _ in range(3)][2]
    for quantizer in (original, accelerated):
        torch.manual_seed(7)
        change(quantizer)
    # Sums of members are rounded once, and after each member in the original.
    check(original, accelerated, features, rtol=1e-5 if change in (by_training, by_training_a_level) else 0.0)
    assert not torch.equal(accelerated(features)[1], before[1]), "the change changes nothing: nothing is tried"


def test_a_single_layer_is_prepared_in_evaluation_alone():
    original, accelerated = pair()
    layers, features = (original.layers[0], accelerated.layers[0]), torch.randn(B, L, C)
    check(*layers, features)
    assert layers[1]._codebook._kept.is_prepared
    layers[1].train()(features)
    assert not layers[1]._codebook._kept.is_prepared
