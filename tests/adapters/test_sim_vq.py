"""SimVQ and its residual form, accelerated, against the originals.

Letters: B sequences, L tokens, C channels, K codes.
"""

import pytest
import quantizers
import torch
from quantizers import B, C, L, nearest
from torch import nn
from vector_quantize_pytorch import SimVQ

OPTIONS = {
    "plain": {},
    "straight through": {"rotation_trick": False},
    "weights": {"input_to_quantize_commit_loss_weight": 0.5, "commitment_weight": 3.0},
    "narrow frozen codes": {"frozen_codebook_dim": 5},
    "a transform of one's own": {"codebook_transform": nn.Sequential(nn.Linear(C, 20), nn.ReLU(), nn.Linear(20, C))},
}


def pair(kind=SimVQ, **options):
    return quantizers.pair(kind, **options)


def gradients_of(quantizer, features):
    features = features.clone().requires_grad_()
    quantized, index, loss = quantizer(features)
    quantizer.zero_grad()
    (loss.sum() + (quantized * torch.linspace(-1, 1, quantized.numel()).view(quantized.shape)).sum()).backward()
    return quantized.detach(), index, loss.detach(), features.grad, *(p.grad.clone() for p in quantizer.parameters())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_outputs_and_gradients(options):
    original, accelerated = pair(**options)
    for seed in range(5):
        features = torch.randn(B, L, C, generator=torch.Generator().manual_seed(seed))
        expected, got = gradients_of(original, features), gradients_of(accelerated, features)
        assert torch.equal(got[1], expected[1])
        for one, other in zip(got, expected, strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # members of a code are added in any order


@pytest.mark.parametrize("shape", [(B, C), (B, L, C), (B, 5, 6, C)], ids=["a token", "tokens", "image"])
@pytest.mark.parametrize("channel_first", [False, True])
def test_layouts(shape, channel_first):
    original, accelerated = pair(channel_first=channel_first)
    features = torch.randn(shape)
    features = features.movedim(-1, 1) if channel_first else features
    for expected, got in zip(original(features), accelerated(features), strict=True):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_where_it_differs_the_original_is_wrong():
    original, accelerated = pair()
    with torch.no_grad():
        original.frozen_codebook.add_(300)
        accelerated.load_state_dict(original.state_dict())
    codes = original.codebook.detach()
    features = codes.mean(0) + 0.3 * torch.randn(1, 2_000, C)
    distance = (features[0].double()[:, None] - codes.double()).square().sum(-1)
    expected, got = original(features)[1][0], accelerated(features)[1][0]
    assert torch.equal(got, distance.argmin(-1))
    differ = got != expected
    chosen = distance.gather(1, torch.stack([got, expected], 1))[differ]
    assert differ.any() and bool((chosen[:, 1] > chosen[:, 0]).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype):
    _, accelerated = pair()
    accelerated.to(dtype)
    features = torch.randn(B, L, C).to(dtype)
    quantized, index, _ = accelerated(features)
    assert quantized.dtype == dtype and torch.equal(index, nearest(features, accelerated.codebook))
