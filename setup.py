"""Builds the extension module soho_fast._C by calling CMake; metadata lives in pyproject.toml.

Environment variable SOHO_FAST_BUILD_EXTENSION: 0 skips the build, 1 demands it; unset builds where a C++ compiler is.
SOHO_FAST_CUDA: the same of its CUDA kernels; unset builds them where nvcc and a torch with CUDA are.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE_DIR = Path(__file__).resolve().parent
SWITCH = "SOHO_FAST_BUILD_EXTENSION"
CUDA_SWITCH = "SOHO_FAST_CUDA"
CMAKE_CUDA = {"": "AUTO", "0": "OFF", "1": "ON"}


def missing_requirement() -> str | None:
    """What the build lacks, in words, or None."""
    compiler = os.environ.get("CXX", "").split()
    if not any(shutil.which(name) for name in (compiler[:1] or ["c++", "g++", "clang++"])):
        return "no C++ compiler was found (install g++ or clang, or set CXX)"
    if importlib.util.find_spec("torch") is None:
        return "the Python package torch is missing (pip install torch, then pip install --no-build-isolation)"
    if shutil.which("cmake") is None:
        return "cmake was not found (pip install cmake ninja)"
    return None


def tools() -> dict[str, str | None]:
    """Where what a build uses is, and which torch: what CMake keeps of them holds for no other ones."""
    places = {name: shutil.which(name) for name in ("cmake", "ninja", "nvcc")}
    found = importlib.util.find_spec("torch")
    places["torch"] = f"{found.origin} {importlib.metadata.version('torch')}" if found else None
    return {"python": sys.executable, "CXX": os.environ.get("CXX"), **places}


class CMakeBuild(build_ext):
    """Lets CMake build the module and puts the result where setuptools expects it."""

    def run(self) -> None:
        for switch in (SWITCH, CUDA_SWITCH):
            if os.environ.get(switch, "") not in ("", "0", "1"):
                raise SystemExit(f"{switch}: expected 0, 1 or unset, got {os.environ[switch]!r}")
        wanted = os.environ.get(SWITCH, "")
        missing = missing_requirement()
        if wanted == "1" and missing:
            raise SystemExit(f"soho_fast: the extension was asked for ({SWITCH}=1) and cannot be built: {missing}.")
        if wanted == "0" or missing:
            reason = f"{SWITCH}=0" if wanted == "0" else missing
            print(f"soho_fast: installing without the compiled extension: {reason}.", file=sys.stderr)
            self.extensions = []
        super().run()

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        build_dir = SOURCE_DIR / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            "cmake",
            "-S",
            str(SOURCE_DIR),
            "-B",
            str(build_dir),
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DSOHO_FAST_BUILD_MODULE=ON",
            f"-DSOHO_FAST_CUDA={CMAKE_CUDA[os.environ.get(CUDA_SWITCH, '')]}",
        ]
        # pip builds with tools and a torch that it deletes afterwards; the same ones build only what has changed.
        used, known = json.dumps(tools(), indent=1), build_dir / "tools.json"
        if not known.is_file() or known.read_text() != used:
            configure += ["--fresh", *(["-GNinja"] if shutil.which("ninja") else [])]
            known.unlink(missing_ok=True)
        build = ["cmake", "--build", str(build_dir), "--target", "_C", "--parallel"]
        try:
            subprocess.run(configure, check=True)
            known.write_text(used)
            subprocess.run(build, check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"soho_fast: building the extension failed in `{' '.join(error.cmd)}` (its output is above); "
                f"set {SWITCH}=0 to install without it."
            ) from None
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(next(build_dir.glob("_C*.so")), target)


setup(ext_modules=[Extension("soho_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
