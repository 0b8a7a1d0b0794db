"""What is prepared of a codebook is dropped when the codebook changes, however it does."""

import copy

import pytest
import torch
from small_codecs import CASES, drawn_anew, exact_codes, in_place, thrice
from torch import nn

from soho_fast.adapters import accelerate, restore

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def with_new_weights(model):
    model.load_state_dict(drawn_anew(model))


def with_assigned_weights(model):
    model.load_state_dict(drawn_anew(model), assign=True)


def in_place_in_inference_mode(model):
    with torch.inference_mode():
        in_place(model)


def with_other_data(model):
    """The same objects over other memory, twice, so that the first memory may come back."""
    for _ in range(2):
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.data = value.data * 1.25 + torch.linspace(-0.2, 0.2, value.numel()).view(value.shape)


def by_training_past_the_counter(model):
    """As optimisers do that write to `.data`: model.train(), a step, model.eval()."""
    model.train()
    for value in [*model.parameters(), *model.buffers()]:
        if value.is_floating_point():
            value.data.mul_(1.5).add_(torch.linspace(-0.2, 0.2, value.numel()).view(value.shape))
    model.eval()


def transposed_in_place(model):
    """The same memory read in another order."""
    for module in model.modules():
        for name in ("embed", "embed_sum", "weight"):
            value = getattr(module, name, None)
            owner = {**module._buffers, **module._parameters}
            if name in owner and value is not None and value.dim() == 2 and value.shape[0] == 64:
                value.data = value.data.view(value.shape[1], value.shape[0]).t()


CHANGES = [
    with_new_weights, with_assigned_weights, in_place, in_place_in_inference_mode, with_other_data,
    by_training_past_the_counter, transposed_in_place, lambda model: model.to(torch.float64),
    lambda model: model.to(torch.bfloat16).float(),
]  # fmt: skip
NAMES = [getattr(change, "__name__", "?") for change in CHANGES[:-2]] + ["float64", "bfloat16 and back"]


@EACH
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_changed_weights_are_seen(case, change):
    model, values = accelerate(case.model()), case.input()
    before = thrice(case, model, values)
    change(model)
    values = values.to(next(iter(model.state_dict().values())).dtype) if change is CHANGES[-2] else values
    got = thrice(case, model, values)
    restore(model)
    fresh = case.model().to(next(iter(model.state_dict().values())).dtype)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(got, exact_codes(case, fresh, values))
    if change in CHANGES[:-2]:
        assert not torch.equal(got, before), "the change changes nothing: nothing is tried"


def test_a_parameter_over_the_same_memory_with_a_counter_of_its_own():
    case = CASES["emu3"]
    model, values = accelerate(case.model()), case.input()
    weight = model.embedding.weight
    with torch.no_grad():
        for _ in range(3):
            weight.add_(0)
    thrice(case, model, values)
    model.embedding.weight = nn.Parameter(weight.data)
    with torch.no_grad():
        while model.embedding.weight._version < weight._version:
            model.embedding.weight.copy_(torch.randn(64, 16))
    assert torch.equal(case.codes(model, values), exact_codes(case, model, values))


def test_an_address_that_is_given_out_again():
    """As long as the codebook there is kept, it cannot be."""
    case = CASES["emu3"]
    model, values = accelerate(case.model()), case.input()
    thrice(case, model, values)
    weight = model.embedding.weight
    for _ in range(20):
        weight.data = torch.randn(64, 16)
        thrice(case, model, values)
        address = weight.data_ptr()
        weight.data = torch.empty(0)
        others = [torch.randn(64, 16) for _ in range(20)]
        weight.data = next((other for other in others if other.data_ptr() == address), others[0])
        assert torch.equal(case.codes(model, values), exact_codes(case, model, values))


def test_training_set_by_hand_between_two_evaluations():
    case = CASES["emu3"]
    model, values = accelerate(case.model()), case.input()
    thrice(case, model, values)
    model.training = True
    case.codes(model, values)
    model.embedding.weight.data.neg_()  # not counted
    model.training = False
    assert torch.equal(thrice(case, model, values), exact_codes(case, model, values))


def test_shared_memory_and_inference_tensors_are_not_kept():
    case = CASES["encodec"]
    model, values = accelerate(case.model()), case.input()
    thrice(case, model, values)
    model.share_memory()
    level = case.leaves(model)[0]
    thrice(case, model, values)
    assert not any(part._kept.is_prepared for part in model.modules() if hasattr(part, "_kept"))
    level.embed.numpy()[:] = level.embed.numpy()[::-1].copy()  # as another process might
    assert torch.equal(case.codes(model, values), exact_codes(case, restore(model), values))
    with torch.inference_mode():
        model = accelerate(case.model())
        thrice(case, model, values)
        assert not any(part._kept.is_prepared for part in model.modules() if hasattr(part, "_kept"))
        in_place(model)
        assert torch.equal(thrice(case, model, values), exact_codes(case, model, values))


def test_mimi_makes_its_codes_anew_where_the_original_keeps_old_ones():
    case = CASES["mimi"]
    original, fresh, values = case.model(), case.model(), case.input()
    case.codes(original, values)  # now it keeps `_embed`
    accelerated, state = accelerate(copy.deepcopy(original)), drawn_anew(fresh)
    for model in (original, accelerated, fresh):
        model.load_state_dict(state)
    expected = case.codes(fresh, values)
    assert torch.equal(thrice(case, accelerated, values), expected)
    assert not torch.equal(case.codes(original, values), expected)
    assert torch.equal(accelerated.quantizer.decode(expected), fresh.quantizer.decode(expected))
    in_place(accelerated.quantizer)
    fresh.load_state_dict(accelerated.state_dict())
    for level in case.leaves(fresh):
        level._embed = None
    # Decoding alone, without a lookup before it.
    assert torch.equal(accelerated.quantizer.decode(expected), fresh.quantizer.decode(expected))
    assert torch.equal(case.codes(restore(accelerated), values), case.codes(fresh, values))


@EACH
def test_what_first_runs_in_inference_mode_is_kept_and_dropped_as_well(case):
    model, values = accelerate(case.model()), case.input()
    with torch.inference_mode():
        before = thrice(case, model, values)
    assert case.is_prepared(model)
    in_place(model)
    got = thrice(case, model, values)
    assert torch.equal(got, exact_codes(case, restore(model), values)) and not torch.equal(got, before)
