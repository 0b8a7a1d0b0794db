"""The released model by rule, built once for all tests of this folder that a process runs."""

import pytest
import torch
from released_model import pretraining_model, vqa_model


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
