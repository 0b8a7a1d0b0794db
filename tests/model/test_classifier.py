"""Classifiers on a CPU under every precision."""

import pytest
import torch

from soho_fast.model.fast.cpu import classifier
from soho_fast.model.fast.cpu.classifier import classify_on_cpu
from soho_fast.model.heads import TokenHead


def fast_head(config, num_classes):
    head = TokenHead(config, num_classes)
    head.classify = classify_on_cpu
    return head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [0, 1, 33])
def test_gradients_are_finite_whatever_the_number_of_rows(tiny_config, dtype, num_rows):
    """At first the biases are zero: a row of zeros, such as filling would add, has no variance for the LayerNorm."""
    head = fast_head(tiny_config(), 8).to(dtype)
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
    monkeypatch.setattr(classifier, "_PART", 5 * 16)
    hidden, weight, bias = (torch.randn(size, requires_grad=True) for size in ((6, 16), (23, 16), (23,)))
    target = torch.tensor([0, 22, 7, 7, 4, 5])

    def step(logits):
        inputs = (hidden, weight, bias)
        return logits, *torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), inputs)

    expected = step(torch.nn.functional.linear(hidden, weight, bias))
    got = step(classifier._ClassifyByParts.apply(hidden, weight, bias, torch.float32))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_large_classifiers_are_cast_by_parts_under_autocast(monkeypatch, tiny_config):
    head, hidden = fast_head(tiny_config(), 50), torch.randn(9, 16)

    def gradients():
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(hidden)
        logits.float().logsumexp(-1).sum().backward()
        return logits, {name: parameter.grad for name, parameter in head.named_parameters()}

    plain, expected = gradients()
    monkeypatch.setattr(classifier, "_PART", 64)
    calls, parts = [], classifier._parts
    monkeypatch.setattr(classifier, "_parts", lambda weight: calls.append(parts(weight)) or calls[-1])
    logits, grads = gradients()
    assert len(calls) == 2 and len(calls[0]) == 13 and logits.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(logits, plain, rtol=2**-7, atol=2**-7)
    for name, grad in expected.items():
        assert grads[name].dtype == torch.float32
        assert float((grads[name] - grad).norm()) <= 0.01 * float(grad.norm()) + 1e-6, name


@pytest.mark.parametrize("padding_id", [None, 3])
def test_shared_words_sum_both_gradients(padding_id):
    """Rows that repeat, a padding word, and each of the two gradients missing, against nn.functional.embedding."""
    id_N = torch.tensor([5, 3, 5, 0])
    table_VD = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight_N4 = torch.randn(4, 4, dtype=torch.float64)
    weight_V4 = torch.randn(7, 4, dtype=torch.float64)

    def gradient(rows_N4, all_V4, use_rows: bool, use_table: bool):
        losses = [(rows_N4 * weight_N4).sum()] * use_rows + [(all_V4.square() * weight_V4).sum()] * use_table
        return torch.autograd.grad(sum(losses), table_VD)[0]

    for use_rows, use_table in ((True, True), (True, False), (False, True)):
        rows_N4 = torch.nn.functional.embedding(id_N, table_VD, padding_id)
        expected = gradient(rows_N4, table_VD, use_rows, use_table)
        rows_N4, all_V4 = classifier.SharedWords.apply(table_VD, id_N, padding_id)
        torch.testing.assert_close(gradient(rows_N4, all_V4, use_rows, use_table), expected, rtol=1e-12, atol=1e-12)
