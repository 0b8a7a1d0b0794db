"""The pipeline that soho_fast is compared with computes the same, and the comparison refuses one that does not; the
profile of a step; the probe of a dictionary's life."""

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from benchmarks.model import dictionary_life, profile_step
from benchmarks.model.comparison import Comparison
from benchmarks.model.dictionary_life import Life
from benchmarks.model.profile_step import PHASES, StepProfile
from benchmarks.model.training_batches import TimedShape, build_model, make_batch
from soho_fast.data.mini import build_corpus
from soho_fast.engine.distributed import leave_processes
from soho_fast.engine.settings import OptimSettings
from soho_fast.model import SohoConfig
from soho_fast.model.backbones import build_backbone


def small_shape(preset: str = "paper", **overrides) -> TimedShape:
    values = dict(
        backbone="resnet10",
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_codes=16,
        dictionary_init="data" if preset == "paper" else "random",
    )
    config = SohoConfig.from_preset(preset, **{**values, **overrides})
    # A 1x1 grid would leave the released neck's BatchNorm little to measure.
    height, width = (64, 96) if preset == "paper" else (128, 192)
    rule = "adamw" if preset == "paper" else "bert_adamw"
    return TimedShape("small", config, OptimSettings(rule=rule, backbone_lr=1e-3), images=3, height=height, width=width)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {
            "visual_pool": 1,
            "dictionary_batch_norm": True,
            "bag_of_words_weight": 0.1,
            "mvm_weight": 0.25,
            "backbone_frozen_stages": 1,
        },
        {
            "visual_pool": 1, "backbone_stride": 16, "dictionary_batch_norm": True, "fusion": "gate",
            "mvm_masking": "lift", "mvm_margin": 1,
        },
        {"backbone": "mobilenet_v2", "dictionary_init": "random"},
        {"preset": "official"},
        {"preset": "official", "official": "fine_tuning"},
    ],
    ids=["paper", "mini", "small tokens", "mobilenet_v2", "official", "official, no block run again"],
)  # fmt: skip
def test_losses_codebook_and_gradients_agree(overrides):
    Comparison(small_shape(**overrides)).check()


def _double_gradient(eager):
    """The same losses, but the classifier's gradient is doubled."""
    eager.parts.itm_head.classifier.weight.register_hook(lambda gradient: 2 * gradient)


@pytest.mark.parametrize(
    ("preset", "change", "told"),
    [
        ("paper", lambda eager: eager.codebook[3].add_(1.0), None),
        ("official", lambda eager: eager.codebook[3].add_(1.0), None),
        ("paper", lambda eager: eager.parts.itm_head.classifier.weight.data.mul_(1.5), "itm loss"),
        ("paper", _double_gradient, "gradients"),
    ],
)
def test_what_computes_otherwise_is_refused(preset, change, told):
    both = Comparison(small_shape(preset))
    change(both.eager)
    with pytest.raises(AssertionError, match=told):
        both.check()


def test_ratios_are_of_the_eager_times():
    both = Comparison(small_shape())
    both.seconds = {"soho_fast": [2.0, 1.0, 4.0], "eager": [9.0, 6.0, 8.0]}
    both.cpu_seconds = {"soho_fast": [2.0, 2.0, 2.0], "eager": [5.0, 5.0, 5.0]}
    (row,) = both.rows()
    assert (row["images_per_second"], row["eager_images_per_second"]) == (3 / 2, 3 / 8)
    assert (row["ratio"], row["fastest_ratio"], row["cpu_ratio"]) == (4.0, 6.0, 2.5)


def test_the_command_profiles_a_recipe_whose_data_is_there(tmp_path, capsys):
    """As after `make demo`: the recipe's own corpus, read by its own task."""
    corpus = tmp_path / "corpus"
    build_corpus(corpus, num_train=24, num_heldout=8, image_size=64, progress=False)
    size = ["--data.shorter_edge", "64", "--data.longer_edge", "64"]
    asked = ["--recipe", "mini", "--steps", "2", "--images", "8", "--data_roots.corpus", str(corpus), *size]
    assert profile_step.main(asked) == 0
    said = capsys.readouterr().out
    assert "sources: coco" in said and "stands in" not in said
    assert "the backbone ran on 16 images, once for each" in said


def test_random_codes_die_and_codes_from_the_data_live(tmp_path, capsys):
    from tiny_corpus import write_images

    write_images(tmp_path / "pictures")
    torch.manual_seed(0)
    torch.save(build_backbone("resnet10").state_dict(), tmp_path / "weights.pt")
    sizes = "--images 4 --shorter-edge 64 --longer-edge 96 --codes 32 --channels 16 --tokens 20 --still 8 --moving 8"
    files = {"pictures": "pictures", "weights": "weights.pt", "maps": "maps.pt"}
    paths = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    cases = ["--case", "{}", "--case", "{dictionary_init: data}"]
    dictionary_life.main([*paths, *cases, *sizes.split(), "--backbone", "resnet10", "--smallest-edge", "1"])
    *_, random, data = capsys.readouterr().out.splitlines()
    assert random.startswith("{} ") and data.startswith("{dictionary_init: data} ")
    used = [int(line.split("}")[1].split()[0]) for line in (random, data)]
    assert used[0] < 12 and used[1] > 18
    assert len(torch.load(tmp_path / "maps.pt")) == 8


def test_a_bf16_step_with_other_weights_is_refused():
    if not get_accelerator().is_bf16_supported():
        pytest.skip("DeepSpeed's engine has no bfloat16 on this CPU")
    Comparison(small_shape(), bf16=True)
    leave_processes()  # A run that has ended before in this process.
    both = Comparison(small_shape(), bf16=True)
    both.check()
    before = both.engine.module.itm_head.classifier.weight.clone()
    for _ in range(2):
        both.timed("soho_fast bf16")
    assert before.dtype == torch.float32 and not torch.equal(before, both.engine.module.itm_head.classifier.weight)
    with torch.no_grad():
        both.engine.module.itm_head.classifier.bias[0] += 1
    with pytest.raises(AssertionError, match="itm_loss"):
        both.check()


def test_dropout_comes_on_in_all_after_the_check():
    shape = small_shape()
    shape.dropout = 0.5
    both = Comparison(shape)
    both.check()
    for each in (both.model, both.eager):
        dropouts = [module for module in each.modules() if isinstance(module, torch.nn.Dropout)]
        assert dropouts and {module.p for module in dropouts} == {0.5}
        # Every layer's attention and states, words and visual tokens: nothing else in these modules draws.
        torch.manual_seed(0)
        (each(**both.batch) if each is both.model else each(both.padded)).loss.backward()
        drawn = torch.get_rng_state()
        torch.manual_seed(0)
        assert not torch.equal(drawn, torch.get_rng_state())


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


def test_used_codes_are_those_of_the_phase_and_the_error_is_in_units_of_the_variance():
    life = Life(8, 4, {})
    life.dictionary.codebook.copy_(torch.arange(8.0).unsqueeze(1).expand(8, 4) * 100)
    feat_NC = torch.tensor([[0.0] * 4, [100.0] * 4, [101.0] * 4])
    mean_C = feat_NC.mean(0)
    assert life.step(feat_NC) == pytest.approx(float(4 / (feat_NC - mean_C).square().sum()))
    assert life.figures(0.0).split()[:2] == ["2", "2"]
    life.step(feat_NC + 300)
    assert life.figures(0.0).split()[:2] == ["2", "4"]
