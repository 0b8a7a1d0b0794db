"""The step profile: its shares sum to 100 %, and the backbone sees each image once whatever the number of texts."""

import pytest

from benchmarks.model.profile_step import PHASES, StepProfile, main
from benchmarks.model.training_batches import TimedShape, build_model, make_batch
from soho_fast.data.mini import build_corpus
from soho_fast.engine.settings import OptimSettings
from soho_fast.model import SohoConfig


@pytest.fixture
def shape() -> TimedShape:
    config = SohoConfig.from_preset(
        "paper",
        backbone="resnet10",
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_codes=16,
        dictionary_batch_norm=True,
    )
    return TimedShape("small", config, OptimSettings(), images=3, height=64, width=64, texts=4)


def test_every_phase_has_time_and_the_shares_sum_to_100(shape):
    model = build_model(shape)
    profile = StepProfile(model)
    profile.clear()
    profile.step(make_batch(shape, seed=0), model, lambda: model.zero_grad())
    rows = dict(profile.rows())
    assert tuple(rows) == PHASES
    assert sum(rows.values()) == pytest.approx(100.0)
    assert all(share > 0 for share in rows.values())


def test_the_backbone_runs_once_per_image(shape):
    model = build_model(shape)
    profile = StepProfile(model)
    batch = make_batch(shape, seed=0)
    assert batch["input_ids"].shape[0] == 12
    profile.step(batch, model, lambda: None)
    assert profile.images == 3


def test_the_command_profiles_a_recipe_whose_data_is_there(tmp_path, capsys):
    """As after `make demo`: the recipe's own corpus, read by its own task."""
    corpus = tmp_path / "corpus"
    build_corpus(corpus, num_train=24, num_heldout=8, image_size=64, progress=False)
    size = ["--data.shorter_edge", "64", "--data.longer_edge", "64"]
    asked = ["--recipe", "mini", "--steps", "2", "--images", "8", "--data_roots.corpus", str(corpus), *size]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "sources: coco" in said and "stands in" not in said
    assert "the backbone ran on 16 images, once for each" in said
