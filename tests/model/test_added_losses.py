"""Losses of a user's own beside those of a model, and the weights of these."""

import copy

import pytest
import torch
from torch import nn

from soho_fast.common.errors import UserError
from soho_fast.model import SohoForPreTraining
from soho_fast.model.added_losses import add_losses
from soho_fast.model.heads import total_loss


class Scaled(nn.Module):
    def __init__(self, start=3.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, outputs, batch):
        assert set(batch) >= {"pixel_values", "input_ids", "itm_labels"}
        return self.scale * outputs.itm_logits.float().square().mean()


def test_it_counts_by_its_weight_and_has_its_name(tiny_model, batch, tmp_path):
    plain, model = tiny_model().train(), tiny_model().train()
    add_losses(model, {"scaled": Scaled()}, {"scaled": 0.5})
    expected, output = plain(**batch()), model(**batch())
    scaled = output.scaled.item()
    assert scaled == pytest.approx(3 * expected.itm_logits.square().mean().item())
    assert output.loss.item() == pytest.approx(expected.loss.item() + 0.5 * scaled)
    output.loss.backward()
    assert model.added_losses.scaled.scale.grad.item() == pytest.approx(0.5 * scaled / 3)
    names = [name for group in model.parameter_groups() for name in group["names"]]
    assert "added_losses.scaled.scale" in names
    # Copies have theirs.
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.added_losses.scaled.scale.zero_()
    assert other(**batch()).scaled.item() == 0 < model(**batch()).scaled.item()
    # It is of training alone.
    assert "scaled" not in model.eval()(**batch())
    model.save_pretrained(tmp_path)
    loaded, missing = SohoForPreTraining.loaded_from(str(tmp_path))
    assert not missing and not [name for name in loaded.state_dict() if "scaled" in name]


def test_while_the_encoder_learns_alone_it_is_left_out(tiny_model, batch):
    model = tiny_model(bag_of_words_weight=1.0).train()
    add_losses(model, {"scaled": Scaled()}, {"scaled": 0.5})
    assert "scaled" in model(**batch())
    model.bag_of_words_only = True
    output = model(**batch())
    assert "scaled" not in output and output.loss.item() == output.bag_of_words_loss.item()


def test_what_is_no_scalar_is_refused(tiny_model, batch):
    class Wrong(nn.Module):
        def forward(self, outputs, batch):
            return outputs.itm_logits

    model = tiny_model().train()
    add_losses(model, {"wrong": Wrong()}, {"wrong": 1.0})
    with pytest.raises(UserError, match=r"model\.losses\.wrong: expected a floating-point scalar .* \(12, 2\)"):
        model(**batch())


def test_losses_count_by_the_weights_that_the_configuration_has(tiny_config):
    sums = {"itm_loss": (torch.tensor(6.0), torch.tensor(3.0)), "mvm_loss": (torch.tensor(8.0), torch.tensor(2.0))}
    means = total_loss(sums, tiny_config(mvm_weight=0.25), synchronise=False)
    assert {name: float(mean) for name, mean in means.items()} == {"loss": 3.0, "itm_loss": 2.0, "mvm_loss": 4.0}
    assert total_loss({}, tiny_config(), synchronise=False) == {}


def test_a_misspelt_loss_is_refused(tiny_config):
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match="mvn_loss has no weight; did you mean mvm_loss"):
        total_loss({"mlm_loss": (one, one), "mvn_loss": (one, one)}, tiny_config(), synchronise=False)
