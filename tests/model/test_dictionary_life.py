"""A dictionary on features in clusters, on a scale of their own, as a CNN's are: which start keeps it in use."""

import math

import pytest
import torch

from soho_fast.model import SohoConfig, VisualDictionary
from soho_fast.tasks.recipe import read_recipe

NUM_CODES, CHANNELS, CLUSTERS, TOKENS = 256, 32, 400, 2048
STILL, MOVING = 40, 40


def cluster_centres(generator: torch.Generator, scale: float) -> torch.Tensor:
    """Few of the channels' directions, about a mean that is not zero."""
    directions = torch.randn(8, CHANNELS, generator=generator)
    return torch.randn(CLUSTERS, 8, generator=generator) @ directions * (scale / math.sqrt(8)) + scale


def active_codes(fields: dict, scale: float) -> list[int]:
    """Active codes after the features stood still, and after they moved to other clusters altogether."""
    generator = torch.Generator().manual_seed(0)
    config = SohoConfig.from_preset(
        "paper", **{**fields, "num_codes": NUM_CODES, "hidden_size": CHANNELS, "num_attention_heads": 1}
    )
    made = VisualDictionary(config).train()
    before, after = (cluster_centres(generator, scale) for _ in range(2))
    valid = torch.ones(1, TOKENS, dtype=torch.bool)
    found = []
    for step in range(1, STILL + MOVING + 1):
        angle = max(0, step - STILL) / MOVING * math.pi / 2
        centres = math.cos(angle) * before + math.sin(angle) * after
        member = torch.randint(CLUSTERS, (TOKENS,), generator=generator)
        made((centres[member] + 0.1 * scale * torch.randn(TOKENS, CHANNELS, generator=generator)).unsqueeze(0), valid)
        if step in (STILL, STILL + MOVING):
            found.append(int(made.statistics()[1]))
    return found


@pytest.mark.parametrize("scale", [0.05, 0.3])
@pytest.mark.parametrize("recipe", ["paper"])
def test_a_recipe_keeps_its_codes_alive_and_random_codes_die(recipe, scale):
    fields = read_recipe(["--recipe", recipe]).model.config
    assert "dictionary_batch_norm" not in fields, "this test has no BatchNorm before the lookup"
    still, moving = active_codes(fields, scale)
    assert still > 0.9 * NUM_CODES
    assert moving > 0.9 * NUM_CODES
    # The text's start is what dies, whether the features stand or move.
    assert (
        max(active_codes({**fields, "dictionary_init": "random", "code_reset_threshold": 0.0}, scale)) < 0.2 * NUM_CODES
    )


def errors_of_driven_features(per_step: float, **options) -> tuple[float, float]:
    """Mean squared distance of the features from their codes, in units of the features' variance, before and after
    forty steps in which all features move together by so many of their standard deviations a step."""
    generator = torch.Generator().manual_seed(0)
    config = SohoConfig(num_codes=128, hidden_size=CHANNELS, num_attention_heads=1, dictionary_init="data", **options)
    made = VisualDictionary(config).train()
    centres, direction = (torch.randn(count, CHANNELS, generator=generator) for count in (200, 1))
    direction /= direction.square().mean().sqrt()
    valid = torch.ones(8, 16, dtype=torch.bool)
    found = []
    for step in range(1, 141):
        member = torch.randint(200, (8, 16), generator=generator)
        # Tokens of an image are alike.
        noise = torch.randn(8, 16, CHANNELS, generator=generator), torch.randn(8, 1, CHANNELS, generator=generator)
        feat = centres[member] + 0.3 * noise[0] + 0.7 * noise[1] + max(0, step - 100) * per_step * direction
        embed, _ = made(feat, valid)
        rows, codes = feat.flatten(0, 1), embed.flatten(0, 1)
        found.append(float((rows - codes).square().sum() / (rows - rows.mean(0)).square().sum()))
    return sum(found[90:100]) / 10, sum(found[130:]) / 10


def test_codes_that_follow_keep_up_with_features_that_move_together():
    lost = errors_of_driven_features(0.2, code_reset_threshold=0.02)
    assert lost[0] < 0.7 and lost[1] > 2, "above 1 a single code would be nearer to them all"
    for follow in ("mean", "affine"):
        still = errors_of_driven_features(0.0, code_reset_threshold=0.02, dictionary_follow=follow)
        assert still[1] < 1.05 * lost[0]
        kept = errors_of_driven_features(0.2, code_reset_threshold=0.02, dictionary_follow=follow)
        assert kept[1] < 1.25 * kept[0]
