"""Builds and runs the CUDA kernels on the model of the machine: no GPU and no CUDA, but every access is watched."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "kernel_tests"
has_tools = shutil.which("cmake") and any(shutil.which(name) for name in ("c++", "g++", "clang++"))
pytestmark = pytest.mark.skipif(not has_tools, reason="needs cmake and a C++ compiler")


def _run(*command) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def build():
    options = ["-DSOHO_FAST_BUILD_MODULE=OFF", "-DSOHO_FAST_BUILD_TESTS=ON", "-DSOHO_FAST_CUDA=OFF"]
    configure = ["cmake", "-S", ROOT, "-B", BUILD, *options]
    if shutil.which("ninja") and not (BUILD / "CMakeCache.txt").exists():
        configure.append("-GNinja")
    _run(*configure)
    _run("cmake", "--build", BUILD, "--target", "cuda_model_tests", "cuda_race_tests", "--parallel", "2")
    return BUILD


@pytest.mark.parametrize("group", ["model", "codebook_lookup", "codebook_update", "group_mask"])
def test_under_the_sanitizers(build, group):
    assert "0 failures" in _run(build / "cuda_model_tests", group)


@pytest.mark.parametrize("group", ["races", "codebook_lookup", "codebook_update", "group_mask"])
def test_under_the_race_check(build, group):
    assert "0 failures" in _run(build / "cuda_race_tests", group)
