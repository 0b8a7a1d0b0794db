"""An accelerated VectorQuantize against the original, step by step on the same input.

Letters: B sequences, L tokens, C channels, K codes.
"""

import pytest
import torch
from quantizers import B, C, K, L, assert_same_state, pair
from torch import nn

STEPS = 50


def both(original, accelerated, features, **arguments) -> tuple:
    """Outputs of both from the same random state."""
    torch.manual_seed(2)
    expected = original(features, **arguments)
    torch.manual_seed(2)
    return expected, accelerated(features, **arguments)


OPTIONS = {
    "plain": {},
    "straight through": {"rotation_trick": False, "decay": 0.99},
    "kmeans": {"kmeans_init": True, "kmeans_iters": 3},
    "dead codes": {"threshold_ema_dead_code": 2, "kmeans_init": True},
    "shared heads": {"heads": 4, "codebook_dim": 8, "commitment_weight": 0.0},  # with a mask the original's loss fails
    "a codebook per head": {"heads": 2, "separate_codebook_per_head": True, "commitment_weight": 0.0},
    "cosine": {"use_cosine_sim": True},
    "cosine, kmeans": {"use_cosine_sim": True, "kmeans_init": True, "kmeans_iters": 3},
    "cosine, codebook per head": {"use_cosine_sim": True, "heads": 2, "separate_codebook_per_head": True},
    "no update": {"ema_update": False},
    "update by hand": {"manual_ema_update": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_fifty_steps(options, masked):
    original, accelerated = pair(**options)
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(K, C, generator=generator)
    mask = torch.arange(L) < torch.tensor([L, 50, 7, 31])[:, None] if masked else None
    for _ in range(STEPS):
        choice = torch.randint(K, (B, L), generator=generator)
        features = centres[choice] + 0.2 * torch.randn(B, L, C, generator=generator)
        expected, got = both(original, accelerated, features, mask=mask)
        torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(got[1], expected[1])
        torch.testing.assert_close(got[2], expected[2], rtol=1e-5, atol=1e-6)
        assert_same_state(original, accelerated)
    moved = not torch.equal(accelerated.codebook, pair(**options)[1].codebook)
    assert moved != (options in (OPTIONS["no update"], OPTIONS["update by hand"]))
    original.eval(), accelerated.eval()
    expected, got = both(original, accelerated, features, mask=mask)
    assert torch.equal(got[1], expected[1])
    assert_same_state(original, accelerated)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_feature_that_is_not_finite_never_reaches_the_codebook(options):
    _, accelerated = pair(**{"threshold_ema_dead_code": 2, **options})
    for step in range(10):
        features = torch.randn(B, L, C)
        features[0] = torch.nan  # in every draw for dead codes there would be one of these
        features[1, step, 3] = torch.inf
        index = accelerated(features)[1]
        if accelerated.heads == 1:
            accelerated.update_indices(features, index)
        state = accelerated.state_dict()
        assert all(state[f"_codebook.{name}"].isfinite().all() for name in ("embed", "embed_avg", "cluster_size"))


def train(quantizer) -> tuple[list[float], list[torch.Tensor], nn.Module]:
    """An auto-encoder around the layer, trained for 50 steps of AdamW."""
    torch.manual_seed(4)
    model = nn.ModuleList([nn.Linear(12, C), quantizer, nn.Linear(C, 12)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, indices = [], []
    for _ in range(STEPS):
        inputs = torch.randn(B, L, 12)
        encoder, layer, decoder = model
        quantized, index, commitment = layer(encoder(inputs))
        loss = (decoder(quantized) - inputs).square().mean() + commitment.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        indices.append(index)
    return losses, indices, model


@pytest.mark.parametrize("rotation_trick", [True, False])
def test_training_through_the_layer(rotation_trick):
    original, accelerated = pair(rotation_trick=rotation_trick)
    expected_losses, expected_indices, expected_model = train(original)
    losses, indices, model = train(accelerated)
    assert all(map(torch.equal, indices, expected_indices))
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert losses[-1] < 0.8 * losses[0]
    assert_same_state(expected_model, model)


def test_near_ties_that_float32_gets_wrong():
    """Features far from the origin: where the two differ, float64 agrees with the accelerated one.

    The state is made equal again after each step, so that a difference is one of the lookup and of nothing else.
    """
    original, accelerated = pair()
    generator = torch.Generator().manual_seed(5)
    codebook = torch.randn(1, K, C, generator=generator) + 100.0
    for layer in (original, accelerated):
        layer._codebook.embed.copy_(codebook)
        layer._codebook.embed_avg.copy_(codebook)
    differences = wrong = 0
    for _ in range(STEPS):
        accelerated.load_state_dict(original.state_dict())
        codes = original.codebook.double()
        features = torch.randn(B, L, C, generator=generator) + 100.0
        expected, got = both(original, accelerated, features)
        distance_BLK = (features.double()[:, :, None] - codes).square().sum(-1)
        assert torch.equal(got[1], distance_BLK.argmin(-1))
        differs = got[1] != expected[1]
        nearest = distance_BLK.gather(-1, torch.stack([got[1], expected[1]], -1))[differs]
        wrong += int((nearest[:, 1] > nearest[:, 0]).sum())
        differences += int(differs.sum())
        # What float32 can lose in |x|^2 + |d|^2 - 2xd of two codes; the squared distances are about 2 C = 32.
        bound = 2 * (C + 3) * 2.0**-24 * (2 * features.norm(dim=-1).max().item()) ** 2
        assert bound < 2.0
        assert bool((nearest[:, 1] - nearest[:, 0] < bound).all())
    assert differences == wrong > 0


def test_arguments_of_forward():
    original, accelerated = pair()
    for arguments in (
        {"freeze_codebook": True},
        {"lens": torch.tensor([3, L, 9, 1])},
        {"ema_update_weight": torch.rand(1, K)},
        {"accum_ema_update": True},
        {},
        {"return_loss_breakdown": True},
    ):
        expected, got = both(original, accelerated, torch.randn(B, L, C), **arguments)
        assert torch.equal(got[1], expected[1])
        torch.testing.assert_close(got[0], expected[0])
        assert_same_state(original, accelerated)
    index = torch.randint(K, (B, L))
    features = torch.randn(B, L, C)
    original.update_indices(features, index)
    accelerated.update_indices(features, index)
    assert_same_state(original, accelerated)


def test_half_precision_features_and_autocast():
    original, accelerated = pair()
    features = torch.randn(B, L, C).bfloat16()
    expected, got = both(original, accelerated, features)
    assert got[0].dtype == expected[0].dtype == torch.bfloat16
    assert torch.equal(got[1], expected[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, index, _ = accelerated.eval()(features.float())
    assert torch.equal(index, original.eval()(features.float())[1])


def test_a_cosine_layer_takes_the_largest_dot_product_in_float64():
    """Codes that are unit vectors to some 1e-6, and so near to each other that float32 errs."""
    original, accelerated = pair(use_cosine_sim=True, dim=8, codebook_size=64)
    original.eval(), accelerated.eval()
    codes = torch.nn.functional.normalize(torch.ones(8) + 1e-6 * torch.randn(1, 64, 8), dim=-1)
    codes *= 1 + 1e-6 * torch.randn(1, 64, 1)
    for layer in (original, accelerated):
        layer._codebook.embed.copy_(codes)
    features = torch.randn(1, 500, 8)
    unit = original._codebook.transform_input(features)
    exact = (unit.double() @ codes[0].double().T).argmax(-1)
    assert torch.equal(accelerated(features)[1], exact)
    assert not torch.equal(original(features)[1], exact)


def test_no_matrix_of_distances_is_made():
    def largest_allocation(layer) -> int:
        with torch.profiler.profile(profile_memory=True) as profile:
            layer(torch.randn(1, 1024, C))
        return max(event.cpu_memory_usage for event in profile.events())

    original, accelerated = pair(codebook_size=1024)
    assert largest_allocation(original) >= 4 * 1024 * 1024
    assert largest_allocation(accelerated) < 1024 * 1024
