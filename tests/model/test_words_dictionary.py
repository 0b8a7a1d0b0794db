"""The dictionary in the space of the words: what it looks up, when it reads the head, and what leaves a training."""

import pytest
import torch

from soho_fast.export.graphs import PlainDictionary
from soho_fast.model import SohoForPreTraining, words_dictionary

WORDS = {"dictionary": "words", "bag_of_words_weight": 0.05}
# Of the sixty words of the vocabulary the last twenty are in no caption.
SHARES = torch.cat([torch.linspace(1.0, 0.02, 40), torch.zeros(20)])


@pytest.fixture
def words_model(tiny_model, monkeypatch):
    monkeypatch.setattr(words_dictionary, "_MOST_WORDS", 40)

    def build(**overrides) -> SohoForPreTraining:
        model = tiny_model(**{**WORDS, **overrides})
        torch.nn.init.normal_(model.soho.text_embeddings.word_embeddings.weight)
        torch.nn.init.normal_(model.bag_of_words_head.norm.bias)
        torch.nn.init.uniform_(model.bag_of_words_head.norm.weight, 0.5, 2.0)
        model.soho.visual_dictionary.words.choose(
            SHARES[torch.randperm(60, generator=torch.Generator().manual_seed(3))]
        )
        return model

    return build


def said(model: SohoForPreTraining, feat: torch.Tensor) -> torch.Tensor:
    """In float64, by the head itself."""
    head, words = model.bag_of_words_head, model.soho.visual_dictionary.words
    logits = head.decoder(head.norm(feat)).double() + head.bias.double()
    return logits[..., words.ids].sigmoid().sqrt().detach()


def test_the_nearest_code_is_that_of_the_nearest_words_and_both_tables_move(words_model):
    model = words_model(ema_decay=0.7).train()
    made = model.soho.visual_dictionary
    feat, valid = torch.randn(3, 6, 16), torch.ones(3, 6, dtype=torch.bool)
    valid[0, 4:] = False
    made.read(model.bag_of_words_head)
    made(feat, valid)  # the start
    codes, places = made.codebook.clone(), made.places.clone()
    feat = torch.randn(3, 6, 16)
    embed, index = made(feat, valid)
    words = said(model, feat)
    expected = torch.cdist(words[valid], places.double()).argmin(-1)
    assert torch.equal(index[valid], expected) and (index[~valid] == -1).all()
    assert torch.equal(embed[valid], codes[expected])
    by_features = torch.cdist(feat[valid].double(), codes.double()).argmin(-1)
    assert not torch.equal(expected, by_features), "features alone would give the same codes"
    for code in expected.unique():
        members = expected == code
        for table, old, rows in ((made.codebook, codes, feat[valid]), (made.places, places, words[valid])):
            mean = 0.7 * old[code] + 0.3 * rows[members].mean(0)
            torch.testing.assert_close(table[code], mean.float(), rtol=1e-5, atol=1e-5)


def test_of_many_words_those_of_most_captions_are_taken(words_model):
    words = words_model().soho.visual_dictionary.words
    words.choose(torch.linspace(0.0, 1.0, 60))
    assert words.ids.tolist() == list(range(20, 60))
    words.choose(torch.zeros(60))
    assert words.ids.tolist() == list(range(40))


def test_the_head_is_read_once_a_step(words_model, batch):
    model = words_model().train()
    feat, valid = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    model.begin_step()
    before = model.soho.visual_dictionary.rows(feat)
    torch.nn.init.normal_(model.bag_of_words_head.bias)
    model(**batch())
    assert torch.equal(model.soho.visual_dictionary.rows(feat), before)
    model.end_step(applied=True)
    model.begin_step()
    now = model.soho.visual_dictionary.rows(feat)[..., 16:]
    torch.testing.assert_close(now.double(), said(model, feat), rtol=1e-5, atol=1e-6)
    model.end_step(applied=False)
    # A loop that calls neither: each training forward reads.
    torch.nn.init.normal_(model.bag_of_words_head.bias)
    model(**batch())
    now = model.soho.visual_dictionary.rows(feat)[..., 16:]
    torch.testing.assert_close(now.double(), said(model, feat), rtol=1e-5, atol=1e-6)
    assert valid.all()


def trained(model: SohoForPreTraining, batch: dict) -> SohoForPreTraining:
    model.train()
    for _ in range(2):
        model.begin_step()
        model(**batch)
        model.end_step(applied=True)
    return model.eval()


def test_saved_exported_and_prepared_it_gives_the_same_codes(words_model, batch, tmp_path):
    model = trained(words_model(), batch())
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        visual = model.encode_images(pixels)
        assert len(visual.index.unique()) > 2
        dictionary = model.soho.visual_dictionary
        plain = PlainDictionary(dictionary)(visual.features, visual.valid)
        assert torch.equal(plain[1], visual.index) and torch.allclose(plain[0], visual.embedding)
        assert torch.equal(dictionary.codes_of(visual.features)[..., 0], visual.index)
        apart = dictionary.distances(visual.features, visual.index.unsqueeze(-1))[..., 0]
        expected = torch.cdist(dictionary.words(visual.features), dictionary.places).amin(-1)
        torch.testing.assert_close(apart, expected, rtol=1e-4, atol=1e-5)
        model.save_pretrained(tmp_path)
        loaded = SohoForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {b.dtype for n, b in loaded.named_buffers() if "visual_dictionary." in n} == {torch.float32, torch.int64}
        assert torch.equal(loaded.soho.visual_dictionary.codes_of(visual.features)[..., 0], visual.index)
        prepared = SohoForPreTraining.from_pretrained(tmp_path).prepare_for_inference("float32")
        assert torch.equal(prepared.soho.visual_dictionary.codes_of(visual.features)[..., 0], visual.index)


def test_unused_codes_are_reset_to_a_feature_and_its_words(words_model, batch, monkeypatch):
    from soho_fast.model import visual_dictionary

    monkeypatch.setattr(visual_dictionary, "_PATIENCE", 1)
    model = trained(words_model(code_reset_threshold=0.9), batch())
    made = model.soho.visual_dictionary
    new = (made.age == 0).nonzero().flatten()
    assert len(new)
    torch.testing.assert_close(made.words(made.codebook[new]), made.places[new], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_levels": 2}, "num_levels: expected 1"),
        ({"dictionary_init": "random"}, "dictionary_init: expected 'data'"),
        ({"bag_of_words_weight": 0.0}, "bag_of_words_weight: expected above 0"),
    ],
)
def test_what_it_needs_is_said(tiny_config, changes, expected):
    with pytest.raises(ValueError, match=f"{expected} with dictionary='words', got {next(iter(changes.values()))!r}"):
        tiny_config(**{**WORDS, **changes})


def test_a_start_from_another_tokenizer_is_refused(words_model, tmp_path):
    words_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="looks up words of another tokenizer"):
        words_model().init_from(str(tmp_path), torch.arange(60).flip(0))
