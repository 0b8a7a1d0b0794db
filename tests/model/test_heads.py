"""The heads under every precision."""

import pytest
import torch

from soho_fast.model import heads
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


def test_a_classifier_by_parts_is_the_linear_layer(monkeypatch):
    """With an odd rest, rows that repeat a class and both gradients; in float32, where nothing is rounded off."""
    monkeypatch.setattr(heads, "_PART", 5 * 16)
    hidden, weight, bias = (torch.randn(size, requires_grad=True) for size in ((6, 16), (23, 16), (23,)))
    target = torch.tensor([0, 22, 7, 7, 4, 5])

    def step(logits):
        inputs = (hidden, weight, bias)
        return logits, *torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), inputs)

    expected = step(torch.nn.functional.linear(hidden, weight, bias))
    got = step(heads._ClassifyByParts.apply(hidden, weight, bias, torch.float32))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_large_classifiers_are_cast_by_parts_under_autocast(monkeypatch, tiny_config):
    head, hidden = TokenHead(tiny_config(), 50), torch.randn(9, 16)

    def gradients():
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(hidden)
        logits.float().logsumexp(-1).sum().backward()
        return logits, {name: parameter.grad for name, parameter in head.named_parameters()}

    plain, expected = gradients()
    monkeypatch.setattr(heads, "_PART", 64)
    calls, parts = [], heads._parts
    monkeypatch.setattr(heads, "_parts", lambda weight: calls.append(parts(weight)) or calls[-1])
    logits, grads = gradients()
    assert len(calls) == 2 and len(calls[0]) == 13 and logits.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(logits, plain, rtol=2**-7, atol=2**-7)
    for name, grad in expected.items():
        assert grads[name].dtype == torch.float32
        assert float((grads[name] - grad).norm()) <= 0.01 * float(grad.norm()) + 1e-6, name
