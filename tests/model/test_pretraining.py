"""The whole model: which tokens are masked, which losses count, precision, freezing, saving, caching."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from soho_fast import ops
from soho_fast.model import SohoForPreTraining, SohoModel, Texts, masking
from soho_fast.model.fast.cpu import speed_up_on_cpu
from soho_fast.tasks.recipe import read_recipe


def hidden_states(model, inputs):
    """What the `SohoModel` inside makes of a batch."""
    visual = model.encode_images(inputs["pixel_values"], inputs["pixel_mask"], inputs["mask_uniform"])
    texts = Texts(inputs["input_ids"], inputs["attention_mask"], inputs["image_index"])
    return model.soho(visual, texts, inputs["mask_uniform"])


def test_losses_against_plain_cross_entropy(tiny_model, batch):
    model, inputs = tiny_model().eval(), batch()
    model.soho.visual_dictionary.codebook.normal_()
    out = model(**inputs)
    hidden = hidden_states(model, inputs)
    logits = model.mlm_head(hidden.text_hidden)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["mlm_labels"].flatten())
    torch.testing.assert_close(out.mlm_loss, expected)
    labels = hidden.mvm_labels.masked_fill((inputs["itm_labels"] == 0).unsqueeze(1), -100)
    expected = torch.nn.functional.cross_entropy(model.mvm_head(hidden.visual_hidden).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.mvm_loss, expected)
    expected = torch.nn.functional.cross_entropy(out.itm_logits, inputs["itm_labels"])
    torch.testing.assert_close(out.itm_loss, expected)
    torch.testing.assert_close(out.loss, out.mlm_loss + out.mvm_loss + out.itm_loss)
    assert out.mlm_logits.shape == (6, 60) and out.mvm_logits.shape == (len(out.mvm_targets), 12)


def test_masked_visual_modelling_masks_every_token_of_one_present_label(tiny_model, batch, monkeypatch):
    model, inputs = tiny_model(), batch(size=(128, 128))
    entered = []
    embeddings = model.soho.visual_embeddings
    monkeypatch.setattr(
        embeddings, "forward", lambda embed, position: entered.append(embed) or embed + position.to(embed.dtype)
    )
    with torch.no_grad():
        model.soho.mask_token.fill_(123.0)
    # Four codes for 16 tokens an image: labels are shared.
    model.soho.visual_dictionary.eval().codebook[:4].normal_(std=3.0)
    model.soho.visual_dictionary.codebook[4:] = 1e3
    out = hidden_states(model, inputs)
    for b in range(3):
        present = out.index[b].unique()
        target = present[int(inputs["mask_uniform"][b] * len(present))]
        hit = out.index[b] == target
        for text in (inputs["image_index"] == b).nonzero().flatten():
            assert torch.equal(out.mvm_labels[text], torch.where(hit, target, -100))
            assert torch.equal((entered[0][text] == 123.0).all(-1), hit), "texts of one image must be masked alike"
    assert (out.mvm_labels != -100).sum() > 3 * 4, "no label has two tokens: the test shows nothing"


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("margin", [0, 1, 2])
def test_tokens_within_the_margin_of_masked_ones_are_not_read(tiny_model, batch, margin, fast):
    model = tiny_model(backbone_stride=16, mvm_margin=margin).eval()
    model.soho.visual_dictionary.codebook.normal_(std=0.3)
    if fast:
        speed_up_on_cpu(model)
    inputs = batch(size=(128, 112))
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_index", "mlm_labels", "itm_labels")}
    with torch.no_grad():
        visual = model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])
        _, labels_BL = model.soho.mask_one_label(visual, inputs["mask_uniform"])
        masked_Bhw = (labels_BL != -100).view(3, 8, 7)
        expected_Bhw = torch.zeros_like(masked_Bhw)
        for image, row, column in masked_Bhw.nonzero().tolist():
            rows, columns = (slice(max(at - margin, 0), at + margin + 1) for at in (row, column))
            expected_Bhw[image, rows, columns] = True
        around_BL = (expected_Bhw & ~masked_Bhw).flatten(1)
        assert torch.equal(masking.margin(masked_Bhw.flatten(1), 7, margin), around_BL)
        assert margin == 0 or all(0 < int(each.sum()) < 50 for each in around_BL)

        def logits(changed_BL):
            embedding = torch.where(changed_BL.unsqueeze(-1), visual.embedding + 3.0, visual.embedding)
            again = type(visual)(**{**visual, "embedding": embedding})
            out = model(visual_tokens=again, mask_uniform=inputs["mask_uniform"], **texts)
            return torch.cat([out.itm_logits.flatten(), out.mvm_logits.flatten(), out.mlm_logits.flatten()])

        before = logits(torch.zeros_like(around_BL))
        assert torch.equal(logits(around_BL), before)
        assert torch.equal(logits(around_BL | masked_Bhw.flatten(1)), before), "masked tokens are not read either"
        if margin < 2:
            assert not torch.equal(logits(~around_BL & ~masked_Bhw.flatten(1)), before)


@pytest.mark.parametrize("margin", [0, 1])
def test_matching_is_not_asked_where_the_margin_has_left_tokens_out(tiny_model, batch, margin):
    model, inputs = tiny_model(backbone_stride=16, mvm_margin=margin).eval(), batch()
    inputs["mask_pairs"] = torch.arange(12) % 3 == 0
    model.watch_features()
    model.soho.feature_watch.train()
    out = model(**inputs)
    asked = ~inputs["mask_pairs"] if margin else torch.ones(12, dtype=torch.bool)
    expected = torch.nn.functional.cross_entropy(out.itm_logits[asked], inputs["itm_labels"][asked], reduction="sum")
    torch.testing.assert_close(out.itm_loss, expected / asked.sum())
    watched = [float(value) for value in model.soho.feature_watch._matched]
    assert watched == pytest.approx(
        [float(expected.detach()), int(asked.sum()), int(inputs["itm_labels"][asked].sum())]
    )


def test_training_masks_no_visual_token_until_it_is_told_to(tiny_model, batch):
    inputs = {**batch(), "mask_pairs": torch.arange(12) % 2 == 0}
    model = tiny_model(backbone_stride=16, mvm_margin=1).train()
    masked = model(**inputs)
    model.masks_visual_tokens = False
    whole = model(**inputs)
    assert masked.mvm_loss > 0 and whole.mvm_loss is None
    expected = torch.nn.functional.cross_entropy(whole.itm_logits, inputs["itm_labels"])
    torch.testing.assert_close(whole.itm_loss, expected)  # Asked of all pairs: none of them lacks a token.
    assert model.eval()(**inputs).mvm_loss > 0, "evaluation masks all the same"


def test_labels_by_lift_are_drawn_by_their_share_here_over_their_usage_squared(tiny_model):
    dictionary = tiny_model(mvm_masking="lift").soho.visual_dictionary
    dictionary.age.fill_(1e6)
    dictionary.usage.fill_(1.0)
    dictionary.usage[3], dictionary.usage[7] = 0.5, 2.0
    index_BL = torch.tensor(
        [[5, 5, 3, 7, 7, 7, 7, 9], [2, 2, 2, 2, -1, -1, -1, -1], [-1] * 8, [1, 1, 1, 4, 4, 4, 4, 4]]
    )
    valid_BL = index_BL >= 0
    valid_BL[3, 3:] = False
    weight = {5: 4.0, 3: 4.0, 7: 4.0, 9: 1.0}
    num = 13_000
    uniform = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    drawn = dictionary.draw_by_lift(index_BL[:1].expand(num, -1), valid_BL[:1].expand(num, -1), uniform)
    share = {code: float((drawn == code).double().mean()) for code in drawn.unique().tolist()}
    assert share == pytest.approx({code: each / 13 for code, each in weight.items()}, abs=1e-3)
    for edge in (0.0, 1.0 - 2**-53):
        ends = dictionary.draw_by_lift(index_BL, valid_BL, torch.full((4,), edge, dtype=torch.float64))
        assert ends.tolist() == [3 if edge == 0.0 else 9, 2, -1, 1], "padding is not drawn, nor what is not there"


def test_negatives_give_neither_mlm_nor_mvm_loss(tiny_model, batch):
    model, inputs = tiny_model(), batch()
    all_out = model.eval()(**inputs)
    inputs["itm_labels"] = torch.zeros_like(inputs["itm_labels"])
    inputs["mlm_labels"] = torch.full_like(inputs["mlm_labels"], -100)
    out = model.train()(**inputs)
    assert out.mlm_loss == 0
    assert out.mvm_loss == 0
    assert out.mvm_logits.shape == (0, 12)
    assert all_out.mvm_loss > 0
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.mlm_head.transform.dense.weight.grad.abs().sum() == 0


def test_statistics_count_each_image_once_and_no_padding(tiny_model, batch):
    one, many = batch(texts_per_image=1), batch(texts_per_image=4)
    for inputs in (one, many):
        inputs["pixel_mask"][0, 32:] = 0
    codebooks = []
    for inputs in (one, many):
        model = tiny_model(dictionary_init="random")
        model.freeze_batch_norm()
        model(**inputs)
        codebooks.append(model.soho.visual_dictionary.codebook)
        usage = model.soho.visual_dictionary.usage / (1 - 0.99)
        # 2 + 6 + 6 valid tokens: every share is a multiple of 1/14.
        torch.testing.assert_close((usage / 12 * 14).sum(), torch.tensor(14.0), rtol=1e-4, atol=0)
        torch.testing.assert_close(usage / 12 * 14, (usage / 12 * 14).round(), rtol=1e-3, atol=1e-3)
    assert torch.equal(*codebooks)


def test_a_padded_batch_gives_the_losses_of_the_images_alone(tiny_model, batch):
    model = tiny_model().eval()
    model.soho.visual_dictionary.codebook.normal_()
    inputs = batch(num_images=2, size=(64, 96))
    alone = model(**inputs)
    pad = (0, 96, 0, 64)
    inputs["pixel_values"] = torch.nn.functional.pad(inputs["pixel_values"], pad, value=3.0)
    inputs["pixel_mask"] = torch.nn.functional.pad(inputs["pixel_mask"], pad)
    inputs["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (0, 3))
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 3))
    inputs["mlm_labels"] = torch.nn.functional.pad(inputs["mlm_labels"], (0, 3), value=-100)
    padded = model(**inputs)
    for name in ("mlm_loss", "mvm_loss", "itm_loss"):
        torch.testing.assert_close(padded[name], alone[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded.itm_logits, alone.itm_logits, rtol=1e-4, atol=1e-5)


def test_features_can_be_read_while_their_codes_are_predicted(tiny_model, batch):
    model, inputs = tiny_model(fusion="features"), batch()
    before = model.soho.visual_dictionary.codebook.clone()
    out = model(**inputs)
    assert out.mvm_loss > 0 and not torch.equal(model.soho.visual_dictionary.codebook, before)
    visual = model.eval().encode_images(inputs["pixel_values"])
    quantised = tiny_model().eval()
    quantised.load_state_dict(model.state_dict())
    assert torch.equal(visual.embedding, visual.features)
    assert torch.equal(quantised.encode_images(inputs["pixel_values"]).index, visual.index)
    assert not torch.equal(hidden_states(quantised, inputs).last_hidden_state, hidden_states(model, inputs)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_the_cpu(tiny_model, batch, dtype):
    model, inputs = tiny_model(dictionary_batch_norm=True), batch()
    reference = tiny_model(dictionary_batch_norm=True)(**inputs)
    model.to(dtype)
    out = model(**inputs)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    torch.testing.assert_close(out.loss, reference.loss, rtol=0.05, atol=0.1)
    moved = model.soho.visual_encoder.backbone.bn1.running_var
    assert model.soho.visual_dictionary.codebook.dtype == moved.dtype == torch.float32
    assert model.soho.visual_encoder.backbone.bn1.weight.dtype == dtype and not torch.equal(moved, torch.ones(64))
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_save_and_load_keep_every_bit(tiny_model, batch, tmp_path):
    options = {"code_reset_threshold": 0.2, "dictionary_batch_norm": True, "bag_of_words_weight": 0.5}
    model, inputs = tiny_model(**options), batch()
    model(**inputs)
    model.bag_of_words_head.bias.data.copy_(torch.arange(60.0))
    model.save_pretrained(tmp_path)
    loaded = SohoForPreTraining.from_pretrained(tmp_path)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert {name: t.dtype for name, t in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    words = loaded.soho.text_embeddings.word_embeddings.weight
    assert loaded.mlm_head.decoder.weight is words is loaded.bag_of_words_head.decoder.weight
    assert sum(p is words for p in loaded.parameters()) == 1
    assert torch.equal(model.eval()(**inputs).loss, loaded.eval()(**inputs).loss)
    model.train(), loaded.train()
    assert torch.equal(model(**inputs).loss, loaded(**inputs).loss), "the loaded dictionary started over"
    assert torch.equal(model.soho.visual_dictionary.codebook, loaded.soho.visual_dictionary.codebook)

    model.save_pretrained(tmp_path)
    half = SohoForPreTraining.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.itm_head.classifier.weight.dtype == torch.float16
    ours, theirs = (each.soho.visual_dictionary.state_dict() for each in (model, half))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0, msg=name)
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, SohoModel)
    assert torch.equal(base.visual_dictionary.codebook, half.soho.visual_dictionary.codebook)


def test_activation_checkpointing_changes_neither_loss_nor_state(tiny_model, batch):
    states = []
    for checkpointing in (False, True):
        model, inputs = tiny_model(), batch()
        inputs["pixel_mask"][1, 32:] = 0
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.soho.visual_encoder.gradient_checkpointing
            assert model.soho.encoder.layer[0].gradient_checkpointing
        out = model(**inputs)
        out.loss.backward()
        states.append((out.loss, model.state_dict(), [p.grad for p in model.parameters()]))
    (loss, state, grads), (loss_c, state_c, grads_c) = states
    torch.testing.assert_close(loss_c, loss, rtol=1e-6, atol=1e-6)
    assert [name for name in state if not torch.equal(state[name], state_c[name])] == []
    for grad, grad_c in zip(grads, grads_c, strict=True):
        torch.testing.assert_close(grad_c, grad, rtol=1e-4, atol=1e-6)


def test_parameter_groups_split_backbone_from_rest(tiny_model):
    model = tiny_model()
    groups = model.parameter_groups()
    expected = [("backbone", ""), ("rest", ""), ("rest", "labels")]
    assert [(g["kind"], g["part"]) for g in groups] == expected
    assert all(".visual_encoder.backbone." in f".{name}" for name in groups[0]["names"])
    assert "soho.visual_encoder.projection.weight" in groups[1]["names"]
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    of_matrices = [g for g in model.parameter_groups(matrices=True) if g["matrices"]]
    layers = {f"soho.encoder.layer.{number}." for number in range(model.config.num_hidden_layers)}
    assert sum(len(g["names"]) for g in of_matrices) == 6 * len(layers)
    assert all(
        name.startswith(tuple(layers)) and p.dim() == 2
        for g in of_matrices
        for name, p in zip(g["names"], g["params"], strict=True)
    )
    frozen = tiny_model(backbone_frozen_stages=2).parameter_groups()
    assert not any(name.startswith("soho.visual_encoder.backbone.layer2") for name in frozen[0]["names"])


def test_freezing_reaches_the_encoder_and_survives_train(tiny_model, batch):
    model = tiny_model(dictionary_batch_norm=True)
    model.freeze_batch_norm()
    model.train()
    assert not model.soho.visual_encoder.backbone.bn1.training
    assert model.soho.feature_norm.training
    assert model.soho.visual_dictionary.training
    model.freeze_batch_norm(False)
    assert model.soho.visual_encoder.backbone.bn1.training
    model.freeze_backbone()
    out = model.train()(**batch())
    out.loss.backward()
    assert all(p.grad is None for p in model.base().visual_encoder.backbone.parameters())
    assert model.soho.visual_encoder.projection.weight.grad is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": None}, "input_ids: expected"),
        ({"input_ids": torch.zeros(12, dtype=torch.int64)}, "input_ids: expected"),
        ({"pixel_values": None}, "exactly one of pixel_values, visual_tokens and backbone_features"),
        ({"image_index": None}, "image_index: needed to map 12 texts to 3 images"),
        ({"image_index": torch.zeros(5, dtype=torch.int64)}, "image_index: expected shape"),
        ({"pixel_values": torch.zeros(3, 64, 64)}, "pixel_values: expected"),
        ({"pixel_mask": torch.ones(3, 32, 64)}, "pixel_mask: expected shape"),
        (
            {"pixel_values": torch.zeros(3, 3, 96, 64, dtype=torch.uint8)},
            r"pixel_values: expected normalised images, .*got torch\.uint8",
        ),
        ({"mlm_labels": torch.full((6, 7), 5)}, r"mlm_labels: expected shape \(12, 7\) as input_ids has, got \(6, 7\)"),
        ({"itm_labels": torch.ones(12, 1, dtype=torch.int64)}, r"itm_labels: expected shape \(12,\), one for each"),
        (
            {"attention_masks": torch.ones(12, 7)},
            "attention_masks: there is no such argument; did you mean attention_m",
        ),
    ],
)
@pytest.mark.parametrize("prepare", [lambda model: model, speed_up_on_cpu], ids=["plain", "sped up"])
def test_arguments_that_do_not_fit_are_named(tiny_model, batch, change, words, prepare):
    with pytest.raises(ValueError, match=words):
        prepare(tiny_model())(**{**batch(), **change})


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({}, "exactly one of pixel_values, visual_tokens and backbone_features"),
        ({"pixel_values": (2, 3, 64, 64), "backbone_features": (2, 512, 2, 2)}, "exactly one of pixel_values, visual"),
        ({"backbone_features": (2, 512, 2, 2), "pixel_mask": (2, 64, 64)},
         "expected pixel_mask with pixel_values, or"),
        ({"pixel_values": (2, 3, 64, 64), "backbone_mask": (2, 2, 2)}, "expected pixel_mask with pixel_values, or"),
        ({"backbone_features": (2, 16, 2, 2)},
         r"backbone_features: expected \(images, 512, h, w\), got \(2, 16, 2, 2\)"),
        ({"backbone_features": (2, 512, 2, 2), "backbone_mask": (2, 3, 2)},
         r"backbone_mask: expected shape \(2, 2, 2\)"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit_are_named(tiny_model, images, words):
    images = {name: torch.zeros(shape, dtype=torch.bool if "mask" in name else None) for name, shape in images.items()}
    with pytest.raises(ValueError, match=words):
        tiny_model().encode_images(**images)


def test_attentions_and_hidden_states_on_request(tiny_model, batch):
    model, inputs = tiny_model(), batch()
    model.set_attn_implementation("eager")
    out = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 2
    assert out.attentions[0].shape == (12, 2, 13, 13)
    assert len(out.hidden_states) == 3
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"output_attentions: attention 'sdpa' has none to give; call set_attn_impl"):
        model(**inputs, output_attentions=True)
    # A padded word is looked at by nobody.
    assert out.attentions[0][1, :, :, 5:7].abs().max() == 0


@pytest.mark.parametrize("num_words", [70, 50])
def test_another_vocabulary_reaches_all_that_has_a_row_for_each_word(tiny_model, batch, tmp_path, num_words):
    model = tiny_model(bag_of_words_weight=1.0)
    bias_V = model.bag_of_words_head.bias.data.copy_(torch.arange(60)).clone()
    model.bag_of_words_head.bias.requires_grad_(False)
    model.resize_token_embeddings(num_words)
    assert not model.bag_of_words_head.bias.requires_grad
    inputs = batch() | {"input_ids": batch()["input_ids"].clamp(max=49), "mlm_labels": None}
    assert model.train()(**inputs).loss.isfinite()
    resized_V = model.bag_of_words_head.bias.detach()
    assert torch.equal(resized_V[:50], bias_V[:50]) and (resized_V[60:] == model.bag_of_words_head.PRIOR_LOGIT).all()
    model.save_pretrained(tmp_path)
    assert SohoForPreTraining.from_pretrained(tmp_path).bag_of_words_head.bias.shape == (num_words,)


def test_a_keyword_without_a_value_is_not_given(tiny_model, batch):
    """As peft's models of tasks give `inputs_embeds`, whatever model they wrap."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="FEATURE_EXTRACTION")
    assert peft.get_peft_model(tiny_model(), config)(**batch()).loss.isfinite()


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


LOSSES = ("mlm_loss", "mvm_loss", "itm_loss")


def backbone_gradients(model, inputs, name: str) -> list[float]:
    model.zero_grad()
    getattr(model.train()(**inputs), name).backward()
    return [
        0.0 if p.grad is None else float(p.grad.abs().max()) for p in model.base().visual_encoder.backbone.parameters()
    ]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_loss_trains_every_weight_of_the_cnn(tiny_model, batch, name, batch_norm):
    model = tiny_model(dictionary_batch_norm=batch_norm)
    model.freeze_batch_norm()
    assert min(backbone_gradients(model, batch(size=(96, 96)), name)) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_there_is_no_way_around_the_dictionary(tiny_model, batch, name, monkeypatch):
    straight_through = ops.straight_through

    def detached(feat, codebook, index):
        return straight_through(feat, codebook, index).detach().requires_grad_()

    monkeypatch.setattr(ops, "straight_through", detached)
    assert max(backbone_gradients(tiny_model(), batch(size=(96, 96)), name)) == 0


def test_the_demo_trains_its_cnn_with_all_losses_in_the_last_epoch():
    recipe = read_recipe(["--recipe", "mini"])
    begin, end = recipe.optim.frozen_span()
    assert recipe.model.bag_of_words_epochs <= begin < end <= recipe.epochs - 1
    assert recipe.optim.backbone_lr > 0 and recipe.schedule.end_factor > 0
    assert recipe.model.config.mvm_weight > 0 and recipe.data.mvm_from_epoch < end
