from types import SimpleNamespace

import pytest
import torch
from torch import nn

from soho_fast.data.text import EncodedText
from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.tasks.pair_scoring import first_token_only, matched_odds, score_all_pairs


@pytest.mark.parametrize("pair_batch", [1, 3, 7, 100])
def test_all_pairs_land_where_they_belong(pair_batch):
    texts = [EncodedText(torch.full((2 + n % 3,), n).numpy(), None) for n in range(7)]
    image_batches = [(torch.arange(0, 4), 4), (torch.arange(4, 8), 2)]
    calls = []

    def score(visual, texts_ids, image_index):
        assert len({len(ids) for ids in texts_ids}) == 1, "one length per call: no padding"
        calls.append(len(texts_ids))
        odds = [100.0 * visual[place] + ids[0] for ids, place in zip(texts_ids, image_index, strict=True)]
        return SimpleNamespace(itm_logits=torch.stack([torch.zeros(len(odds)), torch.tensor(odds)], 1))

    scores = score_all_pairs(score, image_batches, texts, pair_batch=pair_batch)
    assert torch.equal(scores, 100.0 * torch.arange(6)[:, None] + torch.arange(7.0))
    assert max(calls) <= pair_batch and sum(calls) == 42


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_last_layer_for_the_first_token_alone_gives_the_same_answer(attention, padded):
    torch.manual_seed(0)
    config = SohoConfig.from_preset(
        backbone="resnet10",
        visual_pool=1,
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_codes=8,
    )
    config._attn_implementation = attention
    model = SohoForPreTraining(config).eval()
    ids, mask = torch.randint(5, 50, (6, 7)), torch.ones(6, 7, dtype=torch.int64)
    pixel_mask = torch.ones(3, 64, 96, dtype=torch.bool)
    if padded:
        mask[::2, 4:] = 0
        pixel_mask[1, :, 32:] = False
    with torch.no_grad():
        visual = model.encode_images(torch.randn(3, 3, 64, 96), pixel_mask)
        inputs = {"visual_tokens": visual, "input_ids": ids, "attention_mask": mask}
        inputs["image_index"] = torch.tensor([0, 1, 2, 2, 1, 0])
        whole = model(**inputs).itm_logits
        calls = []
        hook = model.soho.encoder.layer[-1].output.register_forward_hook(lambda *call: calls.append(call[2].shape[1]))
        with first_token_only(model):
            alone = model(**inputs)
        again = model(**inputs).itm_logits
        hook.remove()
    torch.testing.assert_close(alone.itm_logits, whole, atol=1e-5, rtol=1e-5)
    assert calls == [1, 7 + 6], "one token within, all of them after"
    assert torch.equal(again, whole)
    assert matched_odds(alone).shape == (6,)


def test_other_models_are_left_alone():
    model = nn.Linear(2, 2)
    with first_token_only(model):
        assert "forward" not in vars(model)
