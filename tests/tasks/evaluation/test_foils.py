"""Captions and their foils: which are measured, and what models whose answers are known get."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_corpus import COLOURS, draw
from torch import nn

from soho_fast.data.foils import Foils
from soho_fast.data.readers.records import ImageRef, ImageTextRecord
from soho_fast.data.stores import FolderStore
from soho_fast.model import VisualTokens
from soho_fast.tasks.evaluation.foils import choose_pairs, foil_rows, measure_foils
from soho_fast.tasks.evaluation.pretraining import format_table
from soho_fast.tasks.settings import PretrainingData

SHOWN = ["red", "green", "blue", "yellow", "white", "black"]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Model(nn.Module):
    """Sees an image's colour; `rule(colour, words)` gives the log-odds of a pair."""

    def __init__(self, tokenizer, rule):
        super().__init__()
        self.tokenizer, self.rule = tokenizer, rule
        self.palette = (torch.tensor([COLOURS[name] for name in SHOWN]) / 255 - MEAN) / STD

    def encode_images(self, pixel_values, pixel_mask):
        colour = torch.cdist(pixel_values[:, :, 5, 5], self.palette).argmin(1)[:, None]
        return VisualTokens(features=colour[..., None].float(), valid=torch.ones_like(colour, dtype=torch.bool))

    def embed_images(self, visual):
        return visual.features

    def matching_logits(self, visual_ILD, input_ids_TS, text_index, image_index):
        assert not self.training and not torch.is_grad_enabled()
        words = [self.tokenizer.convert_ids_to_tokens(ids) for ids in input_ids_TS.tolist()]
        pairs = zip(image_index.tolist(), text_index.tolist(), strict=True)
        return torch.tensor([self.rule(SHOWN[int(visual_ILD[i, 0, 0])], words[t]) for i, t in pairs])


@pytest.fixture
def records(tmp_path):
    """Of each colour four images with two captions each."""
    found = []
    for number in range(24):
        colour = SHOWN[number % 6]
        image = draw(tmp_path / f"{number}.png", colour)
        captions = (f"a {colour} man", f"there is a {colour} woman")
        found.append(ImageTextRecord(ImageRef(FolderStore(str(tmp_path)), image.name), captions, str(number), "own"))
    return found


@pytest.fixture
def measure(records, processor):
    def measured(rule, records=records, **fields):
        task = SimpleNamespace(
            heldout_records=records, processor=processor, data=PretrainingData(), seed=0, workers=0, precision="auto",
            image_batch=5, pair_batch=16, heldout_images=0,
        )  # fmt: skip
        vars(task).update(fields)
        model = Model(processor.tokenizer, rule).train()
        metrics = measure_foils(task, model, [text for record in records for text in record.captions])
        assert model.training, "put back"
        return metrics

    return measured


def test_a_model_that_sees_and_one_that_likes_a_word(measure):
    seeing = measure(lambda colour, words: 1.0 if colour in words else -1.0)
    assert set(seeing) == {f"foils_colours{end}" for end in ("", "_shuffled", "_accepted", "_pairs")}
    assert seeing["foils_colours"] == 1.0 and seeing["foils_colours_accepted"] == 0.0
    assert seeing["foils_colours_pairs"] >= 10
    assert seeing["foils_colours_shuffled"] < 0.5
    # Whatever the image: in half of the pairs the liked word is the foil's.
    liking = measure(lambda colour, words: float(max(SHOWN.index(word) for word in words if word in SHOWN)))
    assert liking["foils_colours"] == liking["foils_colours_shuffled"] == 0.5
    # A tie is not right.
    assert measure(lambda colour, words: 0.5)["foils_colours"] == 0.0


def test_shares_are_those_of_a_count_by_hand(measure, records):
    def rule(colour, words):
        """Half blind: of three colours it knows whether they are named."""
        return 1.0 if colour in words or colour in SHOWN[3:] else -1.0

    metrics = measure(rule)
    rng = np.random.default_rng([3, 0])
    shuffled = [records[number] for number in rng.permutation(24)]
    foils = Foils([text for record in records for text in record.captions])
    pairs = choose_pairs(shuffled, foils, rng)["colours"]
    right = wrongly = 0
    for pair in pairs:
        colour = SHOWN[int(shuffled[pair.image].image_id) % 6]
        assert colour in pair.caption.split() and colour not in pair.foil.split()
        right += rule(colour, pair.caption.split()) > rule(colour, pair.foil.split())
        wrongly += rule(colour, pair.foil.split()) > 0
    assert metrics["foils_colours_pairs"] == len(pairs)
    assert metrics["foils_colours"] == right / len(pairs) and 0 < right < len(pairs)
    assert metrics["foils_colours_accepted"] == wrongly / len(pairs) == 1 - right / len(pairs)


def test_as_many_pairs_have_a_word_for_another_as_the_other_way_round(records, monkeypatch):
    foils = Foils([text for record in records for text in record.captions])
    rng = np.random.default_rng(0)

    def flows(pairs):
        return Counter(
            tuple(next(word for word in text.split() if word in SHOWN) for text in (pair.caption, pair.foil))
            for pair in pairs
        )

    found = flows(choose_pairs(records, foils, rng)["colours"])
    assert found and all(found[after, before] == count for (before, after), count in found.items())
    monkeypatch.setattr("soho_fast.tasks.evaluation.foils._MOST_PAIRS", 4)
    assert sum(flows(choose_pairs(records, foils, rng)["colours"]).values()) == 4


def test_what_cannot_be_read_is_left_out_and_a_kind_without_foils_too(measure, records, tmp_path):
    def rule(colour, words):
        return 1.0 if colour in words else -1.0

    (tmp_path / "0.png").write_bytes(b"no image")
    assert measure(rule)["foils_colours"] == 1.0
    plain = [replace(record, captions=("the man", "the woman")) for record in records]
    assert measure(rule, plain) == {} and foil_rows({}) == []
    for number in range(24):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    assert measure(rule) == {}


def test_the_rows_of_the_table(measure):
    metrics = {
        "foils_sides": 0.625,
        "foils_sides_shuffled": 0.5,
        "foils_sides_accepted": 0.25,
        "foils_sides_pairs": 8.0,
    }
    label = "caption above the same with another side, 8 pairs"
    beside = "50.0 % chance, 50.0 % shuffled image; 25.0 % of the others count as matching"
    verdict = ["what matching does not see", "sides", "within two standard errors"]
    assert foil_rows(metrics) == [[label, "62.5 %", beside], verdict], "8 pairs: two standard errors are 35 %"
    assert foil_rows(metrics | {"foils_sides_pairs": 80.0})[-1][1] == "none of these"
    assert verdict in format_table(metrics)
