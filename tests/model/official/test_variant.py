"""The released model as any model here: copies of images, ranks, precision, saving, speed, tasks, and odd inputs."""

import copy

import pytest
import torch

from soho_fast.model import (
    SohoForImageTextRetrieval,
    SohoForQuestionAnswering,
    SohoForVisualEntailment,
    SohoForVisualReasoning,
)

SIZE = (160, 128)  # five rows of the CNN's cells: the last one is dropped


@pytest.fixture
def inputs(batch):
    """Three images of two sizes, with three, one and four texts, of which three are read with masked images."""
    made = batch(num_images=3, texts_per_image=4, size=SIZE)
    chosen = torch.tensor([0, 1, 2, 4, 8, 9, 10, 11])
    for name in ("input_ids", "attention_mask", "image_index", "mlm_labels", "itm_labels"):
        made[name] = made[name][chosen]
    made["pixel_mask"][1, 100:] = 0
    made["pixel_mask"][1, :, 70:] = 0
    made["pixel_values"] = made["pixel_values"] * made["pixel_mask"].unsqueeze(1)
    made["mask_uniform"] = torch.full((3,), 0.1, dtype=torch.float64)
    made["mask_pairs"] = torch.tensor([1, 0, 0, 1, 0, 1, 0, 0]).bool()
    return made


def step(model, inputs):
    output = model(**inputs)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return output, gradients


def assert_close(actual: dict, expected: dict, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.double().norm().clamp(min=1e-3)) if value.is_floating_point() else 0.0
        error = float((actual[name].double() - value.double()).norm())
        assert error <= tolerance * scale, f"{name}: {error:.1e} of {scale:.1e}"


def test_an_image_counts_as_often_as_it_has_texts(tiny_official, inputs):
    """As the released code has it: the CNN's output once for each text. By copies of the images that are so."""
    copied = {**inputs, "image_index": None}
    for name in ("pixel_values", "pixel_mask", "mask_uniform"):
        copied[name] = inputs[name][inputs["image_index"]]
    once, often = (tiny_official().train() for _ in range(2))
    for model in (once, often):
        model.freeze_batch_norm()  # which is over images, not copies
    (output, gradients), (expected, expected_gradients) = step(once, inputs), step(often, copied)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-5)
    assert_close(gradients, expected_gradients, 2e-4)
    assert_close(once.state_dict(), often.state_dict(), 1e-5)
    uncounted = tiny_official().train()
    uncounted.freeze_batch_norm()
    uncounted.encode_images(inputs["pixel_values"], inputs["pixel_mask"])
    for counted in ("feature_norm", "visual_dictionary", "fusion"):
        some, all_of_them = ({n: v for n, v in m.state_dict().items() if counted in n} for m in (uncounted, often))
        with pytest.raises(AssertionError, match=counted):
            assert_close(some, all_of_them, 1e-5)


def test_activation_checkpointing_moves_statistics_as_without(tiny_official, inputs):
    plain, checkpointed = tiny_official(backbone="resnet18").train(), tiny_official(backbone="resnet18").train()
    checkpointed.activation_checkpointing_enable()
    (_, expected), (_, gradients) = step(plain, inputs), step(checkpointed, inputs)
    assert_close(gradients, expected, 1e-4)
    assert_close(checkpointed.state_dict(), plain.state_dict(), 1e-5)


@pytest.mark.parametrize("with_output", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SohoForImageTextRetrieval, {}),
        (SohoForQuestionAnswering, {"answers": ["yes", "no", "red"]}),
        (SohoForVisualReasoning, {}),
        (SohoForVisualEntailment, {}),
    ],
)
def test_fine_tuning(tiny_official, inputs, tmp_path, kind, options, with_output):
    tiny_official().save_pretrained(tmp_path)
    model, report = kind.from_pretraining(tmp_path, use_dictionary_output=with_output, **options)
    assert model.config.official == "fine_tuning"
    assert (model.soho.fusion is not None) == with_output
    assert all(not name.startswith("soho.") or "fusion" in name for name in report.unexpected)
    given = {name: inputs[name] for name in ("pixel_values", "pixel_mask", "input_ids", "attention_mask")}
    if kind is SohoForVisualReasoning:
        given |= {"image_index": torch.tensor([[0, 1]] * 8), "labels": inputs["itm_labels"]}
    else:
        given["image_index"] = inputs["image_index"]
        name = {SohoForImageTextRetrieval: "itm_labels", SohoForVisualEntailment: "labels"}.get(kind)
        given |= {name: inputs["itm_labels"]} if name else {"answer_scores": torch.rand(8, 3)}
    model.train()(**given).loss.backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == [], "an optimiser would move them by decay alone"
    moved = int(model.soho.visual_dictionary.step)
    assert moved == int(with_output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_by_autocast(tiny_official, inputs, dtype):
    """Neck, dictionary and gate stay float32."""
    model = tiny_official().train()
    model.freeze_batch_norm()
    expected = copy.deepcopy(model)(**inputs)
    with torch.autocast("cpu", dtype):
        output = model(**inputs)
        visual = model.eval().encode_images(inputs["pixel_values"], inputs["pixel_mask"])
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.03, atol=0.03)
    assert visual.features.dtype == visual.embedding.dtype == torch.float32
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_a_step_that_is_left_out_moves_the_codes_all_the_same(tiny_official, inputs):
    model = tiny_official().train()
    before = model.soho.visual_dictionary.codebook.clone()
    model.begin_step()
    model(**inputs)
    moved = model.soho.visual_dictionary.codebook.clone()
    model.end_step(applied=False)
    assert int(model.soho.visual_dictionary.step) == 1 and not torch.equal(moved, before)
    assert torch.equal(model.soho.visual_dictionary.codebook, moved)


@pytest.mark.parametrize("size", [(33, 33), (64, 64), (65, 200), (95, 64), (129, 97)])
def test_odd_sizes(tiny_official, size):
    """Sides are padded to multiples of 32 as the released code does, whatever the processor's divisor was."""
    model = tiny_official().eval()
    pixels = torch.randn(1, 3, *size)
    padded = torch.nn.functional.pad(pixels, (0, -size[1] % 32, 0, -size[0] % 32))
    pixel_mask = torch.zeros(1, *padded.shape[-2:])
    pixel_mask[:, : size[0], : size[1]] = 1
    alone = model.encode_images(pixels)
    as_padded = model.encode_images(padded.where(pixel_mask > 0, float("nan")), pixel_mask)
    rows, columns = (-(-side // 32) // 2 for side in size)
    assert alone.tokens.shape == (1, rows * columns, 16)
    assert torch.equal(alone.valid, as_padded.valid) and torch.equal(alone.tokens, as_padded.tokens)


def test_batches_of_little(tiny_official, inputs):
    """One image with one text; images without a text, on which nothing is learnt; an image that is padding alone."""
    model = tiny_official().train()
    pixels = {"pixel_values": inputs["pixel_values"], "pixel_mask": inputs["pixel_mask"]}
    learnt = ("codebook", "total", "running_mean", "running_var")
    before = {n: b.clone() for n, b in model.soho.named_buffers() if "backbone" not in n and n.endswith(learnt)}
    model.encode_images(**pixels, num_texts=torch.zeros(3))
    assert len(before) == 6 and all(torch.equal(b, model.soho.get_buffer(n)) for n, b in before.items())
    one = model(
        pixel_values=inputs["pixel_values"][:1, :, :64, :64],
        input_ids=inputs["input_ids"][:1],
        mlm_labels=inputs["mlm_labels"][:1],
        itm_labels=inputs["itm_labels"][:1],
        mask_uniform=inputs["mask_uniform"][:1],
    )
    one.loss.backward()
    pixels["pixel_mask"] = pixels["pixel_mask"].clone()
    pixels["pixel_mask"][2] = 0
    output = model.eval()(**{**inputs, **pixels})
    assert not bool(output.valid[2].any()) and all(bool(x.isfinite().all()) for x in (one.loss, output.loss))


def test_a_token_that_is_not_finite_is_left_out(tiny_official):
    norm, dictionary = tiny_official().soho.feature_norm, tiny_official().soho.visual_dictionary
    feat = torch.randn(2, 5, 16)
    feat[0, 3] = float("nan")
    out = norm.train()(feat, None, torch.tensor([2.0, 1.0]))
    dictionary.train()(feat, torch.ones(2, 5, dtype=torch.bool), None, torch.tensor([2.0, 1.0]))
    assert bool(torch.cat([norm.running_mean, norm.running_var, dictionary.codebook.flatten()]).isfinite().all())
    assert float(dictionary.total.sum()) == 2 * 4 + 5 and dictionary.take_num_non_finite() == 1
    assert int(out.isnan().any(-1).sum()) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask_pairs": torch.ones(3, dtype=torch.bool)}, r"mask_pairs: expected bool of shape \(8,\)"),
        ({"mask_pairs": torch.ones(8)}, "mask_pairs: expected bool"),
        ({"mask_uniform": None}, "mask_pairs: expected mask_uniform with it"),
        ({"pixel_mask": torch.ones(3, 5, 5)}, "pixel_mask: expected shape"),
        ({"pixel_values": torch.zeros(3, 3, 64, 64, dtype=torch.uint8), "pixel_mask": None}, "expected normalised"),
        ({"pixel_values": torch.zeros(3, 3, 32, 128), "pixel_mask": None}, "pixel_values: expected at least 33 x 33"),
        (
            {"pixel_values": None, "pixel_mask": None, "backbone_features": torch.zeros(3, 512, 4, 4)},
            "backbone_features",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tiny_official, inputs, change, words):
    with pytest.raises(ValueError, match=words):
        tiny_official().eval()(**{**inputs, **change})


def test_initial_values(tiny_official):
    """Mask vector normal(0, 1); He's for gate and matching; statistics of the dictionary empty."""
    model = tiny_official(hidden_size=512, num_attention_heads=2)
    soho = model.soho
    stds = (soho.mask_token, soho.fusion.gate.weight, model.itm_head.classifier.weight, soho.visual_dictionary.codebook)
    expected = (1.0, 1.0, (2 / 512) ** 0.5, 1.0)
    assert [float(x.detach().std()) for x in stds] == pytest.approx(expected, rel=0.12)
    assert not bool(soho.visual_dictionary.cluster_size.any() | soho.visual_dictionary.cluster_sum.any())
    assert 0.9 * 512**-0.5 < float(soho.fusion.align.weight.detach().abs().max()) <= 512**-0.5
    assert 0.5 * 512**-0.5 < float(soho.fusion.align.bias.detach().abs().max()) <= 512**-0.5
    head = tiny_official(SohoForQuestionAnswering, intermediate_size=256).head
    assert float(head[3].weight.detach().std()) == pytest.approx((2 / 256) ** 0.5, rel=0.12)


def test_a_gate_beside_berts_initial_values_starts_from_the_codes_themselves(tiny_model):
    code_BLD, feat_BLD = torch.randn(2, 2, 5, 32)
    fusion = tiny_model(fusion="gate", hidden_size=32).soho.fusion.eval()
    share_BL2 = (fusion.gate(torch.cat([code_BLD, feat_BLD], dim=-1)) / (1 + 1e-5) ** 0.5).softmax(-1)
    expected = share_BL2[..., :1] * code_BLD + share_BL2[..., 1:] * feat_BLD
    assert torch.allclose(fusion(code_BLD, feat_BLD), expected, atol=1e-6)
