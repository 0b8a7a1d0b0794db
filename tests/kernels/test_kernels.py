"""Builds and runs what needs no torch: the tests of the C++ kernels, and the installed library in the C++ example."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
has_tools = shutil.which("cmake") and any(shutil.which(name) for name in ("c++", "g++", "clang++"))
pytestmark = pytest.mark.skipif(not has_tools, reason="needs cmake and a C++ compiler")


def _run(*command) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _build(source, build_dir, target, *options) -> None:
    configure = ["cmake", "-S", source, "-B", build_dir, *options]
    if shutil.which("ninja") and not (build_dir / "CMakeCache.txt").exists():
        configure.append("-GNinja")
    _run(*configure)
    _run("cmake", "--build", build_dir, "--target", target, "--parallel", str(os.cpu_count()))


@pytest.fixture(scope="module")
def build_dir():
    directory = ROOT / "build" / "kernel_tests"
    _build(
        ROOT,
        directory,
        "kernel_tests",
        "-DSOHO_FAST_BUILD_MODULE=OFF",
        "-DSOHO_FAST_BUILD_TESTS=ON",
        "-DSOHO_FAST_CUDA=OFF",
    )
    return directory


def test_kernels_without_torch(build_dir):
    assert "0 failures" in _run(build_dir / "kernel_tests")


def test_installed_library_serves_the_example(build_dir, tmp_path):
    prefix, example = tmp_path / "installed", tmp_path / "example"
    _run("cmake", "--install", build_dir, "--prefix", prefix)
    _build(ROOT / "examples/kernels_without_torch", example, "kmeans", f"-DCMAKE_PREFIX_PATH={prefix}")
    output = _run(example / "kmeans")
    distances = [float(value) for value in re.findall(r"distance ([\d.]+)", output)]
    assert len(distances) == 5 and distances[-1] < 0.7 * distances[0], output
    assert float(re.search(r"within ([\d.]+) of", output)[1]) < 0.2, output  # a mean of 800 rows is off by 0.035
