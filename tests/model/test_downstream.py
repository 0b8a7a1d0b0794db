"""The downstream models: what starts from a checkpoint, what they read, and what their losses are."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from soho_fast.model import (
    SohoConfig,
    SohoForImageTextRetrieval,
    SohoForQuestionAnswering,
    SohoForVisualEntailment,
    SohoForVisualReasoning,
    Texts,
)

MODELS = {
    SohoForImageTextRetrieval: {},
    SohoForQuestionAnswering: {"answers": ["yes", "no", "2", "red"]},
    SohoForVisualReasoning: {},
    SohoForVisualEntailment: {},
}


@pytest.fixture
def checkpoint(tiny_model, batch, tmp_path):
    model = tiny_model(dictionary_batch_norm=True)
    model.train()(**batch())  # the dictionary and the running statistics are no longer at their initial values
    model.save_pretrained(tmp_path / "pretrained")
    return model, tmp_path / "pretrained"


def texts(num_texts=4):
    ids = torch.randint(5, 60, (num_texts, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def images(num_images=4):
    return torch.randn(num_images, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def outputs_of(result):
    return result.itm_logits if "itm_logits" in result else result.logits


@pytest.mark.parametrize("cls", MODELS)
def test_everything_shared_is_loaded_and_reported(checkpoint, cls, tmp_path):
    source, path = checkpoint
    model, report = cls.from_pretraining(path, **MODELS[cls])
    state, ours = source.state_dict(), model.state_dict()
    shared = [name for name in ours if name.startswith("soho.")]
    assert set(shared) == {name for name in state if name.startswith("soho.")}
    assert [name for name in shared if not torch.equal(ours[name], state[name])] == []
    heads = {name.split(".")[0] for name in report.unexpected}
    if cls is SohoForImageTextRetrieval:
        assert report.missing == [] and heads == {"mlm_head", "mvm_head"}
        assert torch.equal(model.itm_head.classifier.weight, source.itm_head.classifier.weight)
    else:
        assert {name.split(".")[0] for name in report.missing} == {"head"}
        assert len(report.missing) == (2 if cls is SohoForVisualEntailment else 4)
        assert heads == {"mlm_head", "mvm_head", "itm_head"}
    assert "tensors loaded" in str(report) and "not used: " in str(report)

    inputs = {"pixel_values": images(8 if cls is SohoForVisualReasoning else 4), **texts()}
    model.eval().save_pretrained(tmp_path / "tuned")
    again = cls.from_pretrained(tmp_path / "tuned").eval()
    assert torch.equal(outputs_of(again(**inputs)), outputs_of(model(**inputs)))
    assert again.config.use_dictionary_output is False


def test_retrieval_scores_as_the_pretrained_model_did(checkpoint):
    source, path = checkpoint
    model, _ = SohoForImageTextRetrieval.from_pretraining(path, use_dictionary_output=True)
    inputs = {"pixel_values": images(), **texts()}
    expected = source.eval()(**inputs).itm_logits
    assert torch.equal(model.eval()(**inputs).itm_logits, expected)
    features, _ = SohoForImageTextRetrieval.from_pretraining(path)
    tokens = features.eval().encode_images(images())
    assert tokens.index is None and tokens.embedding is None, "no lookup is made for the dictionary's input features"
    assert not torch.equal(features(**inputs).itm_logits, expected)


def test_answers_travel_with_the_model(checkpoint, tmp_path):
    model, _ = SohoForQuestionAnswering.from_pretraining(checkpoint[1], answers=["yes", "no", "2"])
    model.save_pretrained(tmp_path / "vqa")
    again = SohoForQuestionAnswering.from_pretrained(tmp_path / "vqa")
    assert again.config.id2label == {0: "yes", 1: "no", 2: "2"}
    assert again.config.label2id["2"] == 2 and again.head[3].out_features == 3
    for answers in (["yes", "yes"], ["yes"], "yes"):
        with pytest.raises(ValueError, match="answers: expected at least two answers, each once"):
            SohoForQuestionAnswering.from_pretraining(checkpoint[1], answers=answers)


def test_the_answer_head_is_the_papers_mlp_with_the_released_activation(tiny_config):
    config = SohoConfig.from_preset("paper", backbone="resnet10", num_hidden_layers=1)
    config.num_labels = 3129
    first, act, dropout, last = SohoForQuestionAnswering(config).head
    assert (first.in_features, first.out_features, last.out_features) == (768, 3072, 3129)
    assert isinstance(act, torch.nn.ReLU) and dropout.p == 0.5
    _, act, dropout, _ = SohoForVisualReasoning(tiny_config(hidden_dropout_prob=0.25)).head
    assert type(act).__name__ == "GELUActivation" and dropout.p == 0.25, "as the Transformer, where no preset says"


def test_a_checkpoint_that_lacks_something_is_refused(checkpoint, tmp_path):
    _, path = checkpoint
    state = load_file(path / "model.safetensors")
    for lost in ("soho.encoder.layer.1.output.dense.weight", "soho.visual_dictionary.codebook"):
        kept = {name: tensor for name, tensor in state.items() if name != lost}
        save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=rf"lacks 1 tensors of a pre-trained SOHO \({lost}\)"):
            SohoForVisualEntailment.from_pretraining(path)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("itm_head.")}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    assert SohoForVisualEntailment.from_pretraining(path)[1].loaded, "this task does not need the matching head"
    with pytest.raises(ValueError, match=r"lacks 2 tensors .*itm_head\.classifier"):
        SohoForImageTextRetrieval.from_pretraining(path)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="SohoConfig has no field hiden_dropout_prob"):
        SohoForVisualEntailment.from_pretraining(path, hiden_dropout_prob=0.0)
    with pytest.raises(FileNotFoundError, match="from_pretraining: no model could be loaded from"):
        SohoForVisualEntailment.from_pretraining(str(tmp_path / "nowhere"))


def test_all_pairs_of_aligned_ones_encode_each_image_once(checkpoint):
    model, _ = SohoForImageTextRetrieval.from_pretraining(checkpoint[1])
    model.eval()
    one_by_one = torch.stack(
        [
            model(pixel_values=images()[[i] * 4], **texts()).itm_logits  # image i with each of the four texts
            for i in range(4)
        ]
    ).flatten(0, 1)
    seen = []
    model.soho.visual_encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    every = {name: tensor.repeat(4, 1) for name, tensor in texts().items()}
    image_index = torch.arange(4).repeat_interleave(4)
    labels = torch.eye(4, dtype=torch.int64).flatten()
    together = model(pixel_values=images(), image_index=image_index, itm_labels=labels, **every)
    assert seen == [4]
    torch.testing.assert_close(together.itm_logits, one_by_one, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.loss, F.cross_entropy(together.itm_logits, labels))
    cached = model(visual_tokens=model.encode_images(images()), image_index=image_index, **every)
    torch.testing.assert_close(cached.itm_logits, together.itm_logits)


def test_reasoning_reads_both_images_in_their_order(checkpoint):
    model, _ = SohoForVisualReasoning.from_pretraining(checkpoint[1])
    model.eval()
    # As drawn, the words hardly look at the image.
    for weight in (*model.soho.encoder.parameters(), *model.head.parameters()):
        weight.data.mul_(10.0 if weight.dim() > 1 else 1.0)
    pairs = torch.tensor([[0, 1], [1, 0], [2, 3], [2, 1]])
    alternating = model(pixel_values=images()[pairs.flatten()], **texts()).logits
    indexed = model(pixel_values=images(), image_index=pairs, **texts()).logits
    torch.testing.assert_close(indexed, alternating, rtol=1e-5, atol=1e-5)
    swapped = model(pixel_values=images(), image_index=pairs.flip(1), **texts()).logits
    assert (swapped - indexed).abs().amax(1).min() > 1e-3
    for column in (0, 1):
        other = pairs.clone()
        other[2, column] = 1
        changed = (model(pixel_values=images(), image_index=other, **texts()).logits - indexed).abs().amax(1) > 1e-3
        assert changed.tolist() == [False, False, True, False]

    # The head's halves are the [CLS] of the left and of the right image.
    visual = model.encode_images(images())
    first = [model.first_hidden(visual, Texts(**texts(), image_index=pairs[:, side]))[0] for side in (0, 1)]
    torch.testing.assert_close(model.head(torch.cat(first, dim=1)), indexed, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"image_index: expected \(statements, 2\), got \(4,\)"):
        model(pixel_values=images(), image_index=pairs[:, 0], **texts())


def test_losses(checkpoint):
    labels = torch.tensor([0, 1, 1, 0])
    reasoning = SohoForVisualReasoning.from_pretraining(checkpoint[1])[0].eval()
    out = reasoning(pixel_values=images(8), **texts(), labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels))
    entailment = SohoForVisualEntailment.from_pretraining(checkpoint[1])[0].eval()
    out = entailment(pixel_values=images(), **texts(), labels=labels + 1)
    assert out.logits.shape == (4, 3)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels + 1))
    with pytest.raises(ValueError, match=r"^labels: expected shape \(4,\), one for each text, got \(3,\)"):
        entailment(pixel_values=images(), **texts(), labels=labels[:3])

    answering = SohoForQuestionAnswering.from_pretraining(checkpoint[1], answers=["a", "b", "c"])[0].eval()
    scores = torch.tensor([[1.0, 0, 0], [0, 0.3, 0.9], [0, 0, 0], [0.6, 0.6, 0]])
    out = answering(pixel_values=images(), **texts(), answer_scores=scores)
    share = out.logits.double().sigmoid()
    by_hand = -(scores * share.log() + (1 - scores) * (1 - share).log()).sum(1).mean()
    torch.testing.assert_close(out.loss.double(), by_hand, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"answer_scores: expected shape \(4, 3\), got \(4, 2\)"):
        answering(pixel_values=images(), **texts(), answer_scores=scores[:, :2])


@pytest.mark.parametrize("cls", MODELS)
def test_training_reads_only_the_first_token_and_reaches_every_parameter(checkpoint, cls):
    model, _ = cls.from_pretraining(checkpoint[1], **MODELS[cls])
    inputs = {"pixel_values": images(8 if cls is SohoForVisualReasoning else 4), **texts()}
    targets = {
        SohoForImageTextRetrieval: {"itm_labels": torch.tensor([0, 1, 1, 0])},
        SohoForQuestionAnswering: {"answer_scores": torch.eye(4)},
    }.get(cls, {"labels": torch.tensor([0, 1, 1, 0])})
    model.freeze_batch_norm()
    before = model.soho.visual_dictionary.codebook.clone()
    model.begin_step()  # Statistics move at its end, not between the two forwards.
    trained = model.train()(**inputs, **targets)
    trained.loss.backward()
    torch.testing.assert_close(outputs_of(trained), outputs_of(model.eval()(**inputs)), rtol=1e-4, atol=1e-5)
    grouped = {name for group in model.parameter_groups() for name in group["names"]}
    without = [name for name, parameter in model.named_parameters() if name in grouped and parameter.grad is None]
    assert without == [] and "soho.mask_token" not in grouped
    assert torch.equal(model.soho.visual_dictionary.codebook, before), "nothing reads the dictionary, nothing moves it"


@pytest.mark.parametrize(("cls", "num"), [(SohoForVisualEntailment, 3), (SohoForVisualReasoning, 2)])
def test_a_head_of_fixed_size_has_as_many_labels(tiny_config, cls, num):
    names = cls(tiny_config()).config.id2label
    assert list(names) == list(range(num)), "transformers takes two where none are named"
    named = {number: f"class {number}" for number in range(num)}
    assert cls(tiny_config(id2label=named)).config.id2label == named
    with pytest.raises(ValueError, match=f"id2label: expected {num} labels, got {5 - num}"):
        cls(tiny_config(id2label={number: f"class {number}" for number in range(5 - num)}))


def test_models_of_several_tasks_share_a_configuration(tiny_config):
    config = tiny_config()
    assert SohoForVisualEntailment(config).config.num_labels == 3 and config.num_labels == 2
    assert SohoForVisualReasoning(config).config is config
