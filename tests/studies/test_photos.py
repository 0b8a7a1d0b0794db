"""The photo probe: what it counts, on codes whose answer is known, and the way from photographs to codes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_corpus import write_tokenizer

from soho_fast.data import SohoImageProcessor, SohoProcessor, load_tokenizer
from soho_fast.data.mini import photographs
from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.studies import photos

SMALL = {
    "backbone": "resnet10", "visual_pool": 1, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "num_codes": 8, "max_position_embeddings": 16, "vocab_size": 31,
}  # fmt: skip


def _photo(place: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64 + place, 48), (place * 20 % 256, 90, 255 - place * 20 % 256)).save(file, "WEBP")
    return file.getvalue()


@pytest.fixture()
def package(monkeypatch):
    """Stands for Debian's package."""
    inside = {
        "erase": {f"animal_{letter}.webp": _photo(place % 2) for place, letter in enumerate("abcdefgh")},
        "explore_world_animals": {"animals/koala.webp": _photo(2)},
        "explore_farm_animals": {"animals/pig.webp": _photo(3)},
        "categorization": {
            "images/fishes/fish1.webp": _photo(4),
            "images/fishes/fish2.webp": _photo(5),
            "images/tools/measuringTape1.webp": _photo(6),
            "images/tools/measuringTape.webp": _photo(7),
            "images/tools/hammer1.webp": _photo(8),
            "images/numbers/numbers.webp": _photo(9),
        },
    }
    monkeypatch.setattr(photos, "read_photographs", inside.__getitem__)


@pytest.fixture()
def run(tmp_path):
    def save(**changes):
        torch.manual_seed(0)
        folder = tmp_path / "run" / "model"
        SohoForPreTraining(SohoConfig.from_preset(**SMALL | changes)).save_pretrained(folder)
        tokenizer = load_tokenizer(write_tokenizer(tmp_path / "tokenizer"))
        SohoProcessor(SohoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}), tokenizer).save_pretrained(
            folder
        )
        return tmp_path / "run"

    return save


def test_what_two_images_have_in_common():
    common_NN = photos.codes_in_common([np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), np.array([3])], 4)
    assert common_NN.tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]
    label_N = np.array([0, 0, 1])
    assert photos.same_and_other(common_NN, label_N) == (0.5, 0.0)
    # The second is there twice, and not compared with itself; the third has nothing of its class.
    same, other = photos.same_and_other(common_NN, label_N, np.array([0, 1, 1, 2]))
    assert same == 0.5 and other == 0.0


@pytest.fixture(scope="module")
def planted():
    """Sixty images of 12 cells in three classes: codes of no class's own, and codes half of which are the class's."""
    generator = np.random.default_rng(0)
    classes = [("dam", "fish", "solar")[number % 3] for number in range(60)]
    null = [generator.integers(0, 16, 12) for _ in classes]
    kind = {"dam": 0, "fish": 1, "solar": 2}
    own = [np.where(np.arange(12) < 6, 16 + kind[name], code_T) for name, code_T in zip(classes, null, strict=True)]
    return classes, null, own


def test_a_planted_effect_comes_out(planted):
    classes, _, own = planted
    found = photos.consistency(own, classes, 20)
    assert found["same_class"] > found["other_class"] + 0.4
    assert 4 < found["lift_low"] < found["lift"] < found["lift_high"] < 6
    assert found["p"] < 0.001 and found["nearest"] == 1.0
    assert found["nearest_by_chance"] == pytest.approx(19 / 59)
    assert found == photos.consistency(own, classes, 20)


def test_a_planted_null_comes_out(planted):
    classes, null, _ = planted
    found = photos.consistency(null, classes, 20)
    assert found["lift_low"] < 1 < found["lift_high"] and found["lift_high"] - found["lift_low"] < 0.2
    assert found["p"] > 0.05 and abs(found["nearest"] - 19 / 59) < 0.2


def test_photographs_have_classes(package):
    found = photos.classified_photographs()
    assert [kind for kind, _ in found] == ["animal"] * 10 + ["fish"] * 2 + ["measuring tape"] * 2
    assert [data for _, data in found] == [_photo(place) for place in [0, 1] * 4 + [2, 3, 4, 5, 6, 7]]


def test_a_run_is_measured(package, run, capsys):
    folder = run()
    assert photos.main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "14 photographs: 10 animal, 2 fish, 2 measuring tape"
    assert lines[1].startswith("codes (perplexity ") and lines[2].startswith("means of the same features (perplexity ")
    codes, features, num_codes = photos.codes_of_photographs(folder, [_photo(0), _photo(9)])
    assert num_codes == 8 and [len(code_T) for code_T in codes] == [2 * 3, 2 * 3] and features[0].shape == (6, 32)


def test_what_is_missing_is_told(package, run, monkeypatch, tmp_path, capsys):
    folder = run(use_dictionary=False, num_codes=8)
    assert photos.main([str(folder)]) == 2
    assert "has no visual dictionary (use_dictionary: false)" in capsys.readouterr().err
    assert photos.photo_metrics(folder) == {}
    monkeypatch.setattr(photographs, "FOLDER", tmp_path / "nowhere")
    photographs.read_photographs.cache_clear()
    monkeypatch.setattr(photos, "read_photographs", photographs.read_photographs)
    assert photos.main([str(folder)]) == 2
    assert "`apt-get install --no-install-recommends gcompris-qt-data`" in capsys.readouterr().err
