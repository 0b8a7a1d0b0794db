"""The quantisers of encodec, moshi and dac, accelerated, against the originals and a float64 evaluation.

Letters: B sequences, T steps in time, C channels, K codes, Q levels.
"""

import copy
import pickle

import pytest
import torch
from small_codecs import brute_force, library, most_similar
from torch.nn import functional as F

from soho_fast.adapters import accelerate, restore

B, T, C, K, Q = 2, 150, 16, 32, 3


def encodec(**options):
    vq = library("encodec", "encodec.quantization.core_vq")
    return vq.ResidualVectorQuantization(
        num_quantizers=Q, **{"dim": C, "codebook_size": K, "kmeans_iters": 2, "threshold_ema_dead_code": 1, **options}
    )


def moshi():
    vq = library("moshi", "moshi.quantization.core_vq")
    return vq.ResidualVectorQuantization(num_quantizers=Q, codebook_offset=0, dim=C, codebook_size=K)


def dac(**options):
    vq = library("dac", "dac.nn.quantize")
    return vq.ResidualVectorQuantize(**{"input_dim": C, "n_codebooks": Q, "codebook_size": K, **options})


def twin(build, quantizer):
    """A copy; weights under dac's weight_norm cannot be deep-copied."""
    if build is not dac:
        return copy.deepcopy(quantizer)
    other = build()
    other.load_state_dict(quantizer.state_dict())
    return other


def features(seed, length=T):
    return torch.randn(B, C, length, generator=torch.Generator().manual_seed(seed))


def steps_of(quantizers, num=6):
    """Training steps of several from the same random state; their outputs."""
    outputs = []
    for quantizer in quantizers:
        torch.manual_seed(3)
        outputs.append([quantizer.train()(features(step)) for step in range(num)])
        quantizer.eval()
    return outputs


def codes_of(quantizer, values):
    with torch.no_grad():
        return quantizer.encode(values) if hasattr(quantizer, "encode") else quantizer(values)[1].transpose(0, 1)


def exact_codes(quantizer, values):
    """By the published loop, with every distance in float64 on the float32 residual."""
    indices, residual = [], values
    for layer in quantizer.layers if hasattr(quantizer, "layers") else quantizer.quantizers:
        if hasattr(layer, "in_proj"):
            with torch.no_grad():
                hidden = layer.in_proj(residual)
                index = most_similar(hidden.transpose(1, 2).flatten(0, 1), layer.codebook.weight, cosine=True)
                index = index.view(B, -1)
                code = F.embedding(index, layer.codebook.weight).transpose(1, 2)
                residual = residual - layer.out_proj(hidden + (code - hidden))
        else:
            codebook = layer._codebook
            codes_KC = (
                codebook.embed
                if hasattr(codebook, "embed")
                else codebook.embedding_sum / codebook.cluster_usage.clamp(min=codebook.epsilon)[:, None]
            )
            index = brute_force(residual.transpose(1, 2).flatten(0, 1), codes_KC).view(B, -1)
            residual = residual - codes_KC[index].transpose(1, 2)
        indices.append(index)
    return torch.stack(indices)


def kept(quantizer):
    return [module._kept for module in quantizer.modules() if hasattr(module, "_kept")]


EACH = pytest.mark.parametrize("build", [encodec, moshi, dac])


@EACH
def test_codes_of_a_frozen_quantiser(build):
    torch.manual_seed(1)
    quantizer = build()
    steps_of([quantizer])
    values = features(50)
    original, exact = codes_of(quantizer, values), exact_codes(quantizer, values)
    assert accelerate(quantizer) is quantizer
    for _ in range(3):
        assert torch.equal(codes_of(quantizer, values), exact)
    assert [one.is_prepared for one in kept(quantizer)] == ([True] * Q if build is dac else [True] + [False] * Q)
    assert torch.equal(original, exact) and len(exact.unique()) > 20
    restore(quantizer)
    assert not kept(quantizer) and torch.equal(codes_of(quantizer, values), original)


@EACH
def test_training_is_that_of_the_original(build):
    torch.manual_seed(1)
    original = build()
    # While moshi's first codes are found, level by level, the later levels look residuals of an ulp up among zeros.
    steps_of([original])
    accelerated = accelerate(twin(build, original))
    for _ in range(2):  # what was prepared in between is of no use afterwards
        for expected, got in zip(*steps_of([original, accelerated]), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
        state = accelerated.state_dict()
        assert all(torch.equal(state[name], value) for name, value in original.state_dict().items())
        for _ in range(3):
            assert torch.equal(codes_of(accelerated, features(60)), exact_codes(original, features(60)))
    assert build is dac or len(codes_of(accelerated, features(60)).unique()) > 10


@EACH
def test_gradients(build):
    torch.manual_seed(1)
    original = build()
    steps_of([original])
    accelerated = accelerate(twin(build, original))
    gradients = []
    for quantizer in (original, accelerated):
        torch.manual_seed(3)
        values = features(70).requires_grad_()
        output = quantizer.train()(values)
        loss = output[0].square().mean() + sum(part.sum() for part in output[2:] if isinstance(part, torch.Tensor))
        loss.backward()
        gradients.append([values.grad, *(parameter.grad for parameter in quantizer.parameters())])
    assert gradients[0][0].any()
    for expected, got in zip(*gradients, strict=True):
        assert torch.equal(got, expected)


@EACH
def test_new_weights_and_copies(build):
    torch.manual_seed(1)
    quantizer, other = build(), build()
    steps_of([quantizer]), steps_of([other], num=9)
    accelerate(quantizer)
    values = features(50)
    for _ in range(3):
        before = codes_of(quantizer, values)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(quantizer))) if build is not dac else copy.deepcopy(quantizer)
    for changed in (quantizer, copied):
        assert torch.equal(codes_of(changed, values), before)
        changed.load_state_dict(other.state_dict())
        for _ in range(3):
            got = codes_of(changed, values)
            assert torch.equal(got, exact_codes(other, values)) and not torch.equal(got, before)
    with torch.no_grad():
        for value in [*quantizer.parameters(), *quantizer.buffers()]:
            value.mul_(torch.linspace(0.5, 2.0, value.numel()).view(value.shape))
    assert torch.equal(codes_of(quantizer, values), exact_codes(restore(quantizer), values))


def test_encodecs_first_codes_by_k_means_are_seen_in_evaluation_too():
    torch.manual_seed(1)
    quantizer = accelerate(encodec(kmeans_init=True).eval())
    values = features(50)
    for _ in range(3):
        assert not codes_of(quantizer, values).any(), "no codes yet: all are zero"
    quantizer(values)  # writes them through `.data`
    assert torch.equal(codes_of(quantizer, values), exact_codes(quantizer, values))
    assert codes_of(quantizer, values).any()


def test_moshis_codes_are_made_anew_where_the_original_keeps_old_ones():
    torch.manual_seed(1)
    original, other = moshi(), moshi()
    steps_of([original]), steps_of([other], num=9)
    values = features(50)
    codes_of(original, values)  # now it keeps `_embedding`
    accelerated = accelerate(copy.deepcopy(original))
    for quantizer in (original, accelerated):
        quantizer.load_state_dict(other.state_dict())
    assert torch.equal(codes_of(accelerated, values), codes_of(other, values))
    assert torch.equal(accelerated.decode(codes_of(other, values)), other.decode(codes_of(other, values)))
    assert not torch.equal(codes_of(original, values), codes_of(other, values))


def test_dacs_codes_from_latents():
    torch.manual_seed(1)
    quantizer = dac().eval()
    latents = torch.randn(B, Q * 8, T)
    with torch.no_grad():
        expected = quantizer.from_latents(latents)
        accelerate(quantizer)
        for _ in range(3):
            for one, other in zip(quantizer.from_latents(latents), expected, strict=True):
                assert torch.equal(one, other)


@EACH
def test_refusals(build):
    quantizer = build()
    layer = (quantizer.layers if hasattr(quantizer, "layers") else quantizer.quantizers)[1]
    codebook = getattr(layer, "_codebook", layer)
    method = {"encodec": "quantize", "moshi": "_quantize", "dac": "decode_latents"}[build.__name__]
    setattr(codebook, method, lambda values: values)
    place = "layers.1._codebook" if build is not dac else "quantizers.1"
    kind = type(codebook).__name__
    with pytest.raises(ValueError, match=rf"^model: the {kind} at '{place}' cannot be accelerated: {method}: expected"):
        accelerate(quantizer)
    assert not kept(quantizer)
