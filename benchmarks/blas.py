"""Which BLAS kernels the baselines run on; kernels below the processor's instruction sets are refused.

OpenBLAS chooses its kernels when it is loaded, and takes low ones on a processor that it does not know: 0.3.15 in the
wheel of faiss-cpu 1.15 takes SSE3 on Intel's with AMX and AVX2 on AMD's with AVX-512. `imported` loads such a library
with kernels of the processor's own level.
"""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy  # noqa: F401  its OpenBLAS chooses for itself, before `imported` chooses for another
import torch
from threadpoolctl import threadpool_info

VARIABLE = "OPENBLAS_CORETYPE"  # read by every OpenBLAS of the process while it is loaded
AVX512 = ("SkylakeX", "Cooperlake", "SapphireRapids")
# Instruction sets by torch's name -> OpenBLAS' kernels of no less, first the usual one. Zen is Haswell's AVX2 for AMD.
KERNELS = {"AVX512": AVX512, "AVX2": ("Haswell", "Zen", *AVX512)}
# Of each baseline the wheel whose BLAS it calls; scikit-learn takes scipy's.
WHEELS = {"numpy": "numpy", "faiss-cpu": "faiss_cpu", "scikit-learn": "scipy", "superkmeans": "superkmeans"}
IMPORT = (
    "import importlib, json, sys, threadpoolctl; importlib.import_module(sys.argv[1]); "
    "print(json.dumps(threadpoolctl.threadpool_info()))"
)


def libraries(package: str, infos: list[dict]) -> list[dict[str, str]]:
    """The BLAS that a baseline calls, among what threadpoolctl found: its wheel's, or one that no wheel brought."""
    if package == "torch" and torch.backends.mkl.is_available():
        return _mkl_of_torch()
    blas = [info for info in infos if info["user_api"] == "blas"]
    folders = [Path(info["filepath"]).parent.name for info in blas]
    own = f"{WHEELS.get(package)}.libs"
    wanted = {own} if own in folders else {name for name in folders if not name.endswith(".libs")}
    return [
        {
            "library": info["internal_api"],
            "version": str(info["version"]),
            "kernel": info.get("architecture") or "",
            "file": f"{folder}/{Path(info['filepath']).name}",
        }
        for info, folder in zip(blas, folders, strict=True)
        if folder in wanted
    ]


@functools.cache
def _mkl_of_torch() -> list[dict[str, str]]:
    """MKL is a part of torch, where threadpoolctl does not see it; it names its kernels at the first product."""
    product = [sys.executable, "-c", "import torch; torch.ones(8, 8) @ torch.ones(8, 8)"]
    done = subprocess.run(product, env=os.environ | {"MKL_VERBOSE": "1"}, capture_output=True, text=True, check=False)
    found = re.search(r"MKL_VERBOSE .*?MKL (.+?) Product build .*? architecture (.+), Lnx", done.stdout)
    version, kernel = found.groups() if found else (torch.__version__, "")
    return [{"library": "mkl", "version": version, "kernel": kernel, "file": "torch"}]


def refusal(package: str, infos: list[dict], processor: str) -> str | None:
    """Why a baseline is not timed with these libraries on a processor with these instruction sets; None if it is."""
    for each in libraries(package, infos):
        if each["library"] == "openblas" and each["kernel"] not in KERNELS.get(processor, (each["kernel"],)):
            return (
                f"{package}: expected BLAS kernels for {processor}, which the processor has, got {each['kernel']} of "
                f"OpenBLAS {each['version']} ({each['file']}); set {VARIABLE}={KERNELS[processor][0]} before the start"
            )
    return None


def imported(module: str, package: str) -> ModuleType:
    """A baseline's module, its BLAS with kernels of the processor's level.

    Raises:
        ModuleNotFoundError: it is not installed.
        RuntimeError: its kernels are below the processor's instruction sets.
    """
    processor = torch.backends.cpu.get_cpu_capability()
    chosen = module in sys.modules or VARIABLE in os.environ or package not in WHEELS
    if not chosen and refusal(package, _when_left_alone(module), processor):
        os.environ[VARIABLE] = KERNELS[processor][0]
        try:
            importlib.import_module(module)
        finally:
            del os.environ[VARIABLE]
    found = importlib.import_module(module)
    reason = refusal(package, threadpool_info(), processor) if package in WHEELS else None
    if reason:
        raise RuntimeError(reason)
    return found


def _when_left_alone(module: str) -> list[dict]:
    """What threadpoolctl finds in a process that imports nothing else; [] where that fails."""
    done = subprocess.run([sys.executable, "-c", IMPORT, module], capture_output=True, text=True, check=False)
    return [] if done.returncode else json.loads(done.stdout.splitlines()[-1])


def recorded(packages: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    """Of each of these that has loaded a BLAS, which and with which kernels: for the result."""
    infos = threadpool_info()
    return {package: found for package in packages if (found := libraries(package, infos))}
