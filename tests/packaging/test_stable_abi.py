"""The compiled extension takes of libtorch what its stable C interface promises: one binary serves many torches."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import soho_fast

LIBRARIES = list(Path(soho_fast.__file__).parent.glob("_C*.so"))
HEADERS = ("csrc/stable/c/shim.h", "csrc/inductor/aoti_torch/c/shim.h")
# What a C or C++ program of this system needs anyway.
SYSTEM = re.compile(
    r"\S+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+|__gmon_start__|_ITM_\w+|__cxa_finalize|__tls_get_addr\S*|"
    r"_ZNSt15__exception_ptr\w+"  # of the C++ library, which PyPI's torch with CUDA has within itself
)


def undefined(library: Path) -> set[str]:
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    done = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--with-symbol-versions", str(library)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {line.split()[-1] for line in done.stdout.splitlines()}


def of_torch(names: set[str]) -> set[str]:
    return {name for name in names if not SYSTEM.fullmatch(name) and not re.fullmatch(r"_?Py[A-Z_]\w*", name)}


@pytest.mark.skipif(not LIBRARIES, reason="needs the compiled extension")
def test_only_stable_c_functions_of_torch_are_used():
    names = of_torch(undefined(LIBRARIES[0]))
    promised = "".join((Path(torch.__file__).parent / "include/torch" / header).read_text() for header in HEADERS)
    assert names, "the extension calls torch"
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", promised)) == []
