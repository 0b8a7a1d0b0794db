"""`python -m build`, and an installation of its wheel where there is no compiler."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from soho_fast import ops

ROOT = Path(__file__).resolve().parents[2]
# In the folder that was built in before (`make`, or an editable installation) nothing is compiled again.
BUILT = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}" / "tools.json"

PROGRAM = """
import shutil, soho_fast, sys, torch
from soho_fast import ops
assert soho_fast.__file__.startswith(sys.prefix), soho_fast.__file__
assert not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cc", "cmake", "nvcc"))
assert ops.build_info()["extension"], ops.build_info()["reason"]
features, codebook = torch.randn(500, 24), torch.randn(30, 24)
index = ops.codebook_lookup(features, codebook, backend="cpu")
assert torch.equal(index, torch.cdist(features.double(), codebook.double()).argmin(1))
print("looked up with", ops.build_info()["cpu_level"])
"""


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(
    not (BUILT.is_file() and ops.build_info()["extension"]), reason="needs the folder that the extension was built in"
)
def test_a_built_wheel_serves_where_there_is_no_compiler(tmp_path):
    pytest.importorskip("build")
    run(
        sys.executable, "-m", "build", "--sdist", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT,
        SOHO_FAST_BUILD_EXTENSION="1",
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    (sdist,), (wheel,) = (tmp_path / "dist").glob("*.tar.gz"), (tmp_path / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "csrc/torch/module.cpp", "soho_fast/ops/__init__.py"} <= files
    with zipfile.ZipFile(wheel) as archive:
        assert f"soho_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}" in archive.namelist()

    # torch is seen where it is; a .pth file does not bring what is installed there as editable.
    folder = tmp_path / "fresh"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel]
    run(sys.executable, *install, PYTHONPATH="")
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "nothing").mkdir()
    environment = {"PATH": str(tmp_path / "nothing"), "PYTHONPATH": "", "CXX": ""}
    assert "looked up with" in run(python, "-c", PROGRAM, **environment)
