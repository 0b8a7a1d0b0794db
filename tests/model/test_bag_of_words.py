"""The bag-of-words loss: what counts as a word of the image, and what trains while nothing else does."""

import pytest
import torch
import torch.nn.functional as F

from soho_fast.model import Texts
from soho_fast.model.auxiliary.bag_of_words import captions_of, words_of_captions


def test_targets_hold_the_words_of_matched_texts_only_with_masked_words_restored():
    input_ids = torch.tensor([[7, 4, 0], [8, 9, 0], [5, 6, 7], [3, 4, 0]])
    attention_mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0]])
    mlm_labels = torch.full_like(input_ids, -100)
    mlm_labels[0, 1] = 2
    itm_labels = torch.tensor([1, 0, 1, 1])
    image_index = torch.tensor([0, 0, 1, 1])
    captions = captions_of(Texts(input_ids, attention_mask, image_index), mlm_labels, itm_labels)
    words = words_of_captions(captions, 2, 10)
    assert [row.nonzero().flatten().tolist() for row in words] == [[2, 7], [3, 4, 5, 6, 7]]
    assert words.max() == 1.0


def test_loss_against_the_formula(tiny_model, batch):
    model, inputs = tiny_model(bag_of_words_weight=0.5).train(), batch()
    output = model(**inputs)
    model.eval()
    with torch.no_grad():
        # BatchNorm in training mode gives the features of the first call again.
        model.soho.visual_encoder.train()
        feat_BLD, _ = model.soho.encode_features(inputs["pixel_values"], inputs["pixel_mask"])
    head = model.bag_of_words_head
    logits_BLV = head.norm(feat_BLD) @ model.get_input_embeddings().weight.T + head.bias
    words_BV = torch.zeros(3, 60)
    for text in range(12):
        if inputs["itm_labels"][text]:
            ids = inputs["input_ids"][text].where(inputs["mlm_labels"][text] == -100, inputs["mlm_labels"][text])
            words_BV[inputs["image_index"][text], ids[inputs["attention_mask"][text] == 1]] = 1.0
    expected = F.binary_cross_entropy_with_logits(logits_BLV.amax(1), words_BV, reduction="sum") / 3
    torch.testing.assert_close(output.bag_of_words_loss, expected)
    others = output.mlm_loss + output.mvm_loss + output.itm_loss
    torch.testing.assert_close(output.loss, others + 0.5 * expected)


def test_alone_it_runs_neither_dictionary_nor_transformer(tiny_model, batch):
    model = tiny_model(bag_of_words_weight=0.5).train()
    model.bag_of_words_only = True
    output = model(**batch())
    output.loss.backward()
    assert output.mlm_loss is None and output.itm_loss is None
    torch.testing.assert_close(output.loss, 0.5 * output.bag_of_words_loss)
    assert int(model.soho.visual_dictionary.step) == 0 and not bool(model.soho.visual_dictionary.initialised)
    assert all(parameter.grad is None for parameter in model.soho.encoder.parameters())
    assert model.soho.visual_encoder.backbone.conv1.weight.grad.abs().max() > 0
    assert model.get_input_embeddings().weight.grad.abs().max() > 0
    assert model.eval()(**batch()).mlm_loss is not None


def test_padding_never_gives_the_best_match(tiny_model):
    model = tiny_model(bag_of_words_weight=0.5)
    feat_BLD = torch.randn(3, 6, 16)
    valid_BL = torch.arange(6).expand(3, 6) < 4
    torch.testing.assert_close(
        model.bag_of_words_head(feat_BLD, valid_BL), model.bag_of_words_head(feat_BLD[:, :4], valid_BL[:, :4])
    )


def test_without_weight_there_is_no_head(tiny_model, batch):
    model = tiny_model()
    assert model.bag_of_words_head is None
    assert model.train()(**batch()).bag_of_words_loss is None
    with pytest.raises(ValueError, match=r"bag_of_words_weight: expected at least 0, got -1"):
        tiny_model(bag_of_words_weight=-1)


def test_loading_keeps_a_trained_bias(tiny_model, tmp_path):
    model = tiny_model(bag_of_words_weight=0.5)
    with torch.no_grad():
        model.bag_of_words_head.bias.copy_(torch.arange(60.0))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.bag_of_words_head.bias, torch.arange(60.0))
    assert loaded.bag_of_words_head.decoder.weight is loaded.get_input_embeddings().weight
