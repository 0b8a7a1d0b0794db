"""What a source distribution and a wheel hold: built from a copy, without a compiler."""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import soho_fast

ROOT = Path(__file__).resolve().parents[2]
# Imported only where they were asked for, or are there.
OPTIONAL = {"triton", "vector_quantize_pytorch"}
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


@pytest.fixture(scope="module")
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


def below(folder: Path, *suffixes: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in suffixes}


def test_a_source_distribution_holds_what_the_extension_is_built_from(sdist):
    assert below(sdist / "csrc", ".h", ".cpp", ".cu", ".cuh") == below(ROOT / "csrc", ".h", ".cpp", ".cu", ".cuh")
    named = re.findall(r"\b(?:csrc|tests)/[\w/]+\.(?:cpp|cu|h)\b", (ROOT / "CMakeLists.txt").read_text())
    assert len(named) > 20
    assert [name for name in ("CMakeLists.txt", "LICENSE", *named) if not (sdist / name).is_file()] == []


def test_a_wheel_of_it_holds_the_package_and_its_licence(sdist, tmp_path):
    with zipfile.ZipFile(build("build_wheel", sdist, tmp_path)) as wheel:
        names = set(wheel.namelist())
        about = f"soho_fast-{soho_fast.__version__}.dist-info"
        metadata = email.message_from_bytes(wheel.read(f"{about}/METADATA"))
    package = below(ROOT / "soho_fast", ".py", ".yaml", ".typed")
    assert "py.typed" in package
    assert {name.removeprefix("soho_fast/") for name in names if name.startswith("soho_fast/")} == package
    assert f"{about}/licenses/LICENSE" in names and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == soho_fast.__version__


def test_what_the_package_imports_is_required():
    """Not left to what the required packages happen to bring."""
    imported = set()
    for path in (ROOT / "soho_fast").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= sys.stdlib_module_names | {"soho_fast"} | OPTIONAL
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.match(r"[\w-]+", line).group().lower().replace("-", "_") for line in project["dependencies"]}
    distribution = {"PIL": "pillow", "yaml": "pyyaml"}
    assert {distribution.get(name, name) for name in imported} - required == set()
