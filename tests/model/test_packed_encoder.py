"""Packed training computes what the plain encoder computes, and steps aside where it would not."""

import pytest
import torch

from soho_fast.model import soho
from soho_fast.model.cpu import packed_encoder


@pytest.fixture
def counted(monkeypatch):
    """Counts packed forwards, so that no test compares the plain path with itself."""
    calls = []

    def count(*args):
        calls.append(args)
        return packed_encoder.packed_encode(*args)

    monkeypatch.setattr(soho, "packed_encode", count)
    return calls


def losses_and_gradients(model, batch, **kwargs):
    model.zero_grad()
    output = model(**batch, **kwargs)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_and_packed(monkeypatch, build, batch, calls):
    """The same step twice from the same weights: the plain encoder's, then the packed one's."""
    with monkeypatch.context() as patch:
        patch.setattr(soho, "can_pack", lambda *_, **__: False)
        plain = losses_and_gradients(build(), batch)
    assert not calls
    packed = losses_and_gradients(build(), batch)
    assert len(calls) == 1
    return plain, packed


def assert_same(plain, packed):
    (plain_output, plain_grads), (packed_output, packed_grads) = plain, packed
    for name in ("loss", "mlm_loss", "mvm_loss", "itm_loss", "mlm_logits", "mvm_logits", "itm_logits"):
        torch.testing.assert_close(packed_output[name], plain_output[name], rtol=1e-6, atol=1e-6, msg=name)
    assert plain_grads.keys() == packed_grads.keys()
    for name, grad in plain_grads.items():
        # BatchNorm on few pixels multiplies float32's rounding, hence an error relative to the whole tensor.
        error = float((packed_grads[name] - grad).norm())
        assert error <= 2e-5 * float(grad.norm()) + 1e-7, f"{name}: {error:.2e} of {float(grad.norm()):.2e}"


@pytest.mark.parametrize(
    "overrides",
    [{}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3, "dictionary_batch_norm": True, "visual_pool": 2}],
    ids=["two-layers", "one-layer", "three-layers"],
)
def test_losses_and_gradients_are_the_plain_encoders(monkeypatch, tiny_model, batch, counted, overrides):
    def build():
        model = tiny_model(**overrides).train()
        model.freeze_batch_norm()
        return model

    assert_same(*plain_and_packed(monkeypatch, build, batch(), counted))


def test_padded_images_texts_in_any_order_and_labels_on_padding(monkeypatch, tiny_model, batch, counted):
    inputs = batch(size=(96, 128))
    inputs["pixel_mask"][0, :, 64:] = 0
    inputs["pixel_mask"][1, 32:] = 0
    order = torch.randperm(len(inputs["image_index"]), generator=torch.Generator().manual_seed(3))
    for name in ("input_ids", "attention_mask", "image_index", "mlm_labels", "itm_labels"):
        inputs[name] = inputs[name][order]
    # Whatever a caller labels is read, be it padding: a query there, never a key.
    row = int((inputs["attention_mask"][:, 6] == 0).nonzero()[0])
    inputs["mlm_labels"][row, 6] = 7

    def build():
        model = tiny_model().train()
        model.freeze_batch_norm()
        return model

    plain, packed = plain_and_packed(monkeypatch, build, inputs, counted)
    assert not packed[0].valid.all()
    assert_same(plain, packed)


def test_without_dictionary_labels_and_image_index(monkeypatch, tiny_model, batch, counted):
    inputs = batch(texts_per_image=1)
    del inputs["image_index"], inputs["mask_uniform"], inputs["itm_labels"]

    def build():
        return tiny_model(use_dictionary=False).train()

    (plain, _), (packed, _) = plain_and_packed(monkeypatch, build, inputs, counted)
    assert packed.mvm_loss is None
    torch.testing.assert_close(packed.itm_logits, plain.itm_logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(packed.loss, plain.loss, rtol=1e-6, atol=1e-6)


def test_attention_gradients_are_exact(batch):
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
    assert torch.autograd.gradcheck(
        lambda q, k, v: packed_encoder._Attention.apply(q, k, v, queries, keys, mask_R1T, 2), (query, key, value)
    )


@pytest.mark.parametrize("kwarg", ["output_hidden_states", "output_attentions"])
def test_states_and_attentions_are_given_when_asked_for(tiny_model, batch, counted, kwarg):
    model = tiny_model().train()
    if kwarg == "output_attentions":
        model.set_attn_implementation("eager")
    output = model(**batch(), **{kwarg: True})
    states = output.hidden_states if kwarg == "output_hidden_states" else output.attentions
    assert len(states) >= model.config.num_hidden_layers and not counted


def test_a_layers_hook_sees_every_state(tiny_model, batch, counted):
    model, seen = tiny_model().train(), []
    model.soho.encoder.layer[0].output.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    inputs = batch()
    model(**inputs)
    assert len(seen) == 1 and seen[0][0] == len(inputs["input_ids"]) and not counted


def test_steps_aside(tiny_model, batch, counted):
    model, inputs = tiny_model().train(), batch()
    model(**inputs)
    assert len(counted) == 1
    model.eval()(**inputs)
    model.train().set_attn_implementation("eager")
    model(**inputs)
    model.set_attn_implementation("sdpa")
    model.activation_checkpointing_enable()
    model(**inputs).loss.backward()
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        tiny_model(**{name: 0.1}).train()(**inputs)
    assert len(counted) == 1


def test_bf16_in_row_counts_that_recur(monkeypatch, tiny_model, batch, counted):
    """Kernels are compiled per shape there: whatever the texts' lengths, the row counts are multiples."""
    inputs = batch()

    def build():
        model = tiny_model().train()
        model.freeze_batch_norm()
        return model.bfloat16()

    (plain, _), (packed, _) = plain_and_packed(monkeypatch, build, inputs, counted)
    assert packed.loss.dtype == torch.float32 and packed.itm_logits.dtype == torch.bfloat16
    torch.testing.assert_close(packed.loss, plain.loss, rtol=1e-2, atol=0.0)
    assert packed.mlm_logits.shape == plain.mlm_logits.shape

    sizes, functional = set(), torch.nn.functional.linear

    def linear(x, *args):
        if x.dim() == 2:
            sizes.add(x.shape[0])
        return functional(x, *args)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    model = build()
    for length in range(3, 8):
        inputs["attention_mask"] = torch.ones(12, 7, dtype=torch.int64)
        inputs["attention_mask"][:7, length:] = 0
        model(**inputs)
    # Pairs; what is read; a multiple of 64 rows, or all 156 places, and without the 9 repetitions of 6 visual tokens.
    assert sizes <= {12, 32, 128, 128 - 54, 156, 156 - 54}


def test_autocast_packs_in_bf16_with_float32_gradients(tiny_model, batch, counted):
    inputs, model = batch(), tiny_model().train()
    model.freeze_batch_norm()
    exact = model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    assert len(counted) == 2
    assert output.loss.dtype == torch.float32 and output.itm_logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.loss, exact.loss, rtol=1e-2, atol=0.0)
    output.loss.backward()
    grads = [parameter.grad for parameter in model.soho.encoder.parameters()]
    assert {grad.dtype for grad in grads} == {torch.float32} and all(grad.isfinite().all() for grad in grads)


def test_filling_up_changes_nothing_in_float32(monkeypatch, tiny_model, batch, counted):
    def build():
        model = tiny_model(num_hidden_layers=3).train()
        model.freeze_batch_norm()
        return model

    monkeypatch.setattr(packed_encoder, "recurring", lambda count, like, multiple=32: -(-count // multiple) * multiple)
    assert_same(*plain_and_packed(monkeypatch, build, batch(), counted))


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
        rows_N4, all_V4 = packed_encoder.SharedWords.apply(table_VD, id_N, padding_id)
        torch.testing.assert_close(gradient(rows_N4, all_V4, use_rows, use_table), expected, rtol=1e-12, atol=1e-12)


def test_an_untied_classifier_keeps_its_own_weight(monkeypatch, tiny_model, batch, counted):
    def build():
        model = tiny_model(tie_word_embeddings=False).train()
        model.freeze_batch_norm()
        return model

    decoder = build().mlm_head.decoder.weight
    assert decoder is not build().soho.text_embeddings.word_embeddings.weight
    plain, packed = plain_and_packed(monkeypatch, build, batch(), counted)
    assert_same(plain, packed)
    assert "mlm_head.decoder.weight" in packed[1]
