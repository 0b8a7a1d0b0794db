"""What needs no torch: the installed library in the C++ example. (`make sanitize` and, for ARM, `make neon` run the
tests of the kernels.)"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from soho_fast import __version__

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
def installed(tmp_path_factory):
    build_dir, prefix = ROOT / "build" / "kernels", tmp_path_factory.mktemp("installed")
    _build(ROOT, build_dir, "vq_kernels", "-DSOHO_FAST_BUILD_MODULE=OFF", "-DSOHO_FAST_CUDA=OFF")
    _run("cmake", "--install", build_dir, "--prefix", prefix)
    return prefix


def test_installed_library_serves_the_example(installed, tmp_path):
    _build(ROOT / "examples/kernels_without_torch", tmp_path, "kmeans", f"-DCMAKE_PREFIX_PATH={installed}")
    output = _run(tmp_path / "kmeans")
    distances = [float(value) for value in re.findall(r"distance ([\d.]+)", output)]
    assert len(distances) == 5 and distances[-1] < 0.7 * distances[0], output
    assert float(re.search(r"within ([\d.]+) of", output)[1]) < 0.2, output  # a mean of 800 rows is off by 0.035


PROJECT = """cmake_minimum_required(VERSION 3.24)
project(user LANGUAGES CXX)
find_package(soho_fast {version} REQUIRED)
add_executable(user user.cpp)
target_link_libraries(user PRIVATE soho_fast::kernels)
"""


def test_installed_version(installed, tmp_path):
    (tmp_path / "user.cpp").write_text("int main() {}\n")
    for version, is_there in ((__version__, True), ("0.0.1", False), ("99", False)):
        (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(version=version))
        command = ["cmake", "-S", tmp_path, "-B", tmp_path / version, f"-DCMAKE_PREFIX_PATH={installed}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == is_there, done.stderr
        assert is_there or f"version: {__version__}" in done.stderr


def test_what_installed_headers_declare_is_in_the_library(installed, tmp_path):
    """Each header lies under soho_fast/ and compiles on its own; the address of each function can be taken."""
    include = installed / "include"
    headers = sorted(path.relative_to(include) for path in include.rglob("*") if path.is_file())
    assert len(headers) == 7 and all(header.parts[0] == "soho_fast" for header in headers)
    declared = set()
    for number, header in enumerate(headers):
        text = re.sub(r"//.*", "", (include / header).read_text())
        functions = set(re.findall(r"^[A-Za-z][\w:<>*& ]* (\w+)\([^;{}]*\)\s*[;{]", text, flags=re.MULTILINE))
        declared |= functions
        lines = [f"  pointers[{n}] = reinterpret_cast<void*>(&soho::{name});" for n, name in enumerate(functions)]
        start = f"#include <{header}>\nvoid use_{number}(void* volatile* pointers) {{\n  (void)pointers;"
        (tmp_path / f"header_{number}.cpp").write_text("\n".join([start, *lines, "}\n"]))
    assert {
        "active_cpu_level", "codebook_lookup", "pack_codebook", "update_codebook", "group_mask", "residual_lookup",
    } < declared  # fmt: skip
    assert not any("cuda" in name for name in declared)
    calls = "".join(f"  use_{number}(pointers);\n" for number in range(len(headers)))
    prototypes = "".join(f"void use_{number}(void* volatile*);\n" for number in range(len(headers)))
    (tmp_path / "user.cpp").write_text(f"{prototypes}int main() {{\n  void* volatile pointers[99];\n{calls}}}\n")
    sources = " ".join(["user.cpp", *(f"header_{number}.cpp" for number in range(len(headers)))])
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(version=__version__).replace("user.cpp", sources))
    _build(tmp_path, tmp_path / "build", "user", f"-DCMAKE_PREFIX_PATH={installed}", "-DCMAKE_CXX_FLAGS=-Werror=all")
    _run(tmp_path / "build" / "user")


CROSS_COMPILER = shutil.which("aarch64-linux-gnu-g++")


@pytest.mark.skipif(CROSS_COMPILER is None, reason="needs g++-aarch64-linux-gnu")
def test_the_arm_build_compiles_without_a_warning_with_its_neon_level(tmp_path):
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_BUILD_TYPE=None"]
    options += [f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}", "-DCMAKE_CXX_FLAGS=-Werror"]
    _build(ROOT, tmp_path, "vq_kernels", *options, "-DSOHO_FAST_BUILD_MODULE=OFF", "-DSOHO_FAST_CUDA=OFF")
    symbols = _run("aarch64-linux-gnu-nm", "-C", "--defined-only", next(tmp_path.glob("*.a")))
    assert "T soho::screen_avx2(" in symbols and "T soho::add_members_avx2(" in symbols
    assert "avx512" not in symbols
