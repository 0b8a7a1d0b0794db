"""Accelerated codecs and image tokenisers of transformers against the originals and a float64 evaluation."""

import copy

import pytest
import torch
from small_codecs import CASES, brute_force, exact_codes, image, in_place, most_similar, thrice
from torch import nn

from soho_fast.adapters import accelerate, restore

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
TRAINABLE = pytest.mark.parametrize("case", [CASES[n] for n in ("dac", "chameleon", "janus", "glm_image")])
HALF = (torch.bfloat16, torch.float16)


@EACH
def test_codes_are_those_of_a_float64_evaluation(case):
    model, values = case.model(), case.input()
    original, exact = case.codes(model, values), exact_codes(case, model, values)
    assert accelerate(model) is model
    codes = thrice(case, model, values)
    assert torch.equal(codes, exact)
    assert (codes != original).float().mean() < 0.01 and len(codes.unique()) > 20
    assert case.is_prepared(model)


@EACH
def test_everything_else_that_comes_out_stays(case):
    original, values = case.model(), case.input()
    accelerated = accelerate(copy.deepcopy(original))
    with torch.no_grad():
        for expected, got in zip(case.run(original, values), case.run(accelerated, values), strict=True):
            assert torch.equal(got, expected)
            assert got.dtype == expected.dtype and got.stride() == expected.stride()


@EACH
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types(case, dtype):
    """The features of a level are what they are in that type; the code is the nearest to them."""
    model, values = case.model().to(dtype), case.input().to(dtype)
    exact = exact_codes(case, model, values)
    assert torch.equal(thrice(case, accelerate(model), values), exact)


@EACH
def test_autocast_changes_features_and_not_the_lookup(case):
    model, values = case.model(), case.input()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with case.exactly(model), torch.autocast("cpu", enabled=True, dtype=torch.bfloat16):
            exact = case.codes(model, values)
        assert torch.equal(thrice(case, accelerate(model), values), exact)


@EACH
def test_float64_models_are_served(case):
    model, values = case.model().double(), case.input().double()
    original = case.codes(model, values)
    assert torch.equal(thrice(case, accelerate(model), values), original)


def test_where_encodec_differs_its_float32_is_wrong():
    """Offsets of 30 against codes that are 0.1 apart: |x|^2 - 2xd + |d|^2 cancels."""
    case = CASES["xcodec"]
    model = case.model()
    generator = torch.Generator().manual_seed(4)
    values = 30 + 0.1 * torch.randn(1, 16, 2_000, generator=generator)
    first = model.quantizers[0].codebook
    first.embed.copy_(30 + 0.1 * torch.randn(64, 16, generator=generator))
    original = first.encode(values.mT)
    codes = accelerate(model).quantizers[0].codebook.encode(values.mT)
    distance = (values.mT.double()[0, :, None] - first.embed.double()).square().sum(-1)
    assert torch.equal(codes[0], distance.argmin(-1))
    differ = (codes != original)[0]
    assert differ.sum() > 50
    chosen = distance.gather(1, torch.stack([codes[0], original[0]], 1))[differ]
    assert bool((chosen[:, 1] > chosen[:, 0]).all())
    # What float32 can lose in sums of 16 + 2 terms of up to 2 |x||d|.
    bound = 2 * 18 * 2.0**-24 * 4 * (values.norm(dim=1).max() * first.embed.norm(dim=1).max())
    assert float((chosen[:, 1] - chosen[:, 0]).max()) < float(bound) < 1


def test_ties_go_to_the_lowest_code():
    case = CASES["mimi"]
    model = accelerate(case.model())
    level = case.leaves(model)[0]
    level.embed_sum.copy_(level.embed_sum[torch.arange(64) % 7])
    level.cluster_usage.fill_(1)
    for _ in range(3):
        assert level.quantize(torch.randn(500, 8)).max() < 7


def test_lengths_do_not_matter_to_a_cosine():
    """Unit vectors in float32 are an ulp or so off, and their nearest code is not always that of the largest cosine."""
    case = CASES["dac"]
    model = case.model()
    level = case.leaves(model)[0]
    generator = torch.Generator().manual_seed(5)
    codes_KC = torch.randn(8, generator=generator) + 1e-5 * torch.randn(64, 8, generator=generator)
    with torch.no_grad():
        level.codebook.weight.copy_(
            codes_KC * torch.logspace(-16, 6, 64)[torch.randperm(64, generator=generator), None]
        )
    hidden = torch.randn(1, 8, 4_000, generator=generator) * torch.logspace(-6, 6, 4_000)
    original = level.decode_latents(hidden)[1]
    exact = most_similar(hidden[0].T, level.codebook.weight, cosine=True)
    accelerate(model)
    for _ in range(3):
        assert torch.equal(level.decode_latents(hidden)[1][0], exact)
    assert (original[0] != exact).float().mean() > 0.01
    rounded = brute_force(*(nn.functional.normalize(vectors, dim=-1) for vectors in (hidden[0].T, codes_KC)))
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("name", ["dac", "glm_image"])
def test_a_vector_without_a_direction_has_cosine_zero(name):
    case = CASES[name]
    level = case.leaves(accelerate(case.model()))[0]
    weight = level.codebook.weight if name == "dac" else level.embedding.weight
    with torch.no_grad():
        weight.copy_(nn.functional.normalize(torch.randn(weight.shape)))
        weight[:, 0].abs_()
        weight[40] = 0
    width = weight.shape[1]
    hidden = torch.zeros(1, width, 3)
    hidden[0, 0] = torch.tensor([-1.0, 1.0, 0.0])  # against all codes, with all, without a direction
    hidden = hidden if name == "dac" else hidden[..., None]
    method = getattr(level, case.method)
    for _ in range(3):
        index = method(hidden)[-1].flatten().tolist()
        assert index[0] == 40 and index[1] == int(weight[:, 0].argmax()) and index[2] == 0


def test_nan_and_inf_get_a_code_in_range():
    for case in CASES.values():
        model = accelerate(case.model())
        level = case.leaves(model)[0]
        if case.method != "quantize":
            continue
        rows = torch.randn(4, level.embed.shape[1])
        rows[1, 3], rows[2, 0] = torch.nan, torch.inf
        for _ in range(3):
            index = level.quantize(rows)
            assert index[1] == index[2] == 0 and bool((index >= 0).all()) and bool((index < 64).all())


def test_nothing_to_look_up():
    for case in CASES.values():
        if case.method == "quantize":
            level = case.leaves(accelerate(case.model()))[0]
            assert level.quantize(torch.empty(0, level.embed.shape[1])).shape == (0,)


# Gradients.


@TRAINABLE
@pytest.mark.parametrize("training", [True, False])
def test_gradients_and_losses(case, training):
    original, values = case.model().train(training), case.input()
    accelerated = accelerate(copy.deepcopy(original))
    for _ in range(3):
        results = []
        for model in (original, accelerated):
            torch.manual_seed(7)  # of DAC's quantiser dropout
            leaf, inputs = case.leaves(model)[0], []
            handle = leaf.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0]))
            outputs = [output for output in case.run(model, values) if output.is_floating_point()]
            handle.remove()
            inputs[0].retain_grad() if not inputs[0].is_leaf else None
            loss = sum((output * torch.arange(1.0, output.numel() + 1).view(output.shape)).mean() for output in outputs)
            model.zero_grad()
            loss.backward()
            results.append([loss, *(p.grad for p in model.parameters())])
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 1e-3 * parameter.grad / parameter.grad.abs().max().clamp(min=1e-9)
        for expected, got in zip(*results, strict=True):
            assert (got is None) == (expected is None)
            assert got is None or torch.equal(got, expected)
    assert (
        sum(gradient is not None and bool(gradient.any()) for gradient in results[1][1:]) > 3
        or case is CASES["glm_image"]
    )


def test_the_gradient_of_an_image_passes_straight_through():
    case = CASES["chameleon"]
    level = accelerate(case.leaves(case.model())[0])
    hidden = torch.randn(2, 16, 3, 3, requires_grad=True)
    quantised, _, index = level(hidden)
    torch.testing.assert_close(quantised.permute(0, 2, 3, 1).flatten(0, 2), level.embedding.weight[index])
    gradient = torch.randn(quantised.shape)
    assert torch.equal(torch.autograd.grad(quantised, hidden, gradient)[0], gradient)
    expected = image(level, hidden)
    got = level(hidden)
    torch.testing.assert_close(got[:2], expected[:2])


# torch.compile and other ways to run.


@EACH
def test_compiled_whole(case):
    """One graph; it sees later changes of the weights."""
    torch._dynamo.reset()
    model = case.model()
    given = case.given(model, case.input())
    leaf = case.leaves(accelerate(model))[0]
    method = getattr(leaf, case.method)
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")

    def index_of(output):
        return output[-1] if isinstance(output, tuple) else output

    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(index_of(compiled(given)), index_of(method(given)))
        in_place(leaf)
        expected = case.in_float64(leaf, given)
        assert torch.equal(index_of(compiled(given)), index_of(expected))


@pytest.mark.parametrize("name", ["xcodec", "mimi", "dac"])
def test_all_levels_in_one_graph(name):
    torch._dynamo.reset()
    case = CASES[name]
    model = accelerate(case.model())
    quantizer = getattr(model, "quantizer", model)
    hidden = torch.randn(2, quantizer.quantizers[0].in_proj.in_channels if name == "dac" else 16, 30)
    method = quantizer.forward if name == "dac" else quantizer.encode
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            expected, got = method(hidden), compiled(hidden)
            assert torch.equal(got[1] if name == "dac" else got, expected[1] if name == "dac" else expected)
            in_place(quantizer)


def test_a_model_that_was_compiled_before_is_compiled_again():
    torch._dynamo.reset()
    case = CASES["emu3"]
    model, values = case.model(), case.input()
    with torch.no_grad():
        model.embedding.weight.copy_(1000 + model.embedding.weight.sign() * 1e-3 * torch.rand(64, 16))
    values = 1000 + 1e-3 * values
    compiled = torch.compile(model, backend="aot_eager")
    exact = exact_codes(case, model, values)
    with torch.no_grad():
        wrong = compiled(values)
        assert not torch.equal(wrong, exact)
        accelerate(compiled)
        assert torch.equal(compiled(values), exact)
        restore(compiled)
        assert torch.equal(compiled(values), wrong)


def test_traced():
    case = CASES["emu3"]
    model, values = accelerate(case.model()), case.input()
    thrice(case, model, values)
    traced = torch.jit.trace(model, values, check_trace=False)
    in_place(model)
    assert torch.equal(traced(values), exact_codes(case, model, values))


def test_weights_passed_in():
    case = CASES["emu3"]
    model, values = accelerate(case.model()), case.input()
    thrice(case, model, values)
    other = {"embedding.weight": torch.randn(64, 16)}
    got = torch.func.functional_call(model, other, values)
    assert torch.equal(got, brute_force(values.movedim(2, -1).flatten(0, 3), other["embedding.weight"]).view(got.shape))
    assert torch.equal(case.codes(model, values), exact_codes(case, model, values))


def test_on_the_meta_device():
    case = CASES["mimi"]
    level = accelerate(case.leaves(case.model())[0].to("meta"))
    assert level.quantize(torch.empty(5, 8, device="meta")).shape == (5,)


@pytest.mark.parametrize("name", ["encodec", "mimi", "dac"])
def test_a_batch_has_the_codes_of_its_parts(name):
    """Halfway between two codes, where a product of another shape rounds the other way."""
    case = CASES[name]
    leaf = case.leaves(accelerate(case.model()))[0]
    codes_KC = leaf.codebook.weight if name == "dac" else leaf.embed
    pair_2N = torch.randint(len(codes_KC), (2, 203), generator=torch.Generator().manual_seed(0))
    features_NC = (codes_KC[pair_2N[0]] + codes_KC[pair_2N[1]]).detach() / 2
    hidden = features_NC.view(7, 29, -1).mT if name == "dac" else features_NC
    for _ in range(3):  # also with a prepared codebook
        whole, *parts = (getattr(leaf, case.method)(given) for given in (hidden, *hidden.split(1)))
        if name == "dac":
            whole, parts = whole[1], [part[1] for part in parts]
        assert torch.equal(whole, torch.cat(parts))
