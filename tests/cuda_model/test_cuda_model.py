"""Builds and runs the CUDA kernels on the model of the machine: no GPU and no CUDA, but every access is watched."""

import os
import shutil
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "kernel_tests"
OPS = ("codebook_lookup", "codebook_update", "group_mask")
has_tools = shutil.which("cmake") and any(shutil.which(name) for name in ("c++", "g++", "clang++"))
pytestmark = pytest.mark.skipif(not has_tools, reason="needs cmake and a C++ compiler")


def _run(*command) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, ...], Future]:
    """What each group of each program prints, the longest first, as many at a time as there are processors."""
    options = ["-DSOHO_FAST_BUILD_MODULE=OFF", "-DSOHO_FAST_BUILD_TESTS=ON", "-DSOHO_FAST_CUDA=OFF"]
    configure = ["cmake", "-S", ROOT, "-B", BUILD, *options]
    if shutil.which("ninja") and not (BUILD / "CMakeCache.txt").exists():
        configure.append("-GNinja")
    _run(*configure)
    _run("cmake", "--build", BUILD, "--target", "cuda_model_tests", "cuda_race_tests", "--parallel", "2")
    programs = [(program, group) for group in OPS for program in ("cuda_model_tests", "cuda_race_tests")]
    programs += [("cuda_model_tests", "model"), ("cuda_race_tests", "races")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {words: pool.submit(_run, BUILD / words[0], words[1]) for words in programs}


@pytest.mark.parametrize("group", ["model", *OPS])
def test_under_the_sanitizers(runs, group):
    assert "0 failures" in runs["cuda_model_tests", group].result()


@pytest.mark.parametrize("group", ["races", *OPS])
def test_under_the_race_check(runs, group):
    assert "0 failures" in runs["cuda_race_tests", group].result()
