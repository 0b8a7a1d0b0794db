"""The configuration: values of the paper, refusals, round trip."""

import json

import pytest

from soho_fast.model import SohoConfig


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"backbone": "vgg"}, "backbone: expected one of"), ({"fusion": "sum"}, "fusion: expected one of none, gate"),
        ({"official": "authors"}, "official: expected one of pretraining, fine_tuning"),
        ({"dictionary": "sq"}, "dictionary: expected one of none, paper, words, got 'sq'"),
        ({"dictionary_init": "zeros"}, "dictionary_init: expected one of"),
        ({"ema_decay": 1.5}, "ema_decay: expected 0 to 1, got 1.5"),
        ({"hidden_size": 30, "num_attention_heads": 2},
         "hidden_size: expected a multiple of 4 .the 2-D sine position"),
        ({"hidden_size": 32, "num_attention_heads": 3}, "hidden_size: expected a multiple of num_attention_heads"),
        ({"num_codes": 0}, "num_codes: expected 1 to 10,000,000"),
        ({"num_codes": 10**7, "hidden_size": 10**6}, "hidden_size: expected at most 10,000,000,000 parameters"),
        ({"num_hidden_layers": 1000, "intermediate_size": 10**7}, "hidden_size: expected at most 10,000,000,000 par"),
        ({"num_codes": "many"}, "Field 'num_codes' expected int, got str"),
        ({"backbone_frozen_stages": 5}, "backbone_frozen_stages: expected 0 to 4"),
        ({"backbone": "resnet18", "backbone_stride": 16, "backbone_frozen_stages": 4},
         "backbone_frozen_stages: expected 0 to 3, the stages of resnet18 up to backbone_stride=16, got 4"),
        ({"backbone": "resnet18", "backbone_stride": 12},
         "backbone_stride: expected one of 4, 8, 16, 32, where a stage of resnet18 ends, got 12"),
        ({"official": "pretraining", "backbone_stride": 16},
         "backbone_stride: expected 32 with official='pretraining', got 16"),
        ({"mvm_margin": -1}, "mvm_margin: expected 0 to 1,?000, got -1"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps: expected at least 0, got -1e-12"),
        ({"bag_of_words_weight": -1}, "bag_of_words_weight: expected at least 0, got -1"),
        ({"mvm_weight": float("nan")}, "mvm_weight: expected at least 0, got nan"),
        ({"official": "pretraining", "backbone_dropout_prob": 0.1},
         "backbone_dropout_prob: expected 0 with official='pretraining', got 0.1"),
        ({"official": "fine_tuning", "dictionary_batch_norm": True},
         "dictionary_batch_norm: expected False with official="),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(overrides, words):
    with pytest.raises(ValueError, match=words):
        SohoConfig.from_preset("paper", **overrides)


def test_a_misspelt_field_or_preset_is_refused():
    with pytest.raises(ValueError, match="no field num_code; did you mean num_codes"):
        SohoConfig.from_preset("paper", num_code=5)
    with pytest.raises(ValueError, match="preset: expected one of paper"):
        SohoConfig.from_preset("papre")


def test_a_field_that_is_no_more_is_named_in_one_line(tmp_path, tiny_config):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "laplace_eps": 1e-5}))
    with pytest.raises(ValueError, match=r"config\.json: there is no field laplace_eps") as caught:
        SohoConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
