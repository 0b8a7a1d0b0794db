"""Building with CUDA: refused in one sentence where it cannot be, and the bindings compile against torch's headers."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
has_tools = shutil.which("cmake") and any(shutil.which(name) for name in ("c++", "g++", "clang++"))
pytestmark = pytest.mark.skipif(not has_tools, reason="needs cmake and a C++ compiler")


def _configure(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = ["cmake", "-S", ROOT, "-B", folder, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_asked_for_without_nvcc(tmp_path):
    done = _configure(tmp_path, "-DSOHO_FAST_BUILD_MODULE=OFF", "-DSOHO_FAST_CUDA=ON", "-DSOHO_NVCC=")
    assert done.returncode != 0
    words = " ".join(done.stderr.split())
    assert "CUDA kernels were asked for (SOHO_FAST_CUDA) and cannot be built: nvcc was not found" in words


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
@pytest.mark.parametrize(("wanted", "ends_well"), [("ON", False), ("AUTO", True)])
def test_module_on_a_torch_without_cuda(wanted, ends_well, tmp_path):
    done = _configure(tmp_path, f"-DPython_EXECUTABLE={sys.executable}", f"-DSOHO_FAST_CUDA={wanted}")
    assert (done.returncode == 0) == ends_well, done.stderr
    assert "was built without CUDA" in " ".join((done.stdout + done.stderr).split())


def test_unknown_choice(tmp_path):
    done = _configure(tmp_path, "-DSOHO_FAST_BUILD_MODULE=OFF", "-DSOHO_FAST_CUDA=perhaps")
    assert done.returncode != 0 and "expected ON, OFF or AUTO, got 'perhaps'" in done.stderr


@pytest.mark.parametrize("op", ["codebook_lookup", "codebook_update", "group_mask"])
def test_bindings_compile(op):
    """Against the headers of any torch: only those of the stable ABI are used. What cannot be seen here is the link
    to libtorch_cuda and the run."""
    include = Path(importlib.util.find_spec("torch").submodule_search_locations[0]) / "include"
    flags = ["-std=c++20", "-fsyntax-only", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-DUSE_CUDA",
             "-DTORCH_TARGET_VERSION=0x020a000000000000ULL", f"-I{ROOT / 'csrc'}", "-isystem", include]  # fmt: skip
    done = subprocess.run(
        ["c++", *flags, ROOT / f"csrc/torch/{op}_cuda.cpp"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
