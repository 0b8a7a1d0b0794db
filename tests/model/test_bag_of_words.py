"""The bag-of-words loss: what counts as a word of the image, and what trains while nothing else does."""

import torch
import torch.nn.functional as F


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
