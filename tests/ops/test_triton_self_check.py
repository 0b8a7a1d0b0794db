"""The trial of a GPU backend before its first use, on Triton's interpreter; test_triton.py starts the process."""

import numpy as np
import pytest
import torch

from soho_fast import ops
from soho_fast.ops import self_check, triton_backend

pytestmark = pytest.mark.skipif(not triton_backend.INTERPRETING, reason="Triton is not interpreted here")

INDEX = torch.zeros(2, 3, dtype=torch.int64)
CALLS = {
    "codebook_lookup": lambda: ops.codebook_lookup(torch.ones(2, 2), torch.ones(2, 2), backend="triton"),
    "straight_through": lambda: ops.straight_through(torch.ones(2, 2), torch.ones(2, 2), INDEX[0, :2],
     backend="triton"),
    "codebook_stats": lambda: ops.codebook_stats(torch.ones(2, 3, 4), INDEX, 2, backend="triton"),
    "codebook_ema_": lambda: ops.codebook_ema_(torch.ones(2, 4), torch.ones(2), torch.ones(2, 4), 0.5,
     backend="triton"),
    "scatter_mean_ema_": lambda: ops.scatter_mean_ema_(torch.ones(2, 4), torch.ones(2, 3, 4), INDEX, 0.5,
     backend="triton"),
    "sample_group": lambda: ops.sample_group(INDEX, backend="triton"),
    "group_mask": lambda: ops.group_mask(torch.ones(2, 3, 4), INDEX, torch.ones(4), INDEX[:, 0], backend="triton"),
    "group_mask_": lambda: ops.group_mask(torch.ones(2, 3, 4), INDEX, torch.ones(4), INDEX[:, 0], inplace=True,
     backend="triton"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def untried(monkeypatch):
    monkeypatch.setattr(self_check, "_verdicts", {})


@pytest.fixture
def wrong_kernel(monkeypatch):
    """Function (name of a kernel's argument): one element of what the argument holds is wrong after a launch."""
    from soho_fast.ops.codebook_lookup import triton as lookup
    from soho_fast.ops.codebook_update import triton as update
    from soho_fast.ops.group_mask import triton as mask

    def spoil(parameter):
        def launch(kernel, num_programs, /, **arguments):
            triton_backend.launch(kernel, num_programs, **arguments)
            if parameter in arguments:
                arguments[parameter].view(-1)[1] += 1

        for module in (lookup, update, mask):
            monkeypatch.setattr(module, "launch", launch)

    return spoil


WRITTEN = {  # what a kernel of the op writes
    "codebook_lookup": "distance", "straight_through": "output", "codebook_stats": "counts",
    "codebook_ema_": "codebook", "scatter_mean_ema_": "codebook", "sample_group": "target", "group_mask": "masked",
    "group_mask_": "labels",
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_backend_that_errs_is_refused_by_name_for_good(name, wrong_kernel, monkeypatch):
    wrong_kernel(WRITTEN[name])
    words = rf"backend: 'triton' is wrong on cpu and refused: {name} differs in \d+ of \d+ values .*build_info"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=words):
            CALLS[name]()
    assert [key[:2] for key in self_check._verdicts] == [(name, "triton")]


@pytest.mark.parametrize("name", CALLS)
def test_a_right_backend_is_tried_once(name, monkeypatch):
    tried = []
    difference = self_check._difference
    monkeypatch.setattr(self_check, "_difference", lambda *args: tried.append(args[:2]) or difference(*args))
    CALLS[name](), CALLS[name]()
    assert tried == [(name, "triton")]


def test_a_matrix_unit_that_adds_in_bfloat16_is_noticed(monkeypatch):
    """It errs beyond the bound of the screening, which then settles rows that it must not."""
    from triton.runtime import interpreter

    exact = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, *args):
        result = exact(self, *args)
        result.data = (np.float32(result.data).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return result

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    with pytest.raises(RuntimeError, match="'triton' is wrong on cpu and refused: codebook_lookup"):
        CALLS["codebook_lookup"]()


def test_a_prepared_codebook_is_tried_before_its_first_lookup(wrong_kernel):
    wrong_kernel("index")
    prepared = ops.prepare_codebook(torch.ones(2, 2), backend="triton")
    assert ops.codebook_lookup(torch.ones(2, 2), prepared).tolist() == [0, 0]  # The CPU's kernel is the first choice.
    with pytest.raises(RuntimeError, match="refused: codebook_lookup"):
        ops.codebook_lookup(torch.ones(2, 2), prepared, backend="triton")
    assert {key[:2] for key in self_check._verdicts} == {("pack_codebook", "triton"), ("codebook_lookup", "triton")}


@pytest.fixture
def no_compiler(monkeypatch):
    """Triton is the first choice here and cannot compile, as on a GPU machine without a C compiler."""
    from soho_fast.ops import backends
    from soho_fast.ops.codebook_lookup import small

    def cannot(*args):
        raise RuntimeError("Failed to find\n  C compiler")

    monkeypatch.setattr(self_check, "_difference", cannot)
    monkeypatch.setattr(backends, "_BEST_FIRST", {"cpu": ("triton", "cpu")})
    monkeypatch.setattr(small, "small_lookup", None)  # as where no extension makes the CPU's kernel the first


def test_a_backend_that_cannot_run_makes_way_for_the_next_with_a_warning(no_compiler):
    features, codebook = torch.randn(5, 4), torch.randn(6, 4)
    expected = ops.codebook_lookup(features, codebook, backend="reference")
    words = r"backend 'triton' cannot run on cpu and is not used \(RuntimeError: Failed to find C compiler\)"
    with pytest.warns(RuntimeWarning, match=words):
        assert torch.equal(ops.codebook_lookup(features, codebook), expected)
    with pytest.warns(RuntimeWarning, match=words):
        assert torch.equal(ops.codebook_lookup(features, ops.prepare_codebook(codebook)), expected)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.codebook_lookup(x, codebook), fullgraph=True, backend="aot_eager")
    with pytest.warns(RuntimeWarning, match=words):
        assert torch.equal(compiled(features), expected)


def test_a_backend_asked_for_by_name_that_cannot_run_says_why(no_compiler):
    words = "backend: 'triton' cannot run codebook_lookup on cpu: RuntimeError: Failed to find C compiler"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=words):
            CALLS["codebook_lookup"]()


def test_a_trial_without_memory_is_made_again(monkeypatch):
    def full(*args):
        raise RuntimeError("Triton Error [CUDA]: out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"^Triton Error"):
        patch.setattr(self_check, "_difference", full)
        CALLS["codebook_lookup"]()
    CALLS["codebook_lookup"]()


def test_the_trial_happens_when_a_graph_is_traced(wrong_kernel):
    torch._dynamo.reset()
    features, codebook = torch.randn(5, 4), torch.randn(6, 4)
    compiled = torch.compile(
        lambda x: ops.codebook_lookup(x, codebook, backend="triton"), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(features), ops.codebook_lookup(features, codebook, backend="reference"))
    assert list(self_check._verdicts.values()) == [(True, "")]
    torch._dynamo.reset()
    self_check._verdicts.clear()
    wrong_kernel("distance")
    with pytest.raises(Exception, match="'triton' is wrong on cpu and refused: codebook_lookup"):
        compiled(features)


def test_the_trial_is_in_float32_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        arguments = self_check._arguments("codebook_lookup")
    finally:
        torch.set_default_dtype(torch.float32)
    assert [value.dtype for value in arguments[:2]] == [torch.float32] * 2


def test_a_transform_leaves_the_trial_to_the_first_plain_call():
    device = torch.device("cpu")
    torch.func.vmap(lambda x: self_check.require("straight_through", "none", device, None) or x)(torch.ones(2))
    assert ("straight_through", "none", device) not in self_check._verdicts


def test_fake_tensors_leave_the_trial_to_the_first_real_call():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        index = ops.codebook_lookup(torch.empty(7, 3), torch.empty(5, 3), backend="triton")
    assert index.shape == (7,) and not self_check._verdicts


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    CALLS["codebook_lookup"]()
    assert torch.equal(torch.get_rng_state(), before)
