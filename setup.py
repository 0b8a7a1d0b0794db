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
BUILD_DIR = SOURCE_DIR / "build" / f"cmake-{sys.implementation.cache_tag}"
SWITCH = "SOHO_FAST_BUILD_EXTENSION"
CUDA_SWITCH = "SOHO_FAST_CUDA"
CMAKE_CUDA = {"": "AUTO", "0": "OFF", "1": "ON"}


def has_compiler() -> bool:
    compiler = os.environ.get("CXX", "").split()
    return any(shutil.which(name) for name in (compiler[:1] or ["c++", "g++", "clang++"]))


def missing_requirement() -> str | None:
    """What the build lacks, in words, or None."""
    if not has_compiler():
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
    switch = os.environ.get(CUDA_SWITCH)
    return {"python": sys.executable, "CXX": os.environ.get("CXX"), CUDA_SWITCH: switch, **places}


def current_module() -> Path | None:
    """The module of an earlier build, if it is newer than its sources and a build would bring no other one now.

    The module is for any torch, so it counts where torch is not installed, as in the environments that pip builds in.
    """
    known, module = BUILD_DIR / "tools.json", next(BUILD_DIR.glob("_C*.so"), None)
    if module is None or not known.is_file():
        return None
    now, then = tools(), json.loads(known.read_text())
    if any(now[name] not in (None, then.get(name)) for name in ("CXX", CUDA_SWITCH, "nvcc", "torch")):
        return None
    sources = [SOURCE_DIR / "setup.py", SOURCE_DIR / "CMakeLists.txt", *(SOURCE_DIR / "csrc").rglob("*")]
    return module if all(path.stat().st_mtime <= module.stat().st_mtime for path in sources) else None


def build_requirements() -> list[str]:
    """What a build needs beside pyproject.toml's: nothing where it would compile nothing. torch alone is gigabytes."""
    if os.environ.get(SWITCH) == "0" or not has_compiler() or current_module():
        return []
    return ["torch>=2.11", "cmake>=3.24", "ninja"]


class CMakeBuild(build_ext):
    """Lets CMake build the module and puts the result where setuptools expects it."""

    def run(self) -> None:
        for switch in (SWITCH, CUDA_SWITCH):
            if os.environ.get(switch, "") not in ("", "0", "1"):
                raise SystemExit(f"{switch}: expected 0, 1 or unset, got {os.environ[switch]!r}")
        wanted = os.environ.get(SWITCH, "")
        missing = None if current_module() else missing_requirement()
        if wanted == "1" and missing:
            raise SystemExit(f"soho_fast: the extension was asked for ({SWITCH}=1) and cannot be built: {missing}.")
        if wanted == "0" or missing:
            reason = f"{SWITCH}=0" if wanted == "0" else missing
            print(f"soho_fast: installing without the compiled extension: {reason}.", file=sys.stderr)
            self.extensions = []
        super().run()

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        module = current_module() or self.compiled()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(module, target)

    def compiled(self) -> Path:
        """The module, after CMake has built what has changed."""
        configure = [
            "cmake",
            "-S",
            str(SOURCE_DIR),
            "-B",
            str(BUILD_DIR),
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DSOHO_FAST_BUILD_MODULE=ON",
            f"-DSOHO_FAST_CUDA={CMAKE_CUDA[os.environ.get(CUDA_SWITCH, '')]}",
        ]
        # pip builds with tools and a torch that it deletes afterwards; the same ones build only what has changed.
        used, known = json.dumps(tools(), indent=1), BUILD_DIR / "tools.json"
        if not known.is_file() or known.read_text() != used:
            configure += ["--fresh", *(["-GNinja"] if shutil.which("ninja") else [])]
            known.unlink(missing_ok=True)
        build = ["cmake", "--build", str(BUILD_DIR), "--target", "_C", "--parallel"]
        try:
            subprocess.run(configure, check=True)
            known.write_text(used)
            subprocess.run(build, check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"soho_fast: building the extension failed in `{' '.join(error.cmd)}` (its output is above); "
                f"set {SWITCH}=0 to install without it."
            ) from None
        module = next(BUILD_DIR.glob("_C*.so"))
        module.touch()  # newer than its sources, also where their change changed nothing
        return module


# Asked as setuptools asks for pip and uv; another command would install them itself.
setup(
    ext_modules=[Extension("soho_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=build_requirements() if "egg_info" in sys.argv else [],
)
