"""Residual quantisers in evaluation: one op for all levels, with the results of the loop over them.

Letters: B sequences, T steps in time, C channels, K codes.
"""

import copy
import pickle

import pytest
import torch
from small_codecs import CASES, brute_force, exact_codes, thrice
from vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ

from soho_fast import ops
from soho_fast.adapters import accelerate, restore

B, T, C, K = 2, 60, 16, 32
STACKS = pytest.mark.parametrize("name", ["encodec", "mimi", "xcodec"])


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


@STACKS
def test_all_levels_are_one_op_from_the_second_call_on(name, calls):
    case = CASES[name]
    model, values = accelerate(case.model()), case.input()
    first = case.codes(model, values)
    assert not calls
    assert torch.equal(case.codes(model, values), first) and torch.equal(case.codes(model, values), first)
    num_levels = len(case.leaves(model)) - (name == "mimi")  # whose first one is a stack of its own
    assert calls == [num_levels] * 2 and num_levels > 1
    assert not any(leaf._kept.is_prepared for leaf in case.leaves(model)[name == "mimi" :])


@STACKS
def test_methods_of_an_instance_are_asked(name, calls):
    """The last level's decoder, whose result no index depends on."""
    case, asked = CASES[name], []
    model, values = accelerate(case.model()), case.input()
    expected = thrice(case, model, values)
    leaf = case.leaves(model)[-1]
    leaf.decode = lambda index: (asked.append(index), type(leaf).decode(leaf, index))[1]
    num_calls = len(calls)
    assert torch.equal(case.codes(model, values), expected) and asked and len(calls) == num_calls


@STACKS
def test_a_level_that_trains_by_itself_is_seen(name):
    case = CASES[name]
    model, values = accelerate(case.model()), case.input()
    before = thrice(case, model, values)
    leaf = case.leaves(model)[-1]
    leaf.train()
    leaf.state_dict()["embed_sum" if name == "mimi" else "embed"].numpy()[:] *= -1  # not counted
    leaf.eval()
    got = thrice(case, model, values)
    assert not torch.equal(got, before) and torch.equal(got, exact_codes(case, restore(model), values))


def test_fewer_levels_and_half_types():
    quantizer = accelerate(CASES["mimi"].model()).quantizer.acoustic_residual_vector_quantizer
    values = torch.randn(B, C, T)
    with torch.no_grad():
        every = [quantizer.encode(values) for _ in range(3)][2]
        for num_levels in (1, 2, 3, 2):
            assert torch.equal(quantizer.encode(values, num_levels), every[:num_levels])
        # What is left is rounded to bfloat16 after each level, as the original does.
        half = quantizer.bfloat16()
        for _ in range(3):
            residual, expected = half.input_proj(values.bfloat16()), []
            for layer in half.layers:
                index = brute_force(residual.transpose(1, 2).flatten(0, 1), layer.codebook.embed).view(B, T)
                residual = residual - layer.codebook.embed[index].transpose(1, 2)
                expected.append(index)
            assert torch.equal(half.encode(values.bfloat16()), torch.stack(expected))


def pair(**options):
    """A ResidualVQ in evaluation, and its accelerated copy."""
    torch.manual_seed(6)
    original = ResidualVQ(**{"dim": C, "codebook_size": K, "num_quantizers": 3, **options})
    for _ in range(3):
        original(torch.randn(B, T, C))
    return original.eval(), accelerate(copy.deepcopy(original))


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
@pytest.mark.parametrize("shape", [(B, T, C), (T, C)], ids=["sequences", "one token each"])
def test_residual_vq(options, shape, calls):
    original, accelerated = pair(**options)
    check(original, accelerated, torch.randn(shape), return_all_codes=len(shape) == 3)
    check(original, accelerated, torch.randn(shape).requires_grad_())
    assert calls == [3] * 5
    quantized = accelerated(torch.randn(B, T, C).requires_grad_())[0]
    assert quantized.requires_grad == ("codebook_dim" in options)


ONE_BY_ONE = {
    "a mask": ({}, {"mask": torch.arange(T) < torch.tensor([T, 7])[:, None]}),
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
            layer_input = torch.randn(B, C, T)
            for one, other in zip(original.layers, accelerated.layers, strict=True):
                assert torch.equal(one(layer_input)[1], other(layer_input)[1])
    else:
        original, accelerated = pair(**options)
        check(original, accelerated, torch.randn(B, T, C), **arguments)
    assert not calls


def test_half_types_of_a_residual_vq(calls):
    original, accelerated = pair()
    check(original, accelerated, torch.randn(B, T, C).bfloat16())
    assert not calls


def test_hooks_of_a_level_run(calls):
    _, accelerated = pair()
    features, seen = torch.randn(B, T, C), []
    expected = [accelerated(features) for _ in range(3)][2]
    handle = accelerated.layers[1].register_forward_hook(lambda *_: seen.append(1))
    num_calls = len(calls)
    assert torch.equal(accelerated(features)[1], expected[1]) and seen == [1] and len(calls) == num_calls
    handle.remove()
    assert torch.equal(accelerated(features)[1], expected[1]) and len(calls) == num_calls + 1


def by_training(quantizer):
    quantizer.train()(torch.randn(B, T, C))
    quantizer.eval()


def by_training_a_level(quantizer):
    quantizer.layers[2].train()(torch.randn(B, T, C))
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
    features = torch.randn(B, T, C)
    before = [accelerated(features) for _ in range(3)][2]
    for quantizer in (original, accelerated):
        torch.manual_seed(7)
        change(quantizer)
    # Sums of members are rounded once, and after each member in the original.
    check(original, accelerated, features, rtol=1e-5 if change in (by_training, by_training_a_level) else 0.0)
    assert not torch.equal(accelerated(features)[1], before[1]), "the change changes nothing: nothing is tried"


def test_copies_groups_and_restored():
    original, accelerated = pair()
    features = torch.randn(B, T, C)
    check(original, accelerated, features)
    check(original, pickle.loads(pickle.dumps(accelerated)), features)
    assert vars(restore(accelerated)).keys() == vars(original).keys() and type(accelerated) is ResidualVQ
    groups = GroupedResidualVQ(dim=2 * C, groups=2, codebook_size=K, num_quantizers=3).eval()
    check(groups, accelerate(copy.deepcopy(groups)), torch.randn(B, T, 2 * C))


def test_a_single_layer_is_prepared_in_evaluation_alone():
    original, accelerated = pair()
    layers, features = (original.layers[0], accelerated.layers[0]), torch.randn(B, T, C)
    check(*layers, features)
    assert layers[1]._codebook._kept.is_prepared
    layers[1].train()(features)
    assert not layers[1]._codebook._kept.is_prepared
