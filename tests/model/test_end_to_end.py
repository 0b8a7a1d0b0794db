"""What the paper is for: the losses of pre-training train the CNN, and their one way to it is eq. 5."""

import pytest

from soho_fast import ops
from soho_fast.tasks.recipe import read_recipe

LOSSES = ("mlm_loss", "mvm_loss", "itm_loss")


def backbone_gradients(model, inputs, name: str) -> list[float]:
    model.zero_grad()
    getattr(model.train()(**inputs), name).backward()
    return [
        0.0 if p.grad is None else float(p.grad.abs().max()) for p in model.base().visual_encoder.backbone.parameters()
    ]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_loss_trains_every_weight_of_the_cnn(tiny_model, batch, name, batch_norm):
    model = tiny_model(dictionary_batch_norm=batch_norm)
    model.freeze_batch_norm()
    assert min(backbone_gradients(model, batch(size=(96, 96)), name)) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_there_is_no_way_around_the_dictionary(tiny_model, batch, name, monkeypatch):
    straight_through = ops.straight_through

    def detached(feat, codebook, index):
        return straight_through(feat, codebook, index).detach().requires_grad_()

    monkeypatch.setattr(ops, "straight_through", detached)
    assert max(backbone_gradients(tiny_model(), batch(size=(96, 96)), name)) == 0


def test_the_demo_trains_its_cnn_with_all_losses_in_the_last_epoch():
    recipe = read_recipe(["--recipe", "mini"])
    begin, end = recipe.optim.frozen_span()
    assert recipe.model.bag_of_words_epochs <= begin < end <= recipe.epochs - 1
    assert recipe.optim.backbone_lr > 0 and recipe.schedule.end_factor > 0
    assert recipe.model.config.mvm_weight > 0 and recipe.data.mvm_from_epoch < end
