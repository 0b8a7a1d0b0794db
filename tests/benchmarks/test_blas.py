"""Baselines run on BLAS kernels of the processor's level, or not at all, and the result says on which."""

import os
import sys

import pytest

from benchmarks import blas
from benchmarks.ops.lookup_baselines import installed

AVX512 = ("SkylakeX", "Cooperlake", "SapphireRapids")


def found(kernel: str, wheel: str = "faiss_cpu", version: str = "0.3.15") -> dict:
    """One BLAS as threadpoolctl lists it."""
    path = f"/env/site-packages/{wheel}.libs/libopenblaso.so"
    return {
        "user_api": "blas", "internal_api": "openblas", "version": version, "architecture": kernel, "filepath": path,
    }  # fmt: skip


OPENMP = {"user_api": "openmp", "internal_api": "openmp", "version": None, "filepath": "/env/faiss_cpu.libs/libgomp.so"}


@pytest.mark.parametrize("kernel", ["Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SomethingNew"])
def test_kernels_below_the_processor_are_refused_with_the_cure(kernel):
    infos = [OPENMP, found("SkylakeX", "numpy", "0.3.31"), found(kernel)]
    assert blas.refusal("faiss-cpu", infos, "AVX512") == (
        f"faiss-cpu: expected BLAS kernels for AVX512, which the processor has, got {kernel} of OpenBLAS 0.3.15 "
        "(faiss_cpu.libs/libopenblaso.so); set OPENBLAS_CORETYPE=SkylakeX before the start"
    )


@pytest.mark.parametrize(
    ("processor", "kernel"),
    [*(("AVX512", kernel) for kernel in AVX512), ("AVX2", "Haswell"), ("AVX2", "Zen"), ("DEFAULT", "neoversen1")],
)
def test_kernels_of_the_processors_level_are_taken(processor, kernel):
    assert blas.refusal("faiss-cpu", [OPENMP, found("Prescott", "numpy"), found(kernel)], processor) is None


@pytest.fixture
def old_blas(tmp_path, monkeypatch):
    """A library `antique` whose OpenBLAS takes Prescott unless the environment names others when it is loaded."""
    (tmp_path / "antique.py").write_text("import os\nkernel = os.environ.get('OPENBLAS_CORETYPE', 'Prescott')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(blas.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(blas, "_when_left_alone", lambda module: [found("Prescott")])
    monkeypatch.setattr(blas, "threadpool_info", lambda: [found(sys.modules["antique"].kernel)])
    yield
    sys.modules.pop("antique", None)


def test_an_old_blas_is_loaded_with_the_processors_kernels_and_no_other_is(old_blas):
    assert blas.imported("antique", "faiss-cpu").kernel == "SkylakeX"
    assert "OPENBLAS_CORETYPE" not in os.environ


def test_a_refused_baseline_fails_its_benchmark(old_blas, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    with pytest.raises(pytest.fail.Exception, match=r"got Prescott .* set OPENBLAS_CORETYPE=SkylakeX"):
        installed("antique", "faiss-cpu")
    with pytest.raises(pytest.skip.Exception, match="faiss-cpu is not installed"):
        installed("antique_of_another_name", "faiss-cpu")


def test_the_record_has_what_runs_here():
    recorded = blas.recorded(["torch", "numpy", "faiss-cpu"])
    for package in ("torch", "numpy"):
        (library,) = recorded[package]
        assert library["library"] and library["version"] and library["kernel"], "torch's is named at its first product"
        assert "/site-packages" not in library["file"]


def test_a_library_is_judged_by_the_blas_that_it_calls():
    numpys, faisss, shared = found("SkylakeX", "numpy"), found("Prescott"), found("Haswell")
    shared["filepath"] = "/conda/lib/libopenblas.so.0"
    scipys = found("Prescott", "scipy")
    assert blas.refusal("scikit-learn", [faisss, found("SkylakeX", "scipy")], "AVX512") is None
    assert "scipy.libs" in blas.refusal("scikit-learn", [numpys, scipys], "AVX512")
    assert "(lib/libopenblas.so.0)" in blas.refusal("faiss-cpu", [numpys, shared], "AVX512")
    mkl = {**found("", "conda"), "internal_api": "mkl", "filepath": "/conda/lib/libmkl_rt.so"}
    assert blas.refusal("faiss-cpu", [mkl], "AVX512") is None  # which kernels it takes is not known


def test_one_that_was_loaded_before_is_refused(old_blas):
    __import__("antique")
    with pytest.raises(RuntimeError, match=r"faiss-cpu: .* got Prescott .* set OPENBLAS_CORETYPE=SkylakeX before the"):
        blas.imported("antique", "faiss-cpu")
