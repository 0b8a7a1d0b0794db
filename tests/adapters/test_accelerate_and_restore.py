"""What `accelerate` leaves as it was, what `restore` gives back, and what is refused."""

import copy
import io
import pickle

import pytest
import torch
from small_codecs import CASES, dac, exact_codes, in_place, mimi, thrice
from torch import nn

from soho_fast.adapters import accelerate, restore, transformers
from soho_fast.adapters.swapping import ResidualStack

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@EACH
def test_copies_and_pickles(case):
    model, values = accelerate(case.model()), case.input()
    expected = thrice(case, model, values)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(a) for a in copied.modules()] == [type(b) for b in model.modules()]
        assert not any(part._kept.is_prepared for part in copied.modules() if hasattr(part, "_kept"))
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
    stacks = [module for module in model.modules() if isinstance(module, ResidualStack)]
    assert len(changed) == len(case.leaves(model)) + len(stacks)
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
@pytest.mark.parametrize("name", ["dac", "chameleon", "emu3", "apertus"])
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


def test_other_classes_of_packages_with_such_names_ask_for_no_library():
    case = CASES["emu3"]
    mine = type("Mine", (nn.Linear,), {"__module__": "dac.model"})(2, 2)
    model = accelerate(nn.Sequential(mine, case.model()))
    assert type(model[0]) is type(mine) and type(model[1]).__module__ == "soho_fast.adapters.transformers"


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


def test_a_bias_on_a_dot_product_is_refused():
    model = nn.Sequential(CASES["emu3"].model(), CASES["apertus"].model())
    model[1].embedding.bias = nn.Parameter(torch.zeros(64))
    with pytest.raises(
        ValueError, match=r"the Apertus.* cannot be accelerated: embedding.bias: expected None, got one"
    ):
        accelerate(model)
    assert type(model[0]).__module__.startswith("transformers.")


def test_names_of_the_accelerated_classes():
    assert transformers.MimiEuclideanCodebook.original.__module__ == "transformers.models.mimi.modeling_mimi"
    with pytest.raises(AttributeError, match="no attribute 'BertModel'"):
        transformers.BertModel  # noqa: B018
