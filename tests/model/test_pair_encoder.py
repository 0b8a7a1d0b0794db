"""[CLS] of many pairs is what the plain encoder gives, with as little computed as is said."""

import pytest
import torch

from soho_fast.model.pair_encoder import encode_pairs


def pairs(model, num_texts=3, num_images=4):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (num_texts, 6), generator=generator)
    visual = model.encode_images(torch.randn(num_images, 3, 64, 96, generator=generator))
    text_index = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    image_index = torch.tensor([3, 0, 0, 2, 2, 3, 1])
    return ids, visual, text_index, image_index


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("dictionary_output", [True, False])
@torch.no_grad()
def test_odds_are_the_plain_models(tiny_model, layers, dictionary_output):
    model = tiny_model(num_hidden_layers=layers, use_dictionary_output=dictionary_output).eval()
    for weight in (*model.soho.encoder.parameters(), *model.itm_head.parameters()):
        weight.mul_(20.0) if weight.dim() > 1 else weight.normal_()  # as drawn, biases are 0 and words hardly look
    ids, visual, text_index, image_index = pairs(model)
    logits = model(visual_tokens=visual, input_ids=ids[text_index], image_index=image_index).itm_logits
    difference = model.matching_logits(model.embed_images(visual), ids, text_index, image_index)
    torch.testing.assert_close(difference, logits[:, 1] - logits[:, 0], rtol=1e-5, atol=1e-5)
    assert difference.std() > 0.01


@torch.no_grad()
def test_nothing_is_projected_twice_or_unread(tiny_model, monkeypatch):
    model = tiny_model(num_hidden_layers=3).eval()
    ids, visual, text_index, image_index = pairs(model)
    words, embedded = model.soho.text_embeddings(input_ids=ids), model.embed_images(visual)
    rows = {}
    for number, layer in enumerate(model.soho.encoder.layer):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(
                    lambda module, args, output, key=(number, name): rows.setdefault(key, []).append(
                        args[0].numel() // args[0].shape[-1]
                    )
                )
    encode_pairs(model.soho.encoder, words, embedded, text_index, image_index)
    num_pairs, num_places = 7, 6 + embedded.shape[1]
    for name in ("query", "key", "value"):
        assert rows[0, f"attention.self.{name}"] == [3 * 6, 4 * embedded.shape[1]]
        assert rows[1, f"attention.self.{name}"] == [num_pairs * num_places]
    assert rows[2, "attention.self.query"] == [num_pairs]
    assert (2, "attention.self.key") not in rows and (2, "attention.self.value") not in rows
    assert rows[2, "intermediate.dense"] == rows[2, "output.dense"] == [num_pairs]


@torch.no_grad()
def test_adapters_of_every_projection_are_read(tiny_model):
    peft = pytest.importorskip("peft")
    model = tiny_model().eval()
    ids, visual, text_index, image_index = pairs(model)
    embedded = model.embed_images(visual)
    before = model.matching_logits(embedded, ids, text_index, image_index)
    targets = {"target_modules": r".*layer\.1\.attention\.self\.(key|value)", "init_lora_weights": False}
    peft.get_peft_model(model, peft.LoraConfig(r=2, **targets)).eval()
    logits = model(visual_tokens=visual, input_ids=ids[text_index], image_index=image_index).itm_logits
    difference = model.matching_logits(embedded, ids, text_index, image_index)
    torch.testing.assert_close(difference, logits[:, 1] - logits[:, 0], rtol=1e-5, atol=1e-5)
    assert (difference - before).abs().max() > 1e-3
