"""Residual levels through the whole model: what is masked and predicted, inference, export; the commitment loss."""

import pytest
import torch

from soho_fast.export.graphs import PlainDictionary
from soho_fast.model import SohoForPreTraining


@pytest.fixture
def trained(tiny_model, batch):
    """Two levels of twelve codes that have all been drawn, in evaluation mode."""
    model = tiny_model(num_levels=2).train()
    for _ in range(3):
        model(**batch(num_images=6))
    return model.eval()


def test_the_first_level_is_masked_and_predicted(trained, batch):
    inputs = batch(num_images=6)
    output = trained(**inputs)
    visual = trained.encode_images(inputs["pixel_values"], inputs.get("pixel_mask"))
    dictionary = trained.soho.visual_dictionary
    first = torch.cdist(visual.features.double(), dictionary.codebook_of(0).double()).argmin(-1)
    assert torch.equal(output.index[output.valid], first[visual.valid])
    assert output.mvm_logits.shape[1] == 12 and 0 <= int(output.mvm_targets.min()) <= int(output.mvm_targets.max()) < 12
    codes = dictionary.codes_of(visual.features)
    summed = sum(dictionary.codebook_of(level)[codes[..., level]] for level in range(2))
    torch.testing.assert_close(visual.embedding[visual.valid], summed[visual.valid], rtol=1e-6, atol=1e-6)
    assert output.usage.shape == (12,)


def test_a_saved_model_and_a_prepared_one_give_the_same(trained, batch, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = SohoForPreTraining.from_pretrained(tmp_path).eval()
    inputs = batch(num_images=6)
    expected = trained.encode_images(inputs["pixel_values"], inputs.get("pixel_mask"))
    prepared = SohoForPreTraining.from_pretrained(tmp_path).eval().prepare_for_inference(precision="float32")
    for model in (loaded, prepared):
        found = model.encode_images(inputs["pixel_values"], inputs.get("pixel_mask"))
        assert torch.equal(found.index, expected.index)
        torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-4, atol=1e-4)
    # The packed codes follow a codebook that is written to.
    with torch.no_grad():
        prepared.soho.visual_dictionary.codebook_of(1).zero_()
    found = prepared.encode_images(inputs["pixel_values"], inputs.get("pixel_mask"))
    first = prepared.soho.visual_dictionary.codebook_of(0)[found.index.clamp(min=0)]
    assert torch.equal(found.embedding[found.valid], first[found.valid])


def test_the_exported_dictionary_is_the_models(trained):
    feat, valid = torch.randn(4, 9, 16), torch.rand(4, 9) < 0.8
    plain = PlainDictionary(trained.soho.visual_dictionary)
    embed, index = plain(feat, valid)
    expected, expected_index = trained.soho.visual_dictionary(feat, valid)
    assert torch.equal(index, expected_index)
    assert torch.equal(embed[valid], expected[valid])
