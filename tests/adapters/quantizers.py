"""Quantisers of vector_quantize_pytorch beside their accelerated copies.

Letters: B sequences, L tokens, C channels, K codes.
"""

import copy

import torch
from vector_quantize_pytorch import GroupedResidualVQ, ResidualSimVQ, ResidualVQ, SimVQ, VectorQuantize

from soho_fast.adapters import accelerate

B, L, C, K = 4, 60, 16, 32

KINDS = {
    "VectorQuantize": (VectorQuantize, {}), "cosine": (VectorQuantize, {"use_cosine_sim": True}),
    "projected": (VectorQuantize, {"codebook_dim": 8}), "ResidualVQ": (ResidualVQ, {"num_quantizers": 3}),
    "GroupedResidualVQ": (GroupedResidualVQ, {"num_quantizers": 2, "groups": 2}),
    "SimVQ": (SimVQ, {}), "ResidualSimVQ": (ResidualSimVQ, {"num_quantizers": 2}),
}  # fmt: skip


def original_of(kind=VectorQuantize, **options):
    torch.manual_seed(1)
    return kind(**{"dim": C, "codebook_size": K, **options})


def pair(kind=VectorQuantize, **options):
    """An original and its accelerated copy."""
    original = original_of(kind, **options)
    return original, accelerate(copy.deepcopy(original))


def trained_pair(kind=VectorQuantize, **options):
    """In evaluation, after three steps of training."""
    original = original_of(kind, **options)
    for _ in range(3):
        original(torch.randn(B, L, C))
    return original.eval(), accelerate(copy.deepcopy(original))


def nearest(features, codes_KC):
    """The lowest of the nearest codes in float64, as the features and codes are."""
    distance = (features.double()[..., None, :] - codes_KC.detach().double()).square().sum(-1)
    return (distance == distance.amin(-1, keepdim=True)).int().argmax(-1)  # the first


def thrice(quantizer, features):
    """The index: the first call sees the codebook, the second prepares it, the third finds it prepared."""
    found = [quantizer(features)[1] for _ in range(3)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
    return found[0]


def assert_same_state(one, other, tolerance=1e-5):
    expected, state = other.state_dict(), one.state_dict()
    assert expected.keys() == state.keys()
    for name in expected:
        torch.testing.assert_close(
            state[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def classes_and_contents(model):
    return {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
