"""The released model by rule, built once for all tests of this folder that a process runs."""

import pytest
import torch
from by_rule import pretraining_model, vqa_model

from soho_fast.model import SohoConfig, SohoForPreTraining

SIZES = (
    *("backbone", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "hidden_dropout_prob", "attention_probs_dropout_prob", "num_codes"),
)


@pytest.fixture(scope="session")
def _pretraining():
    model = pretraining_model()
    return model, {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.fixture
def model(_pretraining):
    """Weights and buffers by rule, no gradient."""
    model, buffers = _pretraining
    yield model
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    model.zero_grad(set_to_none=True)


@pytest.fixture(scope="session")
def questions_model():
    """The model of question answering, weights by rule; only evaluated."""
    return vqa_model().eval()


@pytest.fixture
def tiny_official(tiny_config):
    """Builds a small model of preset `official`, each time with the same weights."""

    def build(kind=SohoForPreTraining, **overrides):
        tiny = tiny_config()
        sizes = {name: getattr(tiny, name) for name in SIZES}
        config = SohoConfig.from_preset("official", **{**sizes, **overrides})
        torch.manual_seed(1)
        return kind(config)

    return build
