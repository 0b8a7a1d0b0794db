"""When the packed encoder steps aside, and its rows. `test_speed_up.py` compares it with the plain one."""

import pytest
import torch

from soho_fast.model import Texts
from soho_fast.model.fast.cpu import packed_encoder, speed_up_on_cpu


@pytest.fixture
def fast_model(tiny_model):
    return lambda **overrides: speed_up_on_cpu(tiny_model(**overrides).train())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_attention_gradients_are_exact(dropout):
    """Against finite differences in float64, with queries of their own places and pairs of different lengths."""
    generator = torch.Generator().manual_seed(0)
    real_PT = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    keys = packed_encoder.Places(real_PT.flatten().nonzero().squeeze(1).flip(0), (3, 4))
    queries = packed_encoder.Places(torch.tensor([0, 2, 3, 5]), (3, 2))
    mask_P1T = torch.zeros(3, 1, 4, dtype=torch.float64).masked_fill(~real_PT.unsqueeze(1), -1e300)
    query, key, value = (
        torch.randn(rows, 6, dtype=torch.float64, generator=generator, requires_grad=True) for rows in (4, 10, 10)
    )
    mask_R1T = mask_P1T.repeat_interleave(2, dim=0)

    def attend(query, key, value):
        torch.manual_seed(1)  # the same draw of dropout each time
        return packed_encoder._Attention.apply(query, key, value, queries, keys, mask_R1T, 2, dropout)

    assert torch.autograd.gradcheck(attend, (query, key, value))


def test_when_it_steps_aside(fast_model, batch, packed):
    model, inputs, seen = fast_model(), batch(), []
    model(**inputs)
    assert len(packed) == 1
    model.eval()(**inputs)
    assert len(packed) == 2
    model.soho.encoder.layer[0].gradient_checkpointing = True
    model.eval()(**inputs)
    assert len(packed) == 2
    model.soho.encoder.layer[0].gradient_checkpointing = False
    model.train()(**inputs, output_hidden_states=False, return_dict=True)
    assert len(packed) == 3
    # Who looks into a layer, or asks for all states, sees them all.
    hook = model.soho.encoder.layer[0].output.register_forward_hook(lambda _, __, output: seen.append(len(output)))
    model(**inputs)
    hook.remove()
    visual = model.encode_images(inputs["pixel_values"])
    hidden = model.soho(visual, Texts(inputs["input_ids"], inputs["attention_mask"], inputs["image_index"]))
    assert bool((hidden.last_hidden_state.abs().sum(-1) > 0).all())
    assert seen == [len(inputs["input_ids"])] and len(packed) == 3
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == 3 and len(packed) == 3


def test_bf16_in_row_counts_that_recur(monkeypatch, fast_model, batch):
    """Kernels are compiled per shape there: whatever the texts' lengths, the row counts are multiples."""
    sizes, functional = set(), torch.nn.functional.linear

    def linear(x, *args):
        if x.dim() == 2:
            sizes.add(x.shape[0])
        return functional(x, *args)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    model, inputs = fast_model().bfloat16(), batch()
    for length in range(3, 8):
        inputs["attention_mask"] = torch.ones(12, 7, dtype=torch.int64)
        inputs["attention_mask"][:7, length:] = 0
        model(**inputs)
    # Pairs; what is read; a multiple of 64 rows, or all 156 places, and without the 9 repetitions of 6 visual tokens.
    assert sizes <= {12, 32, 128, 128 - 54, 156, 156 - 54}


def test_filling_up_changes_nothing_in_float32(monkeypatch, fast_model, batch, packed):
    def step():
        model = fast_model(num_hidden_layers=3)
        model.freeze_batch_norm()
        loss = model(**batch()).loss
        loss.backward()
        return loss, [parameter.grad for parameter in model.parameters()]

    exact_loss, exact_grads = step()
    rounded = lambda count, like, multiple=32: -(-count // multiple) * multiple  # noqa: E731
    monkeypatch.setattr(packed_encoder, "recurring", rounded)
    loss, grads = step()
    assert len(packed) == 2
    torch.testing.assert_close(loss, exact_loss, rtol=1e-6, atol=1e-6)
    for grad, exact in zip(grads, exact_grads, strict=True):
        assert float((grad - exact).norm()) <= 2e-5 * float(exact.norm()) + 1e-7
