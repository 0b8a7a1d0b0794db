"""A source distribution and a wheel: built from a copy, without a compiler."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import soho_fast

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import setuptools.build_meta as b, sys; b.{what}(sys.argv[1])"


def build(what: str, source: Path, target: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(what=what), str(target)],
        cwd=source,
        env={**os.environ, "SOHO_FAST_BUILD_EXTENSION": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    """The folder that a source distribution unpacks to."""
    top = tmp_path_factory.mktemp("packaging")
    nothing_built = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    (top / "copy").mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy2(path, top / "copy")
        elif path.name in ("soho_fast", "csrc", "tests", "examples", "docs"):
            shutil.copytree(path, top / "copy" / path.name, ignore=nothing_built)
    with tarfile.open(build("build_sdist", top / "copy", top / "sdist")) as archive:
        archive.extractall(top, filter="data")
    return top / f"soho_fast-{soho_fast.__version__}"


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel that is built of the source distribution."""
    return build("build_wheel", sdist, tmp_path_factory.mktemp("wheel"))
