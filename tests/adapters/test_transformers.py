"""Accelerated codecs and image tokenisers of transformers against the originals and a float64 evaluation."""

import copy
import io
import pickle

import pytest
import torch
from small_codecs import CASES, brute_force, dac, image, mimi, unit
from torch import nn

from soho_fast.adapters import accelerate, restore, transformers

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
TRAINABLE = pytest.mark.parametrize("case", [CASES[n] for n in ("dac", "chameleon", "janus", "glm_image")])
HALF = (torch.bfloat16, torch.float16)


def exact_codes(case, model, values):
    """By `brute_force` in place of what looks up."""
    with case.exactly(model):
        return case.codes(model, values)


def thrice(case, model, values):
    """The first call sees the codebook, the second prepares it, the third finds it prepared."""
    codes = [case.codes(model, values) for _ in range(3)]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[1], codes[2])
    return codes[0]


@EACH
def test_codes_are_those_of_a_float64_evaluation(case):
    model, values = case.model(), case.input()
    original, exact = case.codes(model, values), exact_codes(case, model, values)
    assert accelerate(model) is model
    codes = thrice(case, model, values)
    assert torch.equal(codes, exact)
    assert (codes != original).float().mean() < 0.01 and len(codes.unique()) > 20
    assert all(leaf._kept.is_prepared for leaf in case.leaves(model))


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


def test_a_cosine_is_at_most_its_rounding_below_the_largest():
    """Unit vectors in float32 are an ulp or so off; so may be the cosine of the code that is taken."""
    case = CASES["dac"]
    model = accelerate(case.model())
    level = case.leaves(model)[0]
    level.codebook.weight.data.mul_(torch.logspace(-6, 6, 64)[:, None])  # lengths do not matter
    hidden = torch.randn(1, 8, 4_000, generator=torch.Generator().manual_seed(5))
    _, index = level.decode_latents(hidden)
    features, codes = hidden[0].T.double(), level.codebook.weight.detach().double()
    cosine = nn.functional.normalize(features) @ nn.functional.normalize(codes).T
    lost = cosine.amax(-1) - cosine.gather(1, index[0][:, None])[:, 0]
    assert float(lost.max()) <= 16 * 2.0**-24


@pytest.mark.parametrize("short", [0.0, 1e-14, 9e-13])
def test_codes_without_a_direction_are_taken_as_by_dacs_formula(short):
    """Its |d|^2 has the other sign, so a zero code is taken only where every cosine is below -1/2, not below 1/2."""
    case = CASES["dac"]
    model = case.model()
    level = case.leaves(model)[0]
    with torch.no_grad():
        level.codebook.weight.copy_(nn.functional.normalize(torch.randn(64, 8)))
        level.codebook.weight[:] = level.codebook.weight[0] + 0.3 * level.codebook.weight
        level.codebook.weight[40] = short * torch.ones(8) / 8**0.5
    hidden = torch.randn(1, 8, 3_000, generator=torch.Generator().manual_seed(6))
    expected = level.decode_latents(hidden)[1]
    accelerate(model)
    got = level.decode_latents(hidden)[1]
    assert 20 < (expected == 40).sum() < 1_500
    assert torch.equal(got, expected)


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


# Never stale.


def drawn_anew(model):
    """Other weights of the same shapes."""
    generator = torch.Generator().manual_seed(9)
    return {
        name: torch.rand(value.shape, generator=generator).to(value) + 0.5 if "usage" in name
        else (value + 0.5 * value.std() * torch.randn(value.shape, generator=generator)).to(value)
        if value.is_floating_point() and value.numel() > 1 else value
        for name, value in model.state_dict().items()
    }  # fmt: skip


def with_new_weights(model):
    model.load_state_dict(drawn_anew(model))


def with_assigned_weights(model):
    model.load_state_dict(drawn_anew(model), assign=True)


def in_place(model):
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.mul_(1.5).add_(torch.linspace(-0.2, 0.2, value.numel()).view(value.shape))


def in_place_in_inference_mode(model):
    with torch.inference_mode():
        in_place(model)


def with_other_data(model):
    """The same objects over other memory, twice, so that the first memory may come back."""
    for _ in range(2):
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.data = value.data * 1.25 + torch.linspace(-0.2, 0.2, value.numel()).view(value.shape)


def by_training_past_the_counter(model):
    """As optimisers do that write to `.data`: model.train(), a step, model.eval()."""
    model.train()
    for value in [*model.parameters(), *model.buffers()]:
        if value.is_floating_point():
            value.data.mul_(1.5).add_(torch.linspace(-0.2, 0.2, value.numel()).view(value.shape))
    model.eval()


def transposed_in_place(model):
    """The same memory read in another order."""
    for module in model.modules():
        for name in ("embed", "embed_sum", "weight"):
            value = getattr(module, name, None)
            owner = {**module._buffers, **module._parameters}
            if name in owner and value is not None and value.dim() == 2 and value.shape[0] == 64:
                value.data = value.data.view(value.shape[1], value.shape[0]).t()


CHANGES = [
    with_new_weights, with_assigned_weights, in_place, in_place_in_inference_mode, with_other_data,
    by_training_past_the_counter, transposed_in_place, lambda model: model.to(torch.float64),
    lambda model: model.to(torch.bfloat16).float(),
]  # fmt: skip
NAMES = [getattr(change, "__name__", "?") for change in CHANGES[:-2]] + ["float64", "bfloat16 and back"]


@EACH
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_changed_weights_are_seen(case, change):
    model, values = accelerate(case.model()), case.input()
    before = thrice(case, model, values)
    change(model)
    values = values.to(next(iter(model.state_dict().values())).dtype) if change is CHANGES[-2] else values
    got = thrice(case, model, values)
    restore(model)
    fresh = case.model().to(next(iter(model.state_dict().values())).dtype)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(got, exact_codes(case, fresh, values))
    if change in CHANGES[:-2]:
        assert not torch.equal(got, before), "the change changes nothing: nothing is tried"


def test_a_parameter_over_the_same_memory_with_a_counter_of_its_own():
    case = CASES["emu3"]
    model, values = accelerate(case.model()), case.input()
    weight = model.embedding.weight
    with torch.no_grad():
        for _ in range(3):
            weight.add_(0)
    thrice(case, model, values)
    model.embedding.weight = nn.Parameter(weight.data)
    with torch.no_grad():
        while model.embedding.weight._version < weight._version:
            model.embedding.weight.copy_(torch.randn(64, 16))
    assert torch.equal(case.codes(model, values), exact_codes(case, model, values))


def test_training_set_by_hand_between_two_evaluations():
    case = CASES["emu3"]
    model, values = accelerate(case.model()), case.input()
    thrice(case, model, values)
    model.training = True
    case.codes(model, values)
    model.embedding.weight.data.neg_()  # not counted
    model.training = False
    assert torch.equal(thrice(case, model, values), exact_codes(case, model, values))


def test_shared_memory_and_inference_tensors_are_not_kept():
    case = CASES["encodec"]
    model, values = accelerate(case.model()), case.input()
    thrice(case, model, values)
    model.share_memory()
    level = case.leaves(model)[0]
    case.codes(model, values)
    assert not level._kept.is_prepared
    level.embed.numpy()[:] = level.embed.numpy()[::-1].copy()  # as another process might
    assert torch.equal(case.codes(model, values), exact_codes(case, restore(model), values))
    with torch.inference_mode():
        model = accelerate(case.model())
        thrice(case, model, values)
        assert not case.leaves(model)[0]._kept.is_prepared
        in_place(model)
        assert torch.equal(thrice(case, model, values), exact_codes(case, model, values))


def test_mimi_makes_its_codes_anew_where_the_original_keeps_old_ones():
    case = CASES["mimi"]
    original, fresh, values = case.model(), case.model(), case.input()
    case.codes(original, values)  # now it keeps `_embed`
    accelerated, state = accelerate(copy.deepcopy(original)), drawn_anew(fresh)
    for model in (original, accelerated, fresh):
        model.load_state_dict(state)
    expected = case.codes(fresh, values)
    assert torch.equal(thrice(case, accelerated, values), expected)
    assert not torch.equal(case.codes(original, values), expected)
    assert torch.equal(accelerated.quantizer.decode(expected), fresh.quantizer.decode(expected))
    in_place(accelerated.quantizer)
    fresh.load_state_dict(accelerated.state_dict())
    for level in case.leaves(fresh):
        level._embed = None
    # Decoding alone, without a lookup before it.
    assert torch.equal(accelerated.quantizer.decode(expected), fresh.quantizer.decode(expected))
    assert torch.equal(case.codes(restore(accelerated), values), case.codes(fresh, values))


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


# Copies, files, undoing.


@EACH
def test_copies_and_pickles(case):
    model, values = accelerate(case.model()), case.input()
    expected = thrice(case, model, values)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(a) for a in copied.modules()] == [type(b) for b in model.modules()]
        assert not any(leaf._kept.is_prepared for leaf in case.leaves(copied))
        assert torch.equal(thrice(case, copied, values), expected)
        in_place(copied)
        assert torch.equal(thrice(case, copied, values), exact_codes(case, copied, values))
        assert torch.equal(case.codes(model, values), expected)


@EACH
def test_the_state_and_the_names_stay(case):
    original = case.model()
    accelerated = accelerate(copy.deepcopy(original))
    case.codes(accelerated, case.input()), case.codes(accelerated, case.input())
    expected, state = original.state_dict(), accelerated.state_dict()
    assert list(expected) == list(state) and all(torch.equal(state[name], expected[name]) for name in state)
    assert [name for name, _ in accelerated.named_buffers()] == [name for name, _ in original.named_buffers()]
    assert repr(accelerated) == repr(original)
    assert {type(leaf).__name__ for leaf in case.leaves(accelerated)} == {case.leaf}
    original.load_state_dict(state), accelerated.load_state_dict(expected)


@pytest.mark.parametrize("build", [mimi, dac])
def test_saved_by_save_pretrained(build, tmp_path):
    case = CASES[build.__name__]
    original, values = case.model(), case.input()
    codes = case.codes(original, values)
    accelerated = accelerate(copy.deepcopy(original))
    thrice(case, accelerated, values)
    files = []
    for name, model in (("original", original), ("accelerated", accelerated)):
        model.save_pretrained(tmp_path / name)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert files[0] == files[1]
    loaded = type(original).from_pretrained(tmp_path / "accelerated").eval()
    assert torch.equal(case.codes(loaded, values), codes)
    assert torch.equal(thrice(case, accelerate(loaded), values), exact_codes(case, original, values))


@EACH
def test_restored(case):
    model, values = case.model(), case.input()
    before = {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
    accelerate(accelerate(model))
    changed = [name for name, module in model.named_modules() if type(module) is not before[name][0]]
    assert len(changed) == len(case.leaves(model))
    thrice(case, model, values)
    assert restore(restore(model)) is model
    assert {name: (type(module), set(vars(module))) for name, module in model.named_modules()} == before
    assert torch.equal(case.codes(model, values), case.codes(case.model(), values))
    saved = io.BytesIO()
    torch.save(model, saved)
    assert b"soho_fast" not in saved.getvalue()


def test_accelerating_twice_keeps_what_was_prepared():
    case = CASES["dac"]
    model = accelerate(case.model())
    thrice(case, model, case.input())
    accelerate(model)
    assert case.leaves(model)[0]._kept.is_prepared


@pytest.mark.parametrize("name", ["dac", "chameleon"])
def test_hooks_run(name):
    case, calls = CASES[name], []
    model, values = case.model(), case.input()
    for leaf in case.leaves(model):
        leaf.register_forward_pre_hook(lambda *_: calls.append("before"))
    accelerate(model)
    for leaf in case.leaves(model):
        leaf.register_forward_hook(lambda *_: calls.append("after"))
    case.codes(model, values)
    assert calls == ["before", "after"] * (len(calls) // 2) and len(calls) >= 2 * len(case.leaves(model))


# As accelerate hooks a module: its own `forward` goes into `_old_forward`, and something around it into `forward`.


def hooked(module, calls):
    module._old_forward = module.forward

    def forward(*given, **named):
        calls.append(type(module).__name__)
        return module._old_forward(*given, **named)

    module.forward = forward


def unhooked(module):
    module.forward = module._old_forward
    del module._old_forward


@pytest.mark.parametrize("first", ["hook", "accelerate"])
@pytest.mark.parametrize("name", ["dac", "chameleon", "emu3"])
def test_a_hooked_forward_leads_to_the_exact_lookup(name, first):
    case = CASES[name]
    model, values, calls = case.model(), case.input(), []
    leaf = case.leaves(model)[0]
    if first == "hook":
        hooked(leaf, calls)
        accelerate(model)
    else:
        accelerate(model)
        hooked(leaf, calls)
    thrice(case, model, values)
    assert leaf._kept.is_prepared and len(calls) >= 3
    unhooked(leaf)
    thrice(case, model, values)
    assert leaf._kept.is_prepared
    hooked(leaf, calls)
    restore(model)
    assert leaf._old_forward.__func__ is type(leaf).forward and type(leaf).__module__.startswith("transformers.")
    case.codes(model, values)


@pytest.mark.parametrize("first", ["offload", "accelerate"])
@pytest.mark.parametrize("name", ["dac", "chameleon", "encodec"])
def test_weights_that_accelerate_offloads(name, first):
    """They are there while a module runs, and on no device between; those of a quantiser come by its class's name."""
    library, hooks = pytest.importorskip("accelerate"), pytest.importorskip("accelerate.hooks")
    case = CASES[name]
    model, values = case.model(), case.input()
    exact = exact_codes(case, model, values)
    steps = [
        lambda: library.cpu_offload(model, torch.device("cpu"), preload_module_classes=[case.leaf]),
        lambda: accelerate(model),
    ]
    for step in steps if first == "offload" else reversed(steps):
        step()
    if name != "encodec":
        assert next(case.leaves(model)[0].parameters()).is_meta
    assert torch.equal(thrice(case, model, values), exact)
    restore(model)
    assert torch.equal(case.codes(model, values), exact)
    hooks.remove_hook_from_submodules(model)
    assert torch.equal(thrice(case, accelerate(model), values), exact)


def test_adapters_of_peft():
    peft = pytest.importorskip("peft")
    case = CASES["dac"]
    model, values = case.model(), case.input()
    config = peft.LoraConfig(r=2, target_modules=["codebook", "in_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    exact = exact_codes(case, wrapped.base_model.model, values)
    accelerate(wrapped)
    assert torch.equal(thrice(case, wrapped.base_model.model, values), exact)
    with wrapped.disable_adapter():
        assert torch.equal(case.codes(wrapped.base_model.model, values), exact_codes(case, case.model(), values))
    merged = wrapped.merge_and_unload().eval()  # peft writes through `.data`, which torch does not count
    got = thrice(case, merged, values)
    assert torch.equal(got, exact_codes(case, restore(merged), values))


# What is refused.


def test_what_is_no_model_and_what_has_no_quantiser():
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        accelerate("model")
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        restore(3)
    with pytest.raises(ValueError, match=r"model: expected one with a quantiser of transformers, .* got Linear"):
        accelerate(nn.Linear(2, 2))
    assert isinstance(restore(nn.Linear(2, 2)), nn.Linear)


def test_every_reason_at_once_and_nothing_changed():
    case = CASES["dac"]
    model = case.model()
    good, patched, integers, broken = case.leaves(model)
    patched.decode_latents = lambda hidden: None
    integers.codebook.weight = nn.Parameter(torch.zeros(64, 8, dtype=torch.int8), requires_grad=False)
    broken.codebook, broken.decode_latents = nn.Identity(), lambda hidden: None
    own = "decode_latents: expected that of its class, got one of the instance's own"
    at = "the DacVectorQuantize at 'quantizer.quantizers."
    with pytest.raises(ValueError) as refused:
        accelerate(model)
    assert str(refused.value) == (
        f"model: {at}1' cannot be accelerated: {own}; "
        f"{at}2' cannot be accelerated: codebook.weight: expected float32, bfloat16, float16, float64, got int8; "
        f"{at}3' cannot be accelerated: {own}; codebook.weight: expected a tensor (K, C), got NoneType; "
        "nothing was changed"
    )
    assert {type(leaf).__module__ for leaf in (good, patched, integers, broken)} == {
        "transformers.models.dac.modeling_dac"
    }


def test_a_subclass_of_a_quantiser_is_refused():
    case = CASES["emu3"]
    original = type(case.model())

    class Mine(original):
        pass

    model = nn.Sequential(nn.Identity(), case.model())
    model[1].__class__ = Mine
    with pytest.raises(
        ValueError, match=f"the {original.__name__} at '1' .*: expected a .* itself, got its subclass Mine"
    ):
        accelerate(model)
    replaced = case.model()
    replaced.forward = lambda hidden: hidden
    with pytest.raises(ValueError, match="forward: expected that of its class"):
        accelerate(replaced)


def test_a_dot_product_is_refused_by_name():
    from transformers.models.apertus1p5.modeling_apertus1p5 import Apertus1p5VisionTokenizerVectorQuantizer as Dot

    class Config:
        embed_dim, codebook_size = 4, 8

    with pytest.raises(
        ValueError, match=r"the Apertus.* cannot be accelerated: expected a distance .* got a dot product"
    ):
        accelerate(nn.Sequential(case_model := CASES["emu3"].model(), Dot(Config())))
    assert type(case_model).__module__.startswith("transformers.")


def test_names_of_the_accelerated_classes():
    assert transformers.MimiEuclideanCodebook.original.__module__ == "transformers.models.mimi.modeling_mimi"
    with pytest.raises(AttributeError, match="no attribute 'BertModel'"):
        transformers.BertModel  # noqa: B018
    assert unit(torch.tensor([[3.0, 4.0]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
