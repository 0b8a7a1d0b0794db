"""SimVQ and its residual form, accelerated, against the originals; and what undoes an acceleration of this library.

Letters: B sequences, L tokens, C channels, K codes.
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from vector_quantize_pytorch import GroupedResidualVQ, ResidualSimVQ, ResidualVQ, SimVQ, VectorQuantize

from soho_fast.adapters import accelerate, restore
from soho_fast.adapters.swapping import Swapped

B, L, C, K = 3, 50, 12, 40

OPTIONS = {
    "plain": {},
    "straight through": {"rotation_trick": False},
    "weights": {"input_to_quantize_commit_loss_weight": 0.5, "commitment_weight": 3.0},
    "narrow frozen codes": {"frozen_codebook_dim": 5},
    "a transform of one's own": {"codebook_transform": nn.Sequential(nn.Linear(C, 20), nn.ReLU(), nn.Linear(20, C))},
}


def pair(kind=SimVQ, **options):
    torch.manual_seed(1)
    original = kind(dim=C, codebook_size=K, **options)
    return original, accelerate(copy.deepcopy(original))


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


@pytest.mark.parametrize("training", [True, False])
def test_residual(training):
    original, accelerated = pair(ResidualSimVQ, num_quantizers=3)
    original.train(training), accelerated.train(training)
    assert sum(isinstance(layer, Swapped) for layer in accelerated.modules()) == 3
    features = torch.randn(B, L, C)
    for expected, got in zip(original(features), accelerated(features), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


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


def test_a_moved_transform_is_seen():
    _, accelerated = pair()
    accelerated.eval()
    features = torch.randn(B, L, C)
    for step in range(4):
        index = accelerated(features)[1]
        distance = torch.cdist(features.double(), accelerated.codebook.detach().double())
        assert torch.equal(index, distance.argmin(-1)), step
        accelerated.code_transform.weight.data.neg_()


def test_half_precision():
    _, accelerated = pair()
    accelerated.bfloat16()
    features = torch.randn(B, L, C).bfloat16()
    quantized, index, _ = accelerated(features)
    distance = (features.double()[:, :, None] - accelerated.codebook.detach().double()).square().sum(-1)
    assert quantized.dtype == torch.bfloat16 and torch.equal(index, distance.argmin(-1))


def test_copies_and_undoing():
    original, accelerated = pair(ResidualSimVQ, num_quantizers=2)
    features = torch.randn(B, L, C)
    expected = original(features)
    again = pickle.loads(pickle.dumps(copy.deepcopy(accelerate(accelerated))))
    assert torch.equal(again(features)[1], expected[1])
    assert list(again.state_dict()) == list(original.state_dict())
    restored = restore(again)
    assert [(type(a), set(vars(a))) for a in restored.modules()] == [
        (type(b), set(vars(b))) for b in original.modules()
    ]
    for one, other in zip(restored(features), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shared", [False, True])
def test_undoing_a_vector_quantize(shared):
    torch.manual_seed(1)
    original = ResidualVQ(dim=C, codebook_size=K, num_quantizers=3, shared_codebook=shared)
    model = copy.deepcopy(original)
    assert accelerate(model) is model
    assert all(type(layer) is not VectorQuantize for layer in model.layers)
    assert restore(model) is model
    assert [(type(a), set(vars(a))) for a in model.modules()] == [(type(b), set(vars(b))) for b in original.modules()]
    for seed in range(3):
        features = torch.randn(B, L, C)
        results = []
        for quantizer in (original, model):
            torch.manual_seed(seed)
            results.append(quantizer(features))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_every_refusal_is_named_at_once():
    class Mine(SimVQ):
        pass

    model = nn.Sequential(
        VectorQuantize(dim=C, codebook_size=K),
        VectorQuantize(dim=C, codebook_size=K, affine_param=True, stochastic_sample_codes=True),
        GroupedResidualVQ(dim=C, groups=2, codebook_size=K, num_quantizers=2, beam_size=3),
        Mine(dim=C, codebook_size=K),
    )
    with pytest.raises(ValueError) as refused:
        accelerate(model)
    for words in (
        "the VectorQuantize at '1' cannot be accelerated: affine_param=True: the codes have to be compared as they "
        "are; stochastic_sample_codes=True",
        "the ResidualVQ at '2.rvqs.0' cannot be accelerated: beam_size=3",
        "the ResidualVQ at '2.rvqs.1' cannot be accelerated: beam_size=3",
        "the SimVQ at '3' cannot be accelerated: its forward is that of a subclass (Mine)",
    ):
        assert words in str(refused.value)
    assert type(model[0]) is VectorQuantize


def test_a_model_of_two_libraries():
    from small_codecs import CASES

    case = CASES["emu3"]
    model = nn.ModuleList([case.model(), SimVQ(dim=C, codebook_size=K)])
    accelerate(model)
    assert all(type(part).__module__.startswith("soho_fast.adapters.") for part in model)
    restore(model)
    model.append(VectorQuantize(dim=C, codebook_size=K, affine_param=True))
    with pytest.raises(ValueError, match=r"^model: the VectorQuantize at '2' .* nothing was changed$"):
        accelerate(model)
    assert not any(type(part).__module__.startswith("soho_fast.") for part in model.modules())
