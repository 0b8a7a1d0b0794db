"""The heads under every precision."""

import pytest
import torch

from soho_fast.model.heads import TokenHead


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [0, 1, 33])
def test_gradients_are_finite_whatever_the_number_of_rows(tiny_config, dtype, num_rows):
    """At first the biases are zero: a row of zeros, such as filling would add, has no variance for the LayerNorm."""
    head = TokenHead(tiny_config(), 8).to(dtype)
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    hidden = torch.randn(num_rows, 16, dtype=dtype, requires_grad=True)
    logits = head(hidden)
    assert logits.shape == (num_rows, 8)
    logits.float().logsumexp(-1).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in (hidden, *head.parameters()))
