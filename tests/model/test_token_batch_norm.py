"""BatchNorm before the dictionary: by running statistics in training too, moved once a step."""

import pytest
import torch
from torch import nn

from soho_fast.model.normalization import TokenBatchNorm


def tokens(seed: int, num_images: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose mean and scale differ from channel to channel, with padding far off."""
    generator = torch.Generator().manual_seed(seed)
    feat = torch.randn(num_images, 6, 8, generator=generator) * torch.arange(1, 9) + 5 * torch.arange(8)
    valid = torch.rand(num_images, 6, generator=generator) < 0.7
    valid[:, 0] = True
    return feat.masked_fill(~valid.unsqueeze(-1), 1e4), valid


def step(norm: TokenBatchNorm, seed: int, parts: int = 1, applied: bool = True) -> list[torch.Tensor]:
    feat, valid = tokens(seed)
    norm.begin_step()
    outputs = [norm(*some) for some in zip(feat.chunk(parts), valid.chunk(parts), strict=True)]
    norm.end_step(applied=applied)
    return outputs


def test_the_first_forward_goes_by_its_own_tokens():
    feat, valid = tokens(0)
    norm, plain = TokenBatchNorm(8).train(), nn.BatchNorm1d(8).train()
    torch.testing.assert_close(norm(feat, valid)[valid], plain(feat[valid]), rtol=1e-4, atol=1e-5)


def test_later_a_token_does_not_depend_on_who_shares_its_batch():
    norm = TokenBatchNorm(8).train()
    step(norm, 0)
    feat, valid = tokens(1)
    norm.begin_step()
    together, alone = norm(feat, valid), norm(feat[:1], valid[:1])
    torch.testing.assert_close(together[:1][valid[:1]], alone[valid[:1]], rtol=1e-5, atol=1e-5)
    evaluated = norm.eval()(feat, valid)
    torch.testing.assert_close(together[valid], evaluated[valid], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_running_statistics_are_those_of_the_steps(parts):
    """Against the statistics of each step's tokens in float64: the plain mean of ten steps, then a moving one."""
    norm = TokenBatchNorm(8).train()
    mean, var = torch.zeros(8).double(), torch.zeros(8).double()
    for number in range(14):
        feat, valid = tokens(number)
        var_now, mean_now = torch.var_mean(feat[valid].double(), 0)
        momentum = max(0.1, 1 / (number + 1))
        mean, var = mean + momentum * (mean_now - mean), var + momentum * (var_now - var)
        step(norm, number, parts)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-4, atol=1e-4)
    assert norm.num_batches_tracked == 14


@pytest.mark.parametrize(("num_tokens", "value"), [(1, 1.0), (5, float("nan"))])
def test_tokens_without_a_spread_leave_the_variance_alone(num_tokens, value):
    """One token, or none that is finite: a variance of zero would blow up all that follow."""
    norm, valid = TokenBatchNorm(8).train(), torch.ones(1, num_tokens, dtype=torch.bool)
    for before in range(2):
        if before:
            step(norm, 0)
        var = norm.running_var.clone()
        norm.begin_step()
        norm(torch.full((1, num_tokens, 8), value), valid)
        norm.end_step(applied=True)
        assert torch.equal(norm.running_var, var) and norm.running_mean.isfinite().all()


def test_a_step_that_is_not_applied_moves_nothing():
    norm = TokenBatchNorm(8).train()
    step(norm, 0)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    step(norm, 1, applied=False)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    norm(*tokens(1))
    assert norm.num_batches_tracked == 2, "without steps every training forward moves"
    norm.eval()(*tokens(2))
    assert norm.num_batches_tracked == 2, "evaluation moves nothing"


def test_a_loaded_norm_goes_on_from_where_it_was():
    norm, loaded = TokenBatchNorm(8).train(), TokenBatchNorm(8).train()
    step(norm, 0)
    loaded.load_state_dict(norm.state_dict())
    assert torch.equal(*(step(made, 1)[0] for made in (norm, loaded)))
    assert torch.equal(norm.running_var, loaded.running_var)


def test_the_gradient_is_batch_norms_in_the_scale_of_the_running_statistics():
    """Against `nn.BatchNorm1d` on the packed tokens, whose weight is scaled as the values are."""
    norm, plain = TokenBatchNorm(8).train(), nn.BatchNorm1d(8).train()
    nn.init.uniform_(norm.weight)
    step(norm, 0)
    feat, valid = tokens(1)
    var = feat[valid].var(0, correction=0)
    ratio = torch.sqrt((var + norm.eps) / (norm.running_var + norm.eps))
    with torch.no_grad():
        plain.weight.copy_(norm.weight * ratio)
    weights = torch.randn(feat.shape)
    mine, theirs = feat.clone().requires_grad_(), feat[valid].requires_grad_()
    (plain(theirs) * weights[valid]).sum().backward()
    output = norm(mine, valid)  # Moves the statistics at once; the backward pass still knows those it went by.
    (output * weights)[valid].sum().backward()
    torch.testing.assert_close(mine.grad[valid], theirs.grad, rtol=1e-4, atol=1e-5)
    assert not mine.grad[~valid].any()
    expected_weight = ((output.detach() - norm.bias) / norm.weight * weights)[valid].sum(0)
    torch.testing.assert_close(norm.weight.grad, expected_weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.bias.grad, weights[valid].sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_token_that_is_not_finite_takes_no_part(bad):
    norm, without = TokenBatchNorm(16), TokenBatchNorm(16)
    feat, valid = torch.randn(3, 6, 16), torch.ones(3, 6, dtype=torch.bool)
    shorter, broken = valid.clone(), feat.clone()
    shorter[1, 2], broken[1, 2, 3] = False, bad
    mine, expected = norm(broken, valid), without(feat, shorter)
    assert torch.equal(mine[shorter], expected[shorter])
    assert torch.equal(norm.running_mean, without.running_mean)
    assert torch.equal(norm.running_var, without.running_var)
