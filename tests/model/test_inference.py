"""`prepare_for_inference`: the same answers, faster, and nothing else any more."""

import copy

import pytest
import torch

from soho_fast.model import (
    SohoForImageTextRetrieval,
    SohoForPreTraining,
    SohoForQuestionAnswering,
    SohoForVisualEntailment,
    SohoForVisualReasoning,
)
from soho_fast.model.fast.cpu import speed_up_on_cpu
from soho_fast.model.fast.prepared import prepared_type

NO_BF16 = "this processor has no instructions for bfloat16"
HAS_BF16 = prepared_type("auto", torch.device("cpu")) == "bf16"
PRECISIONS = ["float32", pytest.param("bf16", marks=pytest.mark.skipif(not HAS_BF16, reason=NO_BF16))]
# What bfloat16 makes of the logits of these models, whose spread is about 1: 2^-8 in each of some layers.
BF16_TOLERANCE = 0.05
KINDS = {
    "pre-training": (SohoForPreTraining, {}),
    "without dictionary": (SohoForPreTraining, {"dictionary": "none"}),
    "mobilenet": (SohoForPreTraining, {"backbone": "mobilenet_v2", "dictionary_batch_norm": True}),
    "small tokens": (SohoForPreTraining, {"backbone": "mobilenet_v2", "backbone_stride": 16, "fusion": "gate"}),
    "one layer": (SohoForPreTraining, {"num_hidden_layers": 1, "visual_pool": 2}),
    "retrieval": (SohoForImageTextRetrieval, {"contrastive_weight": 0.5}),
    "answers": (SohoForQuestionAnswering, {"use_dictionary_output": False}),
    "two images": (SohoForVisualReasoning, {"backbone": "resnet50"}),
    "entailment": (SohoForVisualEntailment, {"hidden_act": "relu", "backbone_stride": 16}),
}


def lived(model):
    """A model as training leaves one: BatchNorm with statistics of its own, codes among the features."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_mean.normal_(std=0.2, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(std=0.2, generator=generator)
    for head in ("itm_head", "head"):
        for parameter in getattr(model, head, torch.nn.Identity()).parameters():
            parameter.data.normal_(std=0.3, generator=generator)
    dictionary = model.base().visual_dictionary
    if dictionary is not None:
        pixels = torch.randn(4, 3, 96, 96, generator=generator)
        features_BLD, _ = model.eval().base().encode_features(pixels)
        rows = features_BLD.detach().flatten(0, 1)[: dictionary.num_codes]
        dictionary.codebook[: len(rows)] = rows
    return model.eval()


def inputs_of(kind, padded=True):
    """Three images of several sizes and texts of several lengths, two of which read one image."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(3, 3, 96, 128, generator=generator)
    mask = torch.ones(3, 96, 128, dtype=torch.int64)
    ids = torch.randint(5, 60, (4, 9), generator=generator)
    words = torch.ones_like(ids)
    if padded:
        mask[0, :, 70:] = 0
        mask[2, 50:] = 0
        words[1, 4:] = 0
        words[3, 7:] = 0
    index = torch.tensor([0, 1, 1, 2])
    if kind is SohoForVisualReasoning:
        index = torch.tensor([[0, 1], [1, 1], [2, 0], [1, 2]])
    pixels = pixels * mask.unsqueeze(1)
    return {
        "pixel_values": pixels, "pixel_mask": mask, "input_ids": ids * words, "attention_mask": words,
        "image_index": index,
    }  # fmt: skip


def logits_of(output):
    return output.itm_logits if "itm_logits" in output else output.logits


@pytest.fixture
def build(tiny_config, tiny_official):
    def make(name):
        if name.startswith("official"):
            kind = SohoForImageTextRetrieval if "retrieval" in name else SohoForPreTraining
            return lived(tiny_official(kind))
        kind, overrides = KINDS[name]
        torch.manual_seed(1)
        return lived(kind(tiny_config(**overrides)))

    return make


@pytest.mark.parametrize(
    ("name", "padded"),
    [*((name, True) for name in (*KINDS, "official", "official retrieval")), ("pre-training", False),
     ("two images", False), ("official", False)],
)  # fmt: skip
def test_the_same_answers_in_float32(build, name, padded):
    model = build(name)
    inputs = inputs_of(type(model), padded)
    before = {key: value.clone() for key, value in inputs.items()}
    with torch.no_grad():
        wanted, wanted_tokens = model(**inputs), model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])
    assert model.prepare_for_inference("float32") is model
    with torch.no_grad():
        got, got_tokens = model(**inputs), model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])
        again = model(
            visual_tokens=got_tokens, **{key: inputs[key] for key in ("input_ids", "attention_mask", "image_index")}
        )
    torch.testing.assert_close(logits_of(got), logits_of(wanted), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits_of(again), logits_of(got), rtol=1e-5, atol=1e-6)
    assert logits_of(wanted).std() > 0.05, "a model that says the same of all inputs proves nothing"
    valid_BL = wanted_tokens.valid
    torch.testing.assert_close(got_tokens.valid, valid_BL)
    # Sums of float32 in another order: processors differ in how far that goes.
    torch.testing.assert_close(got_tokens.features[valid_BL], wanted_tokens.features[valid_BL], rtol=3e-4, atol=1e-4)
    if wanted_tokens.index is not None:
        assert torch.equal(got_tokens.index[valid_BL], wanted_tokens.index[valid_BL])
        assert len(got_tokens.index[valid_BL].unique()) >= 3
    assert all(torch.equal(inputs[key], before[key]) for key in inputs), "what the caller gave was written to"


@torch.no_grad()
def test_autocast_changes_neither_scores_of_pairs_nor_losses(build, batch):
    model = build("retrieval").prepare_for_inference("float32")
    inputs = inputs_of(type(model), padded=False)
    pretraining = build("pre-training").prepare_for_inference("float32")

    def answers():
        images = model.embed_images(model.encode_images(inputs["pixel_values"]))
        pairs = torch.arange(4), inputs["image_index"]
        yield model.matching_logits(images, inputs["input_ids"], *pairs)
        yield model.text_vectors(inputs["input_ids"])
        output = pretraining(**batch())
        yield from (output.loss, output.mlm_logits, output.mvm_logits)

    wanted = list(answers())
    with torch.autocast("cpu", torch.bfloat16):
        for got, expected in zip(answers(), wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert model.image_vectors(model.embed_images(model.encode_images(inputs["pixel_values"]))).isfinite().all()


@pytest.mark.skipif(not HAS_BF16, reason=NO_BF16)
@pytest.mark.parametrize("name", [*KINDS, "official"])
def test_bf16_is_near_and_chooses_the_same(build, name):
    model = build(name)
    inputs = inputs_of(type(model))
    with torch.no_grad():
        wanted = logits_of(model(**inputs))
        with torch.autocast("cpu", torch.bfloat16):
            cast = logits_of(model(**inputs)).float()
        got = logits_of(model.prepare_for_inference("bf16")(**inputs))
    assert got.dtype == torch.float32
    allowed = max(BF16_TOLERANCE, 2 * float((cast - wanted).abs().max()))
    assert float((got - wanted).abs().max()) < allowed
    if name != "answers":
        sure = (wanted[:, 0] - wanted[:, 1]).abs() > 2 * allowed
        assert torch.equal(got.argmax(1)[sure], wanted.argmax(1)[sure])


def test_the_losses_and_logits_of_pretraining(tiny_model, batch):
    """Evaluation masks words and codes and reads what the heads make of them."""
    model = lived(tiny_model())
    with torch.no_grad():
        wanted = model(**batch())
        got = model.prepare_for_inference("float32")(**batch())
    for name in ("loss", "mlm_logits", "mvm_logits", "itm_logits"):
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_states_and_attentions_are_given_where_they_are_asked_for(build):
    model = build("pre-training")
    model.set_attn_implementation("eager")
    inputs = inputs_of(type(model))
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        wanted = model(**inputs, **asked)
        got = model.prepare_for_inference("float32")(**inputs, **asked)
    for name in ("hidden_states", "attentions"):
        for one, other in zip(got[name], wanted[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pairs_are_scored_as_they_are_called(build, precision):
    """Retrieval's way through the Transformer, and the vectors that choose its pairs."""
    model = build("retrieval")
    inputs = inputs_of(type(model), padded=False)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "float32" else {"rtol": 0.0, "atol": BF16_TOLERANCE}
    index = inputs["image_index"]
    with torch.no_grad():
        vectors = model.text_vectors(inputs["input_ids"])
        model.prepare_for_inference(precision)
        called = model(**inputs).itm_logits
        images = model.embed_images(model.encode_images(inputs["pixel_values"]))
        scored = model.matching_logits(images, inputs["input_ids"], torch.arange(4), index)
        torch.testing.assert_close(scored, called[:, 1] - called[:, 0], **tolerance)
        torch.testing.assert_close(model.text_vectors(inputs["input_ids"]), vectors, **tolerance)


def test_nothing_is_drawn_and_nothing_moves(tiny_config):
    torch.manual_seed(1)
    model = SohoForPreTraining(tiny_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)).train()
    model.prepare_for_inference("float32")
    inputs, codebook = inputs_of(type(model)), model.soho.visual_dictionary.codebook.clone()
    with torch.no_grad():
        assert torch.equal(model(**inputs).itm_logits, model(**inputs).itm_logits)
    assert torch.equal(model.soho.visual_dictionary.codebook, codebook) and not model.training


def test_a_copy_answers_alike_without_the_original(build, tmp_path):
    model = build("pre-training").prepare_for_inference("float32")
    inputs = inputs_of(type(model))
    with torch.no_grad():
        wanted = model(**inputs).itm_logits
        other = copy.deepcopy(model)
        for buffer in model.buffers():
            buffer.zero_()
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(other(**inputs).itm_logits, wanted)
        torch.testing.assert_close(other.to("cpu")(**inputs).itm_logits, wanted)


def test_what_it_refuses(build, tmp_path):
    model = build("pre-training")
    with pytest.raises(ValueError, match=r"precision: expected auto, float32, bf16, fp16 or int8, got 'int4'"):
        model.prepare_for_inference("int4")
    with pytest.raises(ValueError, match="precision: fp16 has no fast instructions on this cpu"):
        model.prepare_for_inference("fp16")
    model.prepare_for_inference("float32")
    inputs = inputs_of(type(model))
    for refused in (
        lambda: model.train(),
        lambda: model.soho.train(),
        lambda: model.save_pretrained(tmp_path),
        lambda: model.load_state_dict(model.state_dict()),
        lambda: model.half(),
        lambda: model.to(torch.bfloat16),
        lambda: model.to("meta"),
        lambda: model.resize_token_embeddings(68),
        lambda: model.soho.resize_token_embeddings(68),
    ):
        with pytest.raises(ValueError, match="this model was prepared for inference in float32; expected") as error:
            refused()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"prepared with precision='float32', compile=False, and can't be again with"):
        model.prepare_for_inference("float32", compile=True)
    inputs["pixel_values"].requires_grad_()
    for call in (lambda: model(**inputs), lambda: model.encode_images(inputs["pixel_values"])):
        with pytest.raises(ValueError, match="prepared for inference and gives no gradients"):
            call()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.eval(), model.float()
    assert model.get_input_embeddings().num_embeddings == 60


NO_INT8 = "this processor has no instructions for int8"
HAS_INT8 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_vnni", "amx_int8"))


@pytest.mark.skipif(not HAS_INT8, reason=NO_INT8)
@pytest.mark.parametrize("name", ["pre-training", "mobilenet", "two images", "official", "retrieval"])
def test_int8_is_near(build, name):
    """Wider than bf16's, narrower than what a wrong scale, zero point or sum makes of it."""
    model = build(name)
    inputs = inputs_of(type(model))
    with torch.no_grad():
        wanted, tokens = logits_of(model(**inputs)), model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])
        model.prepare_for_inference("int8", calibration=[inputs])
        got, got_tokens = logits_of(model(**inputs)), model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])
    names = {type(module).__name__ for module in model.modules()}
    assert {"Int8Conv2d", "Int8Linear"} <= names
    error = got_tokens.features[tokens.valid] - tokens.features[tokens.valid]
    assert float(error.norm() / tokens.features[tokens.valid].norm()) < 0.1
    assert float((got - wanted).abs().max()) < 0.25 * float(wanted.std())
    other = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(logits_of(other(**inputs)), got)


@pytest.mark.skipif(not HAS_INT8, reason=NO_INT8)
def test_int8_of_images_alone_leaves_the_transformer(build):
    model = build("pre-training")
    inputs = inputs_of(type(model))
    failed = copy.deepcopy(model)
    with pytest.raises(ValueError, match="got none with precision='int8'"):
        copy.deepcopy(model).prepare_for_inference("int8")
    with pytest.raises(ValueError, match="expected at least one batch"):
        failed.prepare_for_inference("int8", calibration=[])
    with pytest.raises(ValueError, match=r"prepared with precision='float32', .* again with precision='int8'"):
        failed.prepare_for_inference("int8", calibration=[inputs])
    with pytest.raises(ValueError, match="got some with precision='float32'"):
        model.prepare_for_inference("float32", calibration=[inputs])
    model.prepare_for_inference("int8", calibration=[{"pixel_values": inputs["pixel_values"]}])
    names = [type(module).__name__ for module in model.modules()]
    assert "Int8Conv2d" in names and "Int8Linear" not in names
    with torch.no_grad():
        assert bool(model(**inputs).itm_logits.isfinite().all())


# Weights that change later: a prepared model answers with those that it has, or refuses to take others.


@pytest.fixture
def prepared(tiny_model):
    def build(precision="float32", **options):
        return lived(tiny_model()).prepare_for_inference(precision, **options)

    return build


def answer(model, **replaced):
    with torch.no_grad():
        return model(**{**inputs_of(type(model)), **replaced}).itm_logits


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["encoder", "visual_encoder"])
def test_changed_weights_change_the_answer(prepared, precision, part):
    model = prepared(precision)
    before = answer(model)
    with torch.no_grad():
        for buffer in getattr(model.base(), part).buffers():
            buffer.mul_(0.5)
    after = answer(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, answer(copy.deepcopy(model))), "a copy derives all from its weights anew"


@pytest.mark.parametrize("part", ["encoder", "encoder.layer.1", "visual_encoder.projection"])
def test_a_part_takes_no_other_weights(prepared, tiny_model, part):
    model = prepared()
    before, other = answer(model), tiny_model().base().get_submodule(part).state_dict()
    with pytest.raises(ValueError, match=r"load_state_dict: .* was prepared for inference; expected weights to be"):
        model.base().get_submodule(part).load_state_dict(other)
    assert torch.equal(answer(model), before)


def test_the_dictionary_takes_other_codes(prepared):
    model = prepared()
    answer(model)
    dictionary = model.base().visual_dictionary
    state = dictionary.state_dict()
    state["codebook"] = state["codebook"].flip(0)
    inputs = inputs_of(type(model))
    with torch.no_grad():
        old = model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])
        dictionary.load_state_dict(state)
        new = model.encode_images(inputs["pixel_values"], inputs["pixel_mask"])
    assert torch.equal(new.index[new.valid], dictionary.num_codes - 1 - old.index[new.valid])
    assert torch.equal(new.embedding, old.embedding)


# Lengths of texts, which are refused alike in every form of the model.


FORMS = {
    "plain": lambda model: model,
    "fast": speed_up_on_cpu,
    "prepared": lambda model: model.prepare_for_inference("float32"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [0, 17])
def test_a_text_has_from_one_token_to_as_many_as_there_are_positions(tiny_model, form, length):
    model = FORMS[form](lived(tiny_model()))
    inputs = inputs_of(type(model))
    pixels, index = inputs["pixel_values"], inputs["image_index"]
    ids = torch.full((4, length), 7)
    said = rf"input_ids: expected texts of 1 to 16 tokens \(max_position_embeddings\), got {length}"
    with torch.no_grad():
        with pytest.raises(ValueError, match=said):
            model(pixel_values=pixels, input_ids=ids, image_index=index)
        images = model.embed_images(model.encode_images(pixels))
        with pytest.raises(ValueError, match=said):
            model.matching_logits(images, ids, torch.arange(4), index)
        model(pixel_values=pixels, input_ids=torch.full((4, 16), 7), image_index=index)


def test_adapters_are_to_be_merged_before(tiny_model, batch):
    peft = pytest.importorskip("peft")
    model = tiny_model().eval()
    targets = {"target_modules": ["query", "dense"], "init_lora_weights": False}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, **targets)).eval()
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.self\.query has an adapter.*merge_and_unload"):
        wrapped.prepare_for_inference("float32")
    expected = wrapped(**batch()).itm_logits
    merged = wrapped.merge_and_unload().prepare_for_inference("float32")
    torch.testing.assert_close(merged(**batch()).itm_logits, expected, rtol=1e-4, atol=1e-5)
