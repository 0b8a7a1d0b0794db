"""BERT's layers in C++ (`native_encoder.py`): against transformers' own in float64, and when they step aside."""

import pytest
import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertConfig, BertEncoder, BertOutput

from soho_fast import ops
from soho_fast.model.fast.cpu import native_encoder, packed_encoder, speed_up_on_cpu

levels = ops.build_info().get("cpu_levels_available", [])
pytestmark = pytest.mark.skipif(not levels, reason="the compiled extension is not built")

# Sizes of whole vectors and of none, heads of several panels, rows of many chunks and of one.
SIZES = [
    {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64},
    {"hidden_size": 21, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 37},
    {"hidden_size": 130, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 540},
]


@pytest.fixture
def at_level():
    from soho_fast import _C

    yield _C.set_cpu_level
    _C.set_cpu_level("")


def problem(sizes, num_pairs=9, num_words=19, num_visual=17):
    """An encoder, and what it reads: embedded words, visual tokens of three images, and who is real and read."""
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager")
    encoder, generator = BertEncoder(config), torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.5)
    length_P = torch.randint(1, num_words + 1, (num_pairs,), generator=generator)
    real_PS = torch.arange(num_words) < length_P[:, None]
    real_PL = torch.rand(num_pairs, num_visual, generator=generator) < 0.9
    real_PT = torch.cat([real_PS, real_PL], dim=1)
    read_PT = real_PT & (torch.rand(real_PT.shape, generator=generator) < 0.2)
    read_PT[:, 0] = True
    image_index_P = torch.randint(3, (num_pairs,), generator=generator)
    words_ND = torch.randn(int(length_P.sum()), config.hidden_size, generator=generator)
    visual_BLD = torch.randn(3, num_visual, config.hidden_size, generator=generator)
    return encoder, words_ND, visual_BLD, image_index_P, real_PT, read_PT


def plain(encoder, words_ND, visual_BLD, image_index_P, real_PT, read_PT):
    """As `encode_natively`, by transformers' layers on padded pairs."""
    real_PS = real_PT[:, : real_PT.shape[1] - visual_BLD.shape[1]]
    words_PSD = words_ND.new_zeros(*real_PS.shape, words_ND.shape[1]).masked_scatter(real_PS[..., None], words_ND)
    hidden_PTD = torch.cat([words_PSD, visual_BLD[image_index_P]], dim=1)
    mask_P11T = torch.zeros(real_PT.shape, dtype=hidden_PTD.dtype).masked_fill(~real_PT, -torch.inf)[:, None, None]
    return encoder(hidden_PTD, attention_mask=mask_P11T)[0] * read_PT[..., None]


def results(run, encoder, words_ND, visual_BLD, *rest):
    """The states and all gradients of their sum, weighted at random."""
    words_ND, visual_BLD = (tensor.clone().requires_grad_() for tensor in (words_ND, visual_BLD))
    hidden_PTD = run(encoder, words_ND, visual_BLD, *rest)
    weight_PTD = torch.randn(hidden_PTD.shape, generator=torch.Generator().manual_seed(1))
    encoder.zero_grad()
    (hidden_PTD * weight_PTD.to(hidden_PTD.dtype)).sum().backward()
    return [hidden_PTD.detach(), words_ND.grad, visual_BLD.grad, *(p.grad.clone() for p in encoder.parameters())]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{sizes['hidden_size']} channels")
def test_states_and_gradients_at_every_level(sizes, at_level):
    encoder, *inputs = problem(sizes)
    found = {}
    for level in levels:
        at_level(level)
        found[level] = results(native_encoder.encode_natively, encoder, *inputs)
    inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    exact = results(plain, encoder.double(), *inputs)
    size = max(float(grad.norm()) for grad in exact[1:])
    for level, got in found.items():
        for number, (value, expected) in enumerate(zip(got, exact, strict=True)):
            error = float((value.double() - expected).norm())
            # That of a key's bias is exactly zero.
            assert error <= 2e-6 * float(expected.norm()) + 1e-7 * size, f"{level}: {number} is off by {error:.2e}"


def test_layers_that_share_their_weights():
    encoder, *inputs = problem(SIZES[0])
    encoder.layer[1] = encoder.layer[0]
    got = results(native_encoder.encode_natively, encoder, *inputs)
    torch.testing.assert_close(got, results(plain, encoder, *inputs), rtol=1e-3, atol=1e-3)


def test_numbers_of_threads_and_calls_give_equal_bits():
    encoder, *inputs = problem(SIZES[0], num_pairs=40)
    first = results(native_encoder.encode_natively, encoder, *inputs)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)  # put back by the folder's fixture
        again = results(native_encoder.encode_natively, encoder, *inputs)
        assert all(map(torch.equal, again, first))


class Adapter(nn.Linear):
    pass


class ScaledOutput(BertOutput):
    def forward(self, *args):
        return 2 * super().forward(*args)


def replaced(layer):
    layer.attention.output.dense = Adapter(16, 16)


def given_a_forward(layer):
    layer.output.forward = layer.output.forward


def given_a_class(layer):
    layer.output.__class__ = ScaledOutput


def narrowed(layer):
    layer.intermediate.intermediate_act_fn = nn.GELU(approximate="tanh")


def strided(layer):
    layer.output.dense.weight.data = layer.output.dense.weight.data.T.contiguous().T


@pytest.mark.parametrize("change", [replaced, given_a_forward, given_a_class, narrowed, strided])
def test_what_is_not_berts_own_takes_the_other_way(tiny_model, batch, packed, monkeypatch, change):
    calls = native_calls(monkeypatch)
    model = speed_up_on_cpu(tiny_model().train())
    model(**batch()).loss.backward()
    assert len(calls) == len(packed) == 1
    change(model.soho.encoder.layer[1])
    model(**batch()).loss.backward()
    assert len(calls) == 1 and len(packed) == 2


def test_modes_in_which_it_steps_aside(monkeypatch):
    encoder, *_, real_PT, read_PT = problem(SIZES[0])

    def runs(read_PT=read_PT):
        return native_encoder.can_run_natively(encoder, real_PT, read_PT)

    assert runs()
    assert not runs(torch.ones_like(read_PT))  # padding too
    with torch.autocast("cpu", torch.bfloat16):
        assert not runs()
    torch.func.vmap(lambda x: x if not runs() else pytest.fail("under vmap"))(torch.ones(2))
    with torch.autograd.forward_ad.dual_level():
        assert not runs()
    encoder.layer[1].output.dropout.p = 0.1
    assert not runs() and encoder.eval() and runs()
    encoder.double()
    assert not runs() and encoder.float() and runs()
    monkeypatch.setattr(torch.ops, "soho_fast", None)
    assert not runs()


def native_calls(monkeypatch):
    calls, encode = [], native_encoder.encode_natively
    monkeypatch.setattr(packed_encoder, "encode_natively", lambda *args: calls.append(args) or encode(*args))
    return calls
