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
def test_a_recipe_keeps_its_codes_alive_and_random_codes_die(scale):
    fields = read_recipe(["--recipe", "paper"]).model.changes()
    assert "dictionary_batch_norm" not in fields, "this test has no BatchNorm before the lookup"
    assert min(active_codes(fields, scale)) > 0.9 * NUM_CODES
    # The text's start is what dies, whether the features stand or move.
    text = {**fields, "dictionary_init": "random", "code_reset_threshold": 0.0}
    assert max(active_codes(text, scale)) < 0.2 * NUM_CODES
