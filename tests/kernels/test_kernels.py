"""Builds and runs kernel_tests, the torch-free tests of the C++ kernels."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
has_tools = shutil.which("cmake") and any(shutil.which(name) for name in ("c++", "g++", "clang++"))


@pytest.mark.skipif(not has_tools, reason="needs cmake and a C++ compiler")
def test_kernels_without_torch():
    build_dir = ROOT / "build" / "kernel_tests"
    configure = ["cmake", "-S", ROOT, "-B", build_dir, "-DSOHO_FAST_BUILD_MODULE=OFF", "-DSOHO_FAST_BUILD_TESTS=ON"]
    if shutil.which("ninja") and not (build_dir / "CMakeCache.txt").exists():
        configure.append("-GNinja")
    build = ["cmake", "--build", build_dir, "--target", "kernel_tests", "--parallel", str(os.cpu_count())]
    for command in (configure, build, [build_dir / "kernel_tests"]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
