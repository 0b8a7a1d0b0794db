"""The pipeline that soho_fast is compared with computes the same, and the comparison refuses one that does not."""

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from benchmarks.model.comparison import Comparison
from benchmarks.model.training_batches import TimedShape
from soho_fast.engine.settings import OptimSettings
from soho_fast.model import SohoConfig


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


def test_a_bf16_step_with_other_weights_is_refused():
    if not get_accelerator().is_bf16_supported():
        pytest.skip("DeepSpeed's engine has no bfloat16 on this CPU")
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


def test_ratios_are_of_the_eager_times():
    both = Comparison(small_shape())
    both.seconds = {"soho_fast": [2.0, 1.0, 4.0], "eager": [9.0, 6.0, 8.0]}
    both.cpu_seconds = {"soho_fast": [2.0, 2.0, 2.0], "eager": [5.0, 5.0, 5.0]}
    (row,) = both.rows()
    assert (row["images_per_second"], row["eager_images_per_second"]) == (3 / 2, 3 / 8)
    assert (row["ratio"], row["fastest_ratio"], row["cpu_ratio"]) == (4.0, 6.0, 2.5)
