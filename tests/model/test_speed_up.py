"""A model that was sped up on a CPU computes what the plain one computes, and a plain one knows nothing of it."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from soho_fast.model import (
    SohoForImageTextRetrieval,
    SohoForPreTraining,
    SohoForQuestionAnswering,
    SohoForVisualEntailment,
    SohoForVisualReasoning,
)
from soho_fast.model.fast.cpu import speed_up_on_cpu
from soho_fast.model.fast.cpu.classifier import classify_on_cpu
from soho_fast.model.fast.cpu.convolutions import CpuCnn, CpuConv2d

LOSSES = ("loss", "mlm_loss", "mvm_loss", "itm_loss", "bag_of_words_loss", "contrastive_loss")
LOGITS = ("mlm_logits", "mvm_logits", "itm_logits", "logits")
PAPER_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def step(model, inputs):
    """Outputs and gradients of a step that no batch statistics of few pixels blow rounding up in."""
    if model.training:
        model.freeze_batch_norm()
    output = model(**inputs)
    output.loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(plain, fast, tolerance=1e-6):
    (plain_output, plain_grads), (fast_output, fast_grads) = plain, fast
    assert plain_output.keys() == fast_output.keys()
    for name in plain_output.keys() & {*LOSSES, *LOGITS}:
        got, expected = fast_output[name], plain_output[name]
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    assert plain_grads.keys() == fast_grads.keys()
    # Where the exact gradient is zero, as of a key's bias, which softmax does not see, rounding is all there is.
    floor = 0.1 * tolerance * float(torch.stack([grad.norm() for grad in plain_grads.values()]).norm())
    for name, grad in plain_grads.items():
        error = float((fast_grads[name] - grad).norm())
        assert error <= 20 * tolerance * float(grad.norm()) + floor, f"{name}: {error:.2e} of {float(grad.norm()):.2e}"


def padded(batch):
    """Images and texts of several sizes, in any order, one label on padding."""
    inputs = batch(size=(96, 128))
    inputs["pixel_mask"][0, :, 64:] = 0
    inputs["pixel_mask"][1, 32:] = 0
    order = torch.randperm(len(inputs["image_index"]), generator=torch.Generator().manual_seed(3))
    for name in ("input_ids", "attention_mask", "image_index", "mlm_labels", "itm_labels"):
        inputs[name] = inputs[name][order]
    # Whatever a caller labels is read, be it padding: a query there, never a key.
    row = int((inputs["attention_mask"][:, 6] == 0).nonzero()[0])
    inputs["mlm_labels"][row, 6] = 7
    return inputs


@pytest.mark.parametrize(
    ("training", "make_inputs"), [(True, padded), (False, lambda batch: batch())], ids=["training", "evaluation"]
)
@pytest.mark.parametrize(
    "overrides",
    [
        {}, {"num_hidden_layers": 1},
        {"num_hidden_layers": 3, "dictionary_batch_norm": True, "visual_pool": 2},
        {"dictionary": "none"}, {"backbone": "mobilenet_v2", "bag_of_words_weight": 0.3},
        {"tie_word_embeddings": False}, {"backbone_frozen_stages": 1},
    ],
    ids=lambda overrides: "-".join(overrides) or "tiny",
)  # fmt: skip
def test_losses_and_gradients_of_pretraining(tiny_model, batch, packed, overrides, training, make_inputs):
    inputs = make_inputs(batch)
    models = [tiny_model(**overrides).train(training) for _ in range(2)]
    for model in models:
        if model.soho.visual_dictionary is not None and not training:
            model.soho.visual_dictionary.codebook.normal_(generator=torch.Generator().manual_seed(0))
    plain = step(models[0], inputs)
    assert not packed
    assert_same(plain, step(speed_up_on_cpu(models[1]), inputs))
    assert len(packed) == 1
    if models[0].soho.visual_dictionary is not None:
        codebooks = [model.soho.visual_dictionary.codebook for model in models]
        torch.testing.assert_close(*codebooks, rtol=0, atol=2e-6 * float(codebooks[0].abs().max()))


@pytest.mark.parametrize("missing", [["image_index"], ["mask_uniform"], ["itm_labels"], ["mlm_labels"]])
def test_losses_and_gradients_with_less_given(tiny_model, batch, packed, missing):
    inputs = batch(texts_per_image=1)
    inputs = {name: value for name, value in inputs.items() if name not in missing}
    plain = step(tiny_model().train(), inputs)
    assert_same(plain, step(speed_up_on_cpu(tiny_model().train()), inputs))
    assert len(packed) == 1


TASKS = {
    SohoForImageTextRetrieval: {"own_image": torch.tensor([0, 2, 1, 2])},
    SohoForQuestionAnswering: {"answer_scores": torch.eye(4)[:, :2], "image_index": torch.tensor([0, 2, 1, 2])},
    SohoForVisualReasoning: {
        "labels": torch.tensor([1, 0, 1, 1]),
        "image_index": torch.tensor([[0, 1]] * 3 + [[2, 1]]),
    },
    SohoForVisualEntailment: {"labels": torch.tensor([1, 0, 2, 1]), "image_index": torch.tensor([0, 2, 1, 2])},
}


@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_losses_and_gradients_downstream(tiny_config, packed, kind, training):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 60, (4, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    pixels = torch.randn(3, 3, 64, 96, generator=generator)
    inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, **TASKS[kind]}
    steps = []
    for fast in (False, True):
        torch.manual_seed(1)
        model = kind(tiny_config(use_dictionary_output=False, contrastive_weight=0.5)).train(training)
        steps.append(step(speed_up_on_cpu(model) if fast else model, inputs))
        assert len(packed) == fast
    assert_same(*steps)


def test_gradient_checkpointing(tiny_model, batch, packed):
    steps = []
    for fast in (False, True):
        model = tiny_model().train()
        model.activation_checkpointing_enable({"use_reentrant": False})
        steps.append(step(speed_up_on_cpu(model) if fast else model, batch()))
    assert_same(*steps)
    assert not packed, "recomputed layer by layer, the Transformer takes the ordinary way"


@pytest.mark.parametrize("cast", ["autocast", "weights"])
def test_bf16(tiny_model, batch, packed, cast):
    exact = step(tiny_model().train(), batch())
    losses = []
    for fast in (False, True):
        model = tiny_model().train()
        model = speed_up_on_cpu(model) if fast else model
        model = model.bfloat16() if cast == "weights" else model
        with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
            output, grads = step(model, batch())
        losses.append(output.loss)
        assert output.loss.dtype == torch.float32 and output.itm_logits.dtype == torch.bfloat16
        assert {grad.dtype for grad in grads.values()} == {torch.float32 if cast == "autocast" else torch.bfloat16}
        for name in ("soho.encoder.layer.0.attention.self.value.weight", "mlm_head.transform.dense.weight"):
            torch.testing.assert_close(grads[name].float(), exact[1][name], rtol=0, atol=0.1 * _size(exact[1][name]))
    torch.testing.assert_close(*losses, rtol=2e-3, atol=0.0)
    torch.testing.assert_close(losses[1], exact[0].loss, rtol=1e-2, atol=0.0)
    assert len(packed) == 1


def _size(tensor):
    return float(tensor.abs().max())


# Dropout.


def dropout_by_value(x, p=0.5, training=True, inplace=False):
    """Drops by the value instead of by chance: the same wherever the same number is computed."""
    if not training or not p:
        return x
    # A steeper curve would cross its threshold at more values, of which rounding then moves one to the other side.
    values = x.detach().float()
    kept = (30.0 * values).sin() > -0.5
    return x * kept / (1.0 - p)


@pytest.mark.parametrize("dictionary", ["paper", "none"])
@pytest.mark.parametrize("kind", ["hidden_dropout_prob", "attention_probs_dropout_prob", "both"])
def test_dropout_drops_what_the_plain_model_drops(tiny_model, batch, packed, monkeypatch, kind, dictionary):
    monkeypatch.setattr(F, "dropout", dropout_by_value)
    dropout = PAPER_DROPOUT if kind == "both" else {**dict.fromkeys(PAPER_DROPOUT, 0.0), kind: 0.1}

    def build(**dropout):
        model = tiny_model(**dropout, dictionary=dictionary, num_hidden_layers=3).train()
        for weight in model.soho.encoder.parameters():
            weight.data.mul_(10.0 if weight.dim() > 1 else 1.0)  # as drawn, attention hardly matters
        model.set_attn_implementation("eager")  # SDPA draws inside
        return model

    plain, fast = step(build(**dropout), padded(batch)), step(speed_up_on_cpu(build(**dropout)), padded(batch))
    assert (plain[0].loss - step(build(), padded(batch))[0].loss).abs() > 5e-4
    assert_same(plain, fast, tolerance=1e-5)
    assert len(packed) == 1


DROPOUTS = {
    "words": lambda soho: [soho.text_embeddings.dropout],
    "visual tokens": lambda soho: [soho.visual_embeddings.dropout],
    "attention": lambda soho: [layer.attention.self.dropout for layer in soho.encoder.layer],
    "after attention": lambda soho: [layer.attention.output.dropout for layer in soho.encoder.layer],
    "after feed-forward": lambda soho: [layer.output.dropout for layer in soho.encoder.layer],
}


@pytest.mark.parametrize("which", DROPOUTS)
def test_each_dropout_spreads_as_in_the_plain_model(tiny_model, packed, which):
    """Logits of one text 600 times with one image: alike in mean and spread, and every pair draws for itself."""
    num_texts = 600
    inputs = {
        "pixel_values": torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        "input_ids": torch.tensor([[2, 7, 9, 3]]).expand(num_texts, -1),
        "image_index": torch.zeros(num_texts, dtype=torch.int64),
    }
    model = tiny_model().train()
    model.freeze_batch_norm()
    for dropout in DROPOUTS[which](model.soho):
        dropout.p = 0.3
    for weight in (*model.soho.encoder.parameters(), *model.itm_head.parameters()):
        weight.data.mul_(10.0 if weight.dim() > 1 else 1.0)
    model.soho.visual_dictionary.eval().codebook.normal_()
    logits = []
    for fast in (False, True):
        with torch.no_grad():
            two = (speed_up_on_cpu(model) if fast else model)(**inputs).itm_logits
        logits.append((two[:, 1] - two[:, 0]).double())
    assert len(packed) == 1
    (plain_mean, plain_std), (fast_mean, fast_std) = ((x.mean(), x.std()) for x in logits)
    assert plain_std > 0.05
    # Four standard errors of the difference of two means; for the spread more, whose tails are not normal.
    assert abs(plain_mean - fast_mean) < 4 * plain_std * (2 / num_texts) ** 0.5
    assert 0.8 < fast_std / plain_std < 1.25
    # Few places draw alike often, in both.
    assert len(logits[1].unique()) > 0.8 * len(logits[0].unique())


# What stays as it is.


def test_names_files_and_a_second_call(tiny_model, batch, tmp_path, packed):
    plain, fast = tiny_model(backbone="mobilenet_v2"), tiny_model(backbone="mobilenet_v2")
    assert speed_up_on_cpu(fast) is fast
    assert speed_up_on_cpu(fast) is fast
    assert type(fast) is SohoForPreTraining and type(fast.soho.visual_encoder) is type(plain.soho.visual_encoder)
    assert fast.soho.transformer.name == "packed" and type(fast.soho.visual_encoder.cnn) is CpuCnn
    assert fast.mlm_head.classify is fast.mvm_head.classify is classify_on_cpu
    kinds = [type(module) for module in fast.soho.visual_encoder.modules()]
    assert kinds.count(CpuConv2d) == 39 and kinds.count(torch.nn.Conv2d) == 14
    assert "Transformer packed; CNN cpu" in repr(fast) and "Transformer plain; CNN plain" in repr(plain)
    ours, theirs = fast.state_dict(), plain.state_dict()
    assert [*ours] == [*theirs] and all(torch.equal(ours[name], theirs[name]) for name in ours)
    fast.save_pretrained(tmp_path)
    loaded = SohoForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["SohoForPreTraining"]
    fast.train()(**batch())
    assert len(packed) == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_fast_and_its_own(tiny_model, batch, packed, duplicate):
    model = speed_up_on_cpu(tiny_model().train())
    twin = duplicate(model)
    model.freeze_batch_norm()
    expected = step(tiny_model().train(), batch())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    got = step(twin, batch())
    assert len(packed) == 1
    assert_same(expected, got)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("target", ["word_embeddings", "mlm_head.decoder"])
def test_an_adapter_of_the_words_is_read_and_trained(tiny_model, batch, target):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    plain = peft.get_peft_model(tiny_model(), config).train()
    fast = copy.deepcopy(plain)
    speed_up_on_cpu(fast.base_model.model)
    losses = [model(**batch()).loss for model in (plain, fast)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0])
    grads = [{n: p.grad for n, p in model.named_parameters() if "lora" in n} for model in (plain, fast)]
    assert grads[0] and all(grad is not None for grad in grads[0].values())
    torch.testing.assert_close(grads[1], grads[0])
