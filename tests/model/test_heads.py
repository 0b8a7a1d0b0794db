"""Losses by name: means, weights and their sum."""

import pytest
import torch

from soho_fast.model.heads import total_loss


def test_losses_count_by_the_weights_that_the_configuration_has(tiny_config):
    sums = {"itm_loss": (torch.tensor(6.0), torch.tensor(3.0)), "mvm_loss": (torch.tensor(8.0), torch.tensor(2.0))}
    means = total_loss(sums, tiny_config(mvm_weight=0.25), synchronise=False)
    assert {name: float(mean) for name, mean in means.items()} == {"loss": 3.0, "itm_loss": 2.0, "mvm_loss": 4.0}
    assert total_loss({}, tiny_config(), synchronise=False) == {}


def test_a_misspelt_loss_is_refused(tiny_config):
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match="mvn_loss has no weight; did you mean mvm_loss"):
        total_loss({"mlm_loss": (one, one), "mvn_loss": (one, one)}, tiny_config(), synchronise=False)
