"""Choosing a backend and a CPU level, and life without the compiled extension."""

import os
import subprocess
import sys

import pytest
import torch

from soho_fast import ops
from soho_fast.ops import backends

needs_extension = pytest.mark.skipif("cpu" not in ops.available_backends(), reason="the compiled extension is absent")

WITHOUT_EXTENSION = """
import sys, warnings
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "soho_fast._C":
            raise ModuleNotFoundError("No module named 'soho_fast._C'", name="soho_fast._C")
sys.meta_path.insert(0, Absent())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from soho_fast import ops
    said = lambda: [w for w in caught if "plain torch reference" in str(w.message)]
    assert not said(), "importing must be silent"
    features, codebook = torch.randn(2, 6, 5), torch.randn(4, 5)
    index = ops.codebook_lookup(features, codebook)
    counts, sums = ops.codebook_stats(features, index, 4)
    ops.codebook_ema_(codebook, counts, sums, 0.9)
    ops.group_mask(features, index, torch.zeros(5), ops.sample_group(index), inplace=True)
    assert len(said()) == 1, caught
    import os.path
    folder = os.path.dirname(os.path.dirname(ops.__file__))
    assert f"soho_fast._C is not built in {folder} (" in str(said()[0].message), "a clone hides what is installed"
assert ops.available_backends() == ["reference"]
info = ops.build_info()
assert info["extension"] is False and "not built" in info["reason"]
for call in (lambda: ops.codebook_lookup(features, codebook, backend="cpu"), lambda: ops.set_cpu_level("scalar")):
    try:
        call()
    except ValueError as error:
        assert "not built" in str(error)
    else:
        raise AssertionError("an absent extension must be refused when asked for")
print("done")
"""


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def test_without_extension_the_reference_runs_and_says_so_once():
    result = _python(WITHOUT_EXTENSION)
    assert result.stdout.strip() == "done", result.stderr


@needs_extension
def test_a_lookup_where_only_the_scalar_level_runs(monkeypatch):
    """It takes the reference, which is faster, unless the level is asked for; the other ops stay."""
    assert (ops.build_info()["cpu_levels_available"] == ["scalar"]) == backends._ONLY_SCALAR
    cpu = torch.device("cpu")
    for only_scalar, chosen in ((False, "cpu"), (True, "reference")):
        monkeypatch.setattr(backends, "_ONLY_SCALAR", only_scalar)
        for name in ("codebook_lookup", "pack_codebook"):
            assert backends.backend_for(name, None, cpu) == chosen
            assert backends.backend_for(name, "cpu", cpu) == "cpu"
        for name in ("codebook_stats", "codebook_ema_", "scatter_mean_ema_", "straight_through", "group_mask"):
            assert backends.backend_for(name, None, cpu) == "cpu"
    features, codebook = torch.randn(30, 5), torch.randn(7, 5)
    index = ops.codebook_lookup(features, codebook, backend="cpu")
    assert torch.equal(ops.codebook_lookup(features, ops.prepare_codebook(codebook)), index)


@pytest.mark.parametrize(
    "capability, has_kernels, has_triton, chosen",
    [
        ((8, 9), True, True, "cuda"), ((9, 0), True, True, "triton"), ((12, 0), True, True, "triton"),
        ((9, 0), True, False, "cuda"), ((8, 0), False, True, "triton"), ((9, 0), False, False, "reference"),
    ],
)  # fmt: skip
def test_lookups_take_triton_before_cuda_from_sm_90_on(monkeypatch, capability, has_kernels, has_triton, chosen):
    """Whatever comes first, a backend that is named serves."""
    second = torch.device("cuda", 1)

    def capability_of(device):
        return capability if device == second else (8, 0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability_of)
    monkeypatch.setattr(backends, "_extension", backends._extension or object())
    monkeypatch.setattr(backends, "_has_cuda_kernels", lambda: has_kernels)
    monkeypatch.setattr(backends.triton_backend, "MISSING", () if has_triton else ("Triton is not installed",))
    monkeypatch.setattr(backends.triton_backend, "DEVICE_TYPE", "cuda")
    monkeypatch.setattr(backends.self_check, "runs", lambda *trial: True)
    assert backends.backend_for("codebook_lookup", None, second) == chosen
    assert backends.backend_for("pack_codebook", None, second) == chosen, "a lookup takes what its kernel has packed"
    others = "cuda" if has_kernels else chosen
    assert backends.backend_for("codebook_stats", None, second) == others
    for name in ("cuda", "triton"):
        if has_kernels and has_triton:
            assert backends.backend_for("codebook_lookup", name, second) == name
    monkeypatch.setattr(backends.self_check, "runs", lambda name, backend, *trial: backend != chosen)
    after = {"triton": "cuda" if has_kernels else "reference", "cuda": "triton" if has_triton else "reference"}
    assert backends.backend_for("codebook_lookup", None, second) == after.get(chosen, "reference")


@needs_extension
def test_level_from_the_environment():
    result = _python("from soho_fast import ops; print(ops.build_info()['cpu_level'])", SOHO_FAST_CPU_LEVEL="scalar")
    assert result.stdout.strip() == "scalar", result.stderr
    result = _python("import soho_fast.ops", SOHO_FAST_CPU_LEVEL="sse9")
    assert "ValueError: environment variable SOHO_FAST_CPU_LEVEL: level: expected one of scalar" in result.stderr


@needs_extension
def test_forced_level_is_reported_and_released():
    best = ops.build_info()["cpu_level"]
    ops.set_cpu_level("scalar")
    try:
        assert ops.build_info()["cpu_level"] == "scalar"
    finally:
        ops.set_cpu_level(None)
    assert ops.build_info()["cpu_level"] == best == ops.build_info()["cpu_levels_available"][-1]


@needs_extension
def test_a_level_that_is_missing_is_refused():
    info = ops.build_info()
    for level in set(backends.CPU_LEVELS) - set(info["cpu_levels_available"]):
        words = "this machine cannot run" if level in info["cpu_levels_built"] else "this build has no"
        with pytest.raises(ValueError, match=f"level: {words} '{level}'"):
            ops.set_cpu_level(level)
        assert ops.build_info()["cpu_level"] == info["cpu_level"]


def test_backend_without_kernel_is_refused_with_the_reason():
    if "cuda_architectures" in ops.build_info():
        pytest.skip("this build has CUDA kernels")
    words = (
        "backend: 'cuda' cannot serve codebook_lookup: .*(has no CUDA kernels|not built).*; it needs tensors on cuda"
    )
    with pytest.raises(ValueError, match=words):
        ops.codebook_lookup(torch.ones(2, 2), torch.ones(2, 2), backend="cuda")


@needs_extension
def test_build_info_names_what_was_built():
    info = ops.build_info()
    assert info["compiler"] and info["architecture"] and info["stable_abi"]
    assert info["cpu_levels_built"][0] == "scalar" and info["torch"] == torch.__version__
    if info["architecture"] == "x86_64":
        assert "avx2" in info["cpu_levels_built"]
