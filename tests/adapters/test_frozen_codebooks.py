"""What is prepared of a codebook is dropped when the codebook changes, however it does."""

import pytest
import torch
from quantizers import C, K, nearest, pair, thrice

FEATURES = torch.randn(2, 40, C, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model():
    """Accelerated, in evaluation, its codebook prepared."""
    model = pair()[1].eval()
    thrice(model, FEATURES)
    assert model._codebook._kept.is_prepared
    return model


def check(model):
    assert torch.equal(thrice(model, FEATURES), nearest(FEATURES, model.codebook))


def scaled(codes):
    return codes * torch.linspace(0.3, 2.0, codes.numel()).view(codes.shape)


def with_new_weights(model, assign=False):
    codes = model._codebook.embed
    model.load_state_dict({**model.state_dict(), "_codebook.embed": scaled(codes)}, assign=assign)


def with_assigned_weights(model):
    with_new_weights(model, assign=True)


def in_place(model):
    model._codebook.embed.copy_(scaled(model._codebook.embed))


def in_place_in_inference_mode(model):
    with torch.inference_mode():
        in_place(model)


def with_other_data(model):
    """The same object over other memory, twice, so that the first memory may come back."""
    for _ in range(2):
        model._codebook.embed.data = scaled(model._codebook.embed.data)


def by_training_past_the_counter(model):
    """As optimisers do that write to `.data`: model.train(), a step, model.eval()."""
    model.train()
    model._codebook.embed.data.copy_(scaled(model._codebook.embed.data))
    model.eval()


def by_training_set_by_hand(model):
    model._codebook.training = True
    model._codebook(FEATURES)
    model._codebook.embed.data.copy_(scaled(model._codebook.embed.data))
    model._codebook.training = False


def transposed_in_place(model):
    """The same memory read in another order."""
    codes = model._codebook.embed
    codes.data = codes.data.view(1, C, K).mT


def over_the_same_memory_with_a_counter_of_its_own(model):
    codes = model._codebook.embed
    model._codebook.embed = codes.data
    model._codebook.embed.neg_()
    while model._codebook.embed._version < codes._version:
        model._codebook.embed.add_(0)


CHANGES = [
    with_new_weights, with_assigned_weights, in_place, in_place_in_inference_mode, with_other_data,
    by_training_past_the_counter, by_training_set_by_hand, transposed_in_place,
    over_the_same_memory_with_a_counter_of_its_own,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_codes_are_seen(change, model):
    before = thrice(model, FEATURES)
    change(model)
    check(model)
    assert not torch.equal(thrice(model, FEATURES), before), "the change changes nothing: nothing is tried"


def test_an_address_that_is_given_out_again(model):
    """As long as the codebook there is kept, it cannot be."""
    codes = model._codebook.embed
    for _ in range(20):
        codes.data = torch.randn(1, K, C)
        thrice(model, FEATURES)
        address = codes.data_ptr()
        codes.data = torch.empty(0)
        others = [torch.randn(1, K, C) for _ in range(20)]
        codes.data = next((other for other in others if other.data_ptr() == address), others[0])
        assert torch.equal(model(FEATURES)[1], nearest(FEATURES, model.codebook))


def test_shared_memory_is_not_kept(model):
    model.share_memory()
    check(model)
    assert not model._codebook._kept.is_prepared
    codes = model._codebook.embed.numpy()
    codes[:] = codes[:, ::-1].copy()  # as another process might
    assert torch.equal(model(FEATURES)[1], nearest(FEATURES, model.codebook))


def test_inference_tensors_are_not_kept():
    with torch.inference_mode():
        model = pair()[1].eval()
        check(model)
        assert not model._codebook._kept.is_prepared
        in_place(model)
        check(model)
