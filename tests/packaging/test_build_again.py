"""Building from one folder again: with the tools of another build environment, with the same, and with none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# As in the environment that pip and uv build in: what is installed beside it is not there.
WITHOUT_TORCH = """
import os, sys
sys.modules["torch"] = None
_, compiler, *wheels = sys.argv
os.environ["PATH"] = os.path.dirname(compiler)
import setuptools.build_meta as backend
print("needs", *backend.get_requires_for_build_editable())
for folder in wheels:
    backend.build_editable(folder)
"""
ROOT = Path(__file__).resolve().parents[2]
# As large as the question: where the tools are. The kernels themselves take a minute.
CMAKE = """
cmake_minimum_required(VERSION 3.24)
project(small LANGUAGES CXX)
add_library(_C MODULE csrc/small.cpp)
set_target_properties(_C PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
"""


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    (folder / "soho_fast").mkdir(parents=True)
    (folder / "csrc").mkdir()
    shutil.copy2(ROOT / "setup.py", folder)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "soho_fast"\nversion = "1"\n[tool.setuptools]\npackages = ["soho_fast"]\n'
    )
    (folder / "soho_fast/__init__.py").touch()
    (folder / "CMakeLists.txt").write_text(CMAKE)
    (folder / "csrc/small.cpp").write_text("int small() { return 1; }\n")
    return folder


@pytest.fixture
def build(source, tmp_path):
    """Build with a ninja of that name, which is gone afterwards, as pip's build environments are."""
    real = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if real is None:
        pytest.skip("needs ninja")

    def run(name: str, keep: bool = False) -> str:
        tools = tmp_path / name
        tools.mkdir(exist_ok=True)
        (tools / "ninja").write_text(f'#!/bin/sh\nexec "{real}" "$@"\n')
        (tools / "ninja").chmod(0o755)
        environment = os.environ | {"PATH": f"{tools}{os.pathsep}{Path(real).parent}{os.pathsep}{os.environ['PATH']}"}
        environment |= {"SOHO_FAST_BUILD_EXTENSION": "1"}
        done = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=source, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if not keep:
            shutil.rmtree(tools)
        assert done.returncode == 0, done.stdout + done.stderr
        assert list((source / "soho_fast").glob("_C*.so"))
        return done.stdout

    return run


def test_it_builds_again_when_the_first_tools_are_gone(build):
    for name in ("first", "second", "third"):
        build(name)


def test_with_the_same_tools_only_what_changed_is_built(build, source):
    assert "Building CXX object" in build("same", keep=True)
    assert "Building CXX object" not in build("same", keep=True)
    (source / "csrc/small.cpp").write_text("int small() { return 2; }\n")
    assert "Building CXX object" in build("same", keep=True)


@pytest.fixture
def without_torch(source, tmp_path):
    """Ask for what a build needs, and build into a folder, with a compiler but without torch and CMake."""
    compiler = tmp_path / "compiler" / "c++"
    compiler.parent.mkdir()
    compiler.symlink_to("/bin/true")

    def run(*wheels: Path) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, compiler, *wheels],
            cwd=source, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return next(line for line in done.stdout.splitlines() if line.startswith("needs")), done.stderr

    return run


def test_what_is_built_serves_another_extra_without_torch_and_cmake(build, source, without_torch, tmp_path):
    assert without_torch()[0] == "needs torch>=2.11 cmake>=3.24 ninja"
    build("same", keep=True)
    (module,) = (source / "soho_fast").glob("_C*.so")
    built = module.read_bytes()
    module.unlink()
    needs, said = without_torch(tmp_path)
    assert needs == "needs" and "without the compiled extension" not in said
    assert module.read_bytes() == built


@pytest.mark.parametrize("change", ["source", "compiler", "cuda"])
def test_what_would_be_built_otherwise_is_asked_for(change, build, source, without_torch, monkeypatch):
    build("same", keep=True)
    if change == "source":
        (source / "csrc/small.cpp").write_text("int small() { return 2; }\n")
    elif change == "compiler":
        monkeypatch.setenv("CXX", "c++ -O0")
    else:
        monkeypatch.setenv("SOHO_FAST_CUDA", "0")
    assert without_torch()[0] == "needs torch>=2.11 cmake>=3.24 ninja"


def test_without_an_extension_torch_is_not_asked_for(without_torch, monkeypatch):
    monkeypatch.setenv("SOHO_FAST_BUILD_EXTENSION", "0")
    assert without_torch()[0] == "needs"
