"""The metrics on models whose answers are known: one that sees the colour, and one that sees nothing."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_corpus import COLOURS
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import RobertaTokenizer

from soho_fast.common.errors import CorruptImageError
from soho_fast.data.batches.record_table import RecordTable
from soho_fast.data.text import encode_texts, load_tokenizer
from soho_fast.model import VisualTokens
from soho_fast.tasks.evaluation.caption_words import CaptionWords
from soho_fast.tasks.evaluation.pretraining import evaluate_pretraining, format_table, mask_words, nothing_learnt
from soho_fast.tasks.settings import PretrainingData

NAMES = list(COLOURS)
BACKGROUND = len(NAMES)
MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


class Oracle(nn.Module):
    """Each image has two tokens: its colour's number, and `BACKGROUND`. All answers follow from the colours."""

    def __init__(self, tokenizer, *, blind=False, dictionary=True):
        super().__init__()
        self.blind, self.dictionary, self.vocab_size = blind, dictionary, len(tokenizer)
        self.config = SimpleNamespace(
            mvm_masking="lift", dictionary="paper" if dictionary else "none", use_dictionary_output=True,
            vocab_size=self.vocab_size, num_codes=BACKGROUND + 1,
        )  # fmt: skip
        self.word_ids = torch.tensor(tokenizer.convert_tokens_to_ids(NAMES))
        self.palette = (torch.tensor(list(COLOURS.values())) / 255 - MEAN) / STD
        self.num_encoded = self.num_pairs = 0
        self.training_seen = set()

    def encode_images(self, pixel_values, pixel_mask):
        self.num_encoded += len(pixel_values)
        colour = torch.cdist(pixel_values[:, :, 5, 5], self.palette).argmin(1)
        index = torch.stack([colour, torch.full_like(colour, BACKGROUND)], 1)
        return VisualTokens(
            features=index[..., None].float(), valid=torch.ones_like(index, dtype=torch.bool), index=index
        )

    def base(self):
        return self

    def label_to_mask(self, visual, mask_uniform):
        """Either token, by lift; as in the paper the background alone."""
        group = (mask_uniform * 2).long() if self.config.mvm_masking == "lift" else torch.ones(len(mask_uniform)).long()
        return visual.index.gather(1, group[:, None])[:, 0]

    def embed_images(self, visual):
        return visual.features

    def matching_logits(self, visual_ILD, input_ids_TS, text_index, image_index):
        visual = VisualTokens(index=visual_ILD[..., 0].long())
        logits = self(visual, input_ids_TS[text_index], None, image_index).itm_logits
        return logits[:, 1] - logits[:, 0]

    def forward(
        self, visual_tokens, input_ids, attention_mask, image_index, mlm_labels=None, itm_labels=None, mask_uniform=None
    ):
        assert not torch.is_grad_enabled()
        self.training_seen.add(self.training)
        self.num_pairs += len(input_ids)
        seen = visual_tokens.index[image_index, 0]
        named = input_ids[:, :, None] == self.word_ids
        output = SimpleNamespace(mlm_logits=None, mvm_logits=None, mvm_targets=None, index=None, perplexity=None)
        matched = named[torch.arange(len(seen)), :, seen].any(1)
        output.itm_logits = torch.stack([torch.zeros(len(seen)), torch.where(matched, 1.0, -1.0)], 1)
        if self.blind:
            output.itm_logits = torch.tensor([[0.5, 0.0]]).expand(len(seen), 2)
            seen = torch.zeros_like(seen)
        if mlm_labels is not None:
            rows = (mlm_labels != -100).nonzero()[:, 0]
            output.mlm_logits = nn.functional.one_hot(self.word_ids[seen[rows]], self.vocab_size).float()
        if self.dictionary:
            output.index = visual_tokens.index
            output.perplexity, output.active_codes = torch.tensor(7.5), torch.tensor(9)
        if self.dictionary and mask_uniform is not None:
            output.mvm_targets = self.label_to_mask(visual_tokens, mask_uniform)
            told = torch.where(output.mvm_targets == BACKGROUND, BACKGROUND, named.any(1).float().argmax(1))
            output.mvm_logits = nn.functional.one_hot(told, BACKGROUND + 1).float() * (not self.blind)
        return output


def measure(model, records, processor, **options):
    names = {field.name for field in dataclasses.fields(PretrainingData)}
    data = PretrainingData(**{name: options.pop(name) for name in names & options.keys()})
    task = SimpleNamespace(
        heldout_records=records, processor=processor, data=data, seed=0, workers=0, precision="auto", image_batch=5,
        pair_batch=16, heldout_images=0, heldout_candidates=200, quick_images=128,
    )  # fmt: skip
    vars(task).update({name: options.pop(name) for name in vars(task).keys() & options.keys()})
    return evaluate_pretraining(task, model, **options)


def test_a_model_that_sees(records, processor):
    model = Oracle(processor.tokenizer).train()
    metrics = measure(model, records, processor)
    assert metrics["mlm_content"] == 1.0 and metrics["mlm_content_shuffled"] == 0.0
    assert metrics["mlm_all"] < 1.0, "the oracle says the colour where `a` or `is` was masked"
    assert metrics["itm"] == 1.0 and metrics["itm_majority"] == 0.5
    assert 0.4 <= metrics["itm_shuffled"] <= 0.6
    assert metrics["mvm"] == 1.0
    assert metrics["mvm_shuffled"] == pytest.approx(metrics["mvm_most_frequent"]), "only the background is left"
    # Told nothing, the oracle says the first colour: right of the background, and of that colour's image.
    assert metrics["mvm_most_frequent"] <= metrics["mvm_no_caption"] < 1
    assert metrics["mvm_paper"] == metrics["mvm_paper_no_caption"] == 1 and model.config.mvm_masking == "lift"
    assert 0.2 < metrics["mvm_most_frequent"] < 0.8
    # Logits 0 and 1, or 0 and -1, all of them right; 1 for the right word, where it is one, and 0 for all others.
    assert metrics["itm_loss"] == pytest.approx(np.log(1 + np.exp(-1)))
    right, wrong = (np.log(np.e + model.vocab_size - 1) - logit for logit in (1, 0))
    assert right < metrics["mlm_loss"] < wrong
    for direction in ("image_to_text", "text_to_image"):
        assert [metrics[f"{direction}_r{k}"] for k in (1, 5, 10)] == [1.0, 1.0, 1.0]
        assert metrics[f"{direction}_mrr"] == pytest.approx(1.0)
    assert metrics["chance_r5"] == pytest.approx(5 / 12)
    assert metrics["heldout_active_codes"] == 13
    assert metrics["heldout_perplexity"] == pytest.approx(24**0.5 * 2**0.5, rel=1e-6)
    assert (metrics["model_active_codes"], metrics["model_perplexity"]) == (9.0, 7.5)
    assert model.training and model.training_seen == {False}, "measured in evaluation mode, and put back"
    assert model.num_encoded == 12, "an image is encoded once for all metrics"


class MaskedColour(Oracle):
    """Of which the colour is always masked."""

    def label_to_mask(self, visual, mask_uniform):
        return visual.index[:, 0]


def test_masked_visual_tokens_by_the_words_of_the_caption_alone(records, processor):
    """Captions name the colour of their image."""
    metrics = measure(MaskedColour(processor.tokenizer), records, processor, training=RecordTable(records[:8]))
    assert metrics["mvm_words"] == pytest.approx(8 / 12), "of the other colours nothing is known"
    row = next(row for row in format_table(metrics) if row[0] == "MVM, masked visual tokens")
    assert row[2].endswith("66.7 % the caption's words alone")
    assert "mvm_words" not in measure(MaskedColour(processor.tokenizer), records, processor)
    without = Oracle(processor.tokenizer, dictionary=False)
    assert "mvm_words" not in measure(without, records, processor, training=RecordTable(records))


def test_the_most_likely_code_by_words():
    words = CaptionWords(vocab_size=10, num_codes=4)
    words.add(np.array([1, 5, 5]), np.array([0, 0, 0, 2]))
    words.add(np.array([1, 6]), np.array([2, 2, 2, 2]))
    assert words.code_of(np.array([1, 5])) == 0 and words.code_of(np.array([1, 6])) == 2
    assert words.code_of(np.array([1])) == words.code_of(np.array([1, 9, 9])) == 2, "the more frequent one"
    assert words.code_of(np.array([5, 5, 5, 6, 6])) == words.code_of(np.array([5, 6])), "each word once"


def test_a_blind_model_gets_the_baselines(records, processor):
    metrics = measure(Oracle(processor.tokenizer, blind=True), records, processor)
    assert metrics["mlm_content"] == metrics["mlm_content_shuffled"]
    assert metrics["mlm_all"] == metrics["mlm_all_shuffled"]
    assert metrics["itm"] == metrics["itm_shuffled"] == 0.5
    # Its logits are 0.5 and 0 for every pair, of which half match.
    assert metrics["itm_loss"] == pytest.approx(np.log(1 + np.exp(0.5)) - 0.25)
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert metrics[f"{direction}_r{k}"] == pytest.approx(metrics[f"chance_r{k}"])


def test_a_model_that_learns_nothing_is_told(records, processor):
    blind = nothing_learnt(measure(Oracle(processor.tokenizer, blind=True), records, processor))
    assert blind.startswith("nothing is learnt of held-out images yet: masked content words ")
    assert "matching 50.0% (chance 50.0%)" in blind
    assert nothing_learnt(measure(Oracle(processor.tokenizer), records, processor)) == ""


@pytest.mark.parametrize(
    ("words", "shuffled", "itm", "count", "learnt"),
    [
        (0.0, 0.0, 0.5, 30, False),
        (0.0, 0.0, 0.6, 30, False),  # within chance of sixty pairs
        (0.0, 0.0, 0.6, 500, True),
        (0.31, 0.30, 0.5, 500, False),  # learnt from the texts alone
        (0.45, 0.30, 0.5, 500, True),
        (float("nan"), float("nan"), 0.5, 500, False),
    ],
)
def test_by_how_much_held_out_images_must_help(words, shuffled, itm, count, learnt):
    metrics = {"num_images": count, "mlm_content": words, "mlm_content_shuffled": shuffled, "itm": itm}
    assert (nothing_learnt(metrics | {"itm_majority": 0.5}) == "") == learnt


def test_same_seed_same_measures_and_another_seed_other_examples(records, processor):
    model = Oracle(processor.tokenizer)
    first = measure(model, records, processor, heldout_images=6)
    assert measure(model, records, processor, heldout_images=6) == first
    assert first["num_images"] == 6 and first["num_candidates"] == 6
    masked = {measure(model, records, processor, heldout_images=6, seed=seed)["mlm_all"] for seed in range(5)}
    assert len(masked) > 1


@pytest.mark.parametrize(("count", "size"), [(12, 1), (3, 2), (2, 1), (7, 4), (12, 5), (5, 100)])
def test_no_image_is_left_alone_in_a_batch(records, processor, count, size):
    said = []
    metrics = measure(
        Oracle(processor.tokenizer), records, processor, heldout_images=count, image_batch=size, say=said.append
    )
    assert metrics["num_images"] == count and not said


def test_quick_measures_leave_retrieval_out(records, processor):
    model = Oracle(processor.tokenizer)
    metrics = measure(model, records, processor, heldout_candidates=0)
    assert "image_to_text_r1" not in metrics and "itm" in metrics
    fewer = measure(model, records, processor, heldout_candidates=7)
    assert fewer["num_candidates"] == 7 and fewer["chance_r1"] == pytest.approx(1 / 7)


class Vectors(Oracle):
    """An ITM head that is blind, and vectors that see."""

    contrastive_head = "there"

    def image_vectors(self, visual_ILD):
        return nn.functional.one_hot(visual_ILD[:, 0, 0].long(), len(NAMES)).float()

    def text_vectors(self, input_ids_TS):
        return (input_ids_TS[:, :, None] == self.word_ids).any(1).float()


def test_where_there_are_vectors_they_retrieve_too(records, processor, tmp_path):
    """An image that is skipped has a text, but is no candidate."""
    (tmp_path / records[3].image.name).write_bytes(b"no image")
    seeing = measure(Oracle(processor.tokenizer), records, processor)
    metrics = measure(Vectors(processor.tokenizer, blind=True), records, processor)
    assert metrics["num_candidates"] == 11 and metrics["image_to_text_r1"] < seeing["image_to_text_r1"]
    names = [name for name in metrics if name.startswith("vectors_")]
    assert len(names) == 8 and not [name for name in seeing if name.startswith("vectors_")]
    assert {name: metrics[name] for name in names} == {name: seeing[name.removeprefix("vectors_")] for name in names}
    rows = {name: rest for name, *rest in format_table(metrics)}
    share = f"{100 * seeing['image_to_text_r1']:.1f} %"
    assert rows["image to text R@1 of 11 by the contrastive head"] == [share, "9.1 % chance"]
    own = f"{100 * metrics['image_to_text_r1']:.1f} %"
    assert rows["image to text R@1 of 11 by the ITM head"] == [own, "9.1 % chance"] != [share, "9.1 % chance"]
    better = "head that ranks better, by mean reciprocal rank"
    assert rows[better] == ["contrastive head", "soho ask takes it"]
    turned = {**metrics, "image_to_text_mrr": 1.0, "vectors_image_to_text_mrr": 0.0}
    assert [better, "ITM head", "soho ask takes it"] in format_table(turned | {"text_to_image_mrr": 1.0})
    of_before = {name: value for name, value in seeing.items() if name != "mvm_no_caption"}
    assert ["MVM, masked visual tokens", "100.0 %"] in [row[:2] for row in format_table(of_before)]
    names = {name for name, *_ in format_table(seeing)}
    assert "image to text R@1 of 11" in names and better not in names


def test_without_a_dictionary_there_is_no_mvm(records, processor):
    metrics = measure(Oracle(processor.tokenizer, dictionary=False), records, processor)
    assert not [name for name in metrics if "mvm" in name or "codes" in name]
    assert "MVM" not in " ".join(row[0] for row in format_table(metrics))


def test_corrupt_held_out_image_is_skipped_and_counted(records, processor, tmp_path):
    (tmp_path / records[3].image.name).write_bytes(b"no image")
    said = []
    metrics = measure(Oracle(processor.tokenizer), records, processor, say=said.append)
    assert len(said) == 1 and said[0].startswith(f"held-out image skipped: {records[3].image}: can't be decoded")
    assert metrics["num_skipped"] == 1 and metrics["num_images"] == 11 and metrics["itm"] == 1.0
    assert ["corrupt held-out images, skipped", "1", ""] in format_table(metrics)
    assert measure(Oracle(processor.tokenizer), records, processor, say=said.append, workers=2) == metrics
    assert said.pop() == said[0], "read by other processes"
    for record in records[:11]:
        (tmp_path / record.image.name).write_bytes(b"no image")
    with pytest.raises(CorruptImageError, match="no two held-out images"):
        measure(Oracle(processor.tokenizer), records, processor, say=said.append)
    assert f"held-out image left out, no other of its batch can be read: {records[11].image}" in said


def test_model_is_put_back_in_training_after_an_error(records, processor):
    model = Oracle(processor.tokenizer).train()
    model.encode_images = None
    with pytest.raises(TypeError):
        measure(model, records, processor)
    assert model.training


def test_words_are_masked_whole_and_content_words_are_known(processor):
    tokenizer = processor.tokenizer
    texts = encode_texts(tokenizer, ["there is a red painting .", "is there a xyzzy ?"], 16)
    masked = mask_words(texts, tokenizer, np.random.default_rng(0), 1.0)
    first = tokenizer.convert_ids_to_tokens(masked.texts_ids[0].tolist())
    assert first == ["[CLS]", *["[MASK]"] * 6, ".", "[SEP]"], "all but punctuation"
    assert [len(positions) for row, positions, _ in masked.words if row == 0] == [1, 1, 1, 1, 2]
    assert [content for row, _, content in masked.words if row == 0] == [False, False, False, True, True]
    assert [content for row, _, content in masked.words if row == 1] == [False] * 3, "[UNK] is not asked for"
    for seed in range(20):
        least = mask_words(texts[:1], tokenizer, np.random.default_rng(seed), 0.0)
        assert [content for _, _, content in least.words] == [True]
        assert (least.labels[0] != -100).sum() == len(least.words[0][1])


def test_words_of_a_byte_level_tokenizer_are_told_apart(tmp_path):
    """As RoBERTa's, of which a piece begins with its space."""
    special = {f"{name}_token": f"<{name}>" for name in ("cls", "pad", "sep", "unk", "mask")}
    backend = ByteLevelBPETokenizer(add_prefix_space=True)
    backend.train_from_iterator(["a dog on a beach"] * 9, special_tokens=list(special.values()), show_progress=False)
    backend.save_model(str(tmp_path))
    merges = [tuple(line.split()) for line in (tmp_path / "merges.txt").read_text().splitlines()[1:]]
    tokenizer = RobertaTokenizer(vocab=backend.get_vocab(), merges=merges, add_prefix_space=True, **special)
    tokenizer.save_pretrained(tmp_path / "words")
    tokenizer = load_tokenizer(tmp_path / "words")
    masked = mask_words(encode_texts(tokenizer, ["a dog"], 16), tokenizer, np.random.default_rng(0), 1.0)
    assert [is_content for _, _, is_content in masked.words] == [False, True]
