"""Building from one folder again: with the tools of another build environment, and with the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As large as the question: where the tools are. The kernels themselves take a minute.
CMAKE = """
cmake_minimum_required(VERSION 3.24)
project(small LANGUAGES CXX)
add_library(_C MODULE small.cpp)
set_target_properties(_C PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
"""


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    (folder / "soho_fast").mkdir(parents=True)
    shutil.copy2(ROOT / "setup.py", folder)
    (folder / "pyproject.toml").write_text('[project]\nname = "soho_fast"\nversion = "1"\n')
    (folder / "soho_fast/__init__.py").touch()
    (folder / "CMakeLists.txt").write_text(CMAKE)
    (folder / "small.cpp").write_text("int small() { return 1; }\n")
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
    (source / "small.cpp").write_text("int small() { return 2; }\n")
    assert "Building CXX object" in build("same", keep=True)
