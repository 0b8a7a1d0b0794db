"""What `accelerate` leaves as it was, what `restore` gives back, and what is refused."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from quantizers import KINDS, B, C, L, assert_same_state, classes_and_contents, nearest, original_of, pair, thrice
from torch import nn
from vector_quantize_pytorch import ResidualVQ, SimVQ, VectorQuantize

from soho_fast.adapters import accelerate, restore

EACH = pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS)
FEATURES = torch.randn(B, L, C, generator=torch.Generator().manual_seed(2))


@EACH
def test_state_names_and_outputs_stay(kind, options):
    original, accelerated = pair(kind, **options)
    assert repr(accelerated) == repr(original)  # wrapping policies go by the names of classes
    original.eval(), accelerated.eval()
    for _ in range(3):
        for got, expected in zip(accelerated(FEATURES), original(FEATURES), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # types too
    assert_same_state(accelerated, original, tolerance=0)
    assert [name for name, _ in accelerated.named_buffers()] == [name for name, _ in original.named_buffers()]
    original.load_state_dict(accelerated.state_dict()), accelerated.load_state_dict(original.state_dict())


@EACH
def test_copies_and_pickles(kind, options):
    accelerated = pair(kind, **options)[1].eval()
    expected = thrice(accelerated, FEATURES)
    for copied in (copy.deepcopy(accelerated), pickle.loads(pickle.dumps(accelerated))):
        assert [type(a) for a in copied.modules()] == [type(b) for b in accelerated.modules()]
        assert not any(part._kept.is_prepared for part in copied.modules() if hasattr(part, "_kept"))
        assert torch.equal(thrice(copied, FEATURES), expected)


@EACH
def test_restored(kind, options):
    original = original_of(kind, **options)
    model = copy.deepcopy(original)
    assert accelerate(accelerate(model)) is model
    assert classes_and_contents(model) != classes_and_contents(original)
    model.eval()
    thrice(model, FEATURES)
    assert restore(restore(model)) is model
    assert classes_and_contents(model) == classes_and_contents(original)
    saved = io.BytesIO()
    torch.save(model, saved)
    assert b"soho_fast" not in saved.getvalue()
    for seed in range(3):  # and it trains on as the original does
        results = []
        for quantizer in (original, model):
            torch.manual_seed(seed)
            results.append(quantizer.train()(torch.randn(B, L, C)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_accelerating_twice_keeps_what_was_prepared():
    model = pair()[1].eval()
    thrice(model, FEATURES)
    assert accelerate(model)._codebook._kept.is_prepared


# As accelerate hooks a module: its own `forward` goes into `_old_forward`, and something around it into `forward`.


@pytest.mark.parametrize("first", ["offload", "accelerate"])
def test_a_codebook_that_accelerate_offloads(first):
    """It is there while a module runs, and on no device between."""
    library, hooks = pytest.importorskip("accelerate"), pytest.importorskip("accelerate.hooks")
    model = original_of().eval()
    exact = nearest(FEATURES, model.codebook)
    for step in ("offload", "accelerate") if first == "offload" else ("accelerate", "offload"):
        library.cpu_offload(model, torch.device("cpu"), offload_buffers=True) if step == "offload" else accelerate(
            model
        )
    assert model._codebook.embed.is_meta
    assert torch.equal(thrice(model, FEATURES), exact)
    restore(model)
    assert torch.equal(model(FEATURES)[1], exact)
    hooks.remove_hook_from_submodules(model)
    assert torch.equal(thrice(accelerate(model), FEATURES), exact)


# What is refused.


class OwnSimVQ(SimVQ):
    pass


REFUSED = {
    "affine_param=True: ": (VectorQuantize, {"affine_param": True}),
    "learnable_codebook or": (VectorQuantize, {"learnable_codebook": True, "ema_update": False}),
    "learnable_codebook or orthogonal_reg_weight: ": (VectorQuantize, {"orthogonal_reg_weight": 1.0}),
    "stochastic_sample_codes=True: ": (VectorQuantize, {"stochastic_sample_codes": True}),
    "straight_through=True: ": (VectorQuantize, {"straight_through": True, "rotation_trick": False}),
    "commitment_use_cross_entropy_loss=True ": (VectorQuantize, {"commitment_use_cross_entropy_loss": True}),
    "codebook_diversity_loss_weight > 0 ": (VectorQuantize, {"codebook_diversity_loss_weight": 0.1}),
    "beam_size=4: ": (ResidualVQ, {"num_quantizers": 2, "beam_size": 4}),
    "eval_beam_size=3: ": (ResidualVQ, {"num_quantizers": 2, "beam_size": 1, "eval_beam_size": 3}),
    "implicit_neural_codebook=True: ": (ResidualVQ, {"num_quantizers": 2, "implicit_neural_codebook": True}),
    "diveq=True: ": (ResidualVQ, {"num_quantizers": 2, "diveq": True}),
    r"its forward is that of a subclass \(OwnSimVQ\)": (OwnSimVQ, {}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_served_is_refused_by_name_and_nothing_is_changed(reason):
    kind, options = REFUSED[reason]
    name = kind.__bases__[0].__name__ if kind is OwnSimVQ else kind.__name__
    model = nn.Sequential(original_of(), original_of(kind, **options))
    with pytest.raises(ValueError, match=f"^model: the {name} at '1' cannot be accelerated: .*{reason}"):
        accelerate(model)
    assert type(model[0]) is VectorQuantize


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: accelerate("model"), TypeError, "model: expected a torch.nn.Module, got str"),
        (lambda: restore(3), TypeError, "model: expected a torch.nn.Module, got int"),
        (lambda: accelerate(nn.Linear(2, 2)), ValueError, "model: expected one with a VectorQuantize, .*, got Linear"),
        (lambda: pair()[1](FEATURES, torch.zeros(B, L, dtype=torch.int64)), ValueError, "indices: expected None"),
        (lambda: pair()[1](FEATURES, topk=2), ValueError, "topk: expected None"),
        (
            lambda: pair(ResidualVQ, num_quantizers=2)[1](FEATURES, beam_size=2), ValueError,
            "topk: expected None.* beam_size of a ResidualVQ",
        ),
        (
            lambda: pair()[1](FEATURES, codebook_transform_fn=lambda codes: codes), ValueError,
            "codebook_transform_fn: expected None",
        ),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert isinstance(restore(nn.Linear(2, 2)), nn.Linear)


def test_without_the_library_the_error_says_how_to_install_it():
    code = (
        "import sys, torch; sys.modules['vector_quantize_pytorch'] = None\n"
        "from soho_fast.adapters import accelerate, restore\n"
        "restore(torch.nn.Linear(2, 2)); print('restored')\n"
        "accelerate(torch.nn.Linear(2, 2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "restored"
    assert done.stderr.strip().splitlines()[-1] == (
        "ModuleNotFoundError: soho_fast.adapters needs the package vector_quantize_pytorch: "
        "pip install 'vector-quantize-pytorch>=1.32'"
    )
