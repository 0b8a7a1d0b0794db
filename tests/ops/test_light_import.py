"""`import soho_fast.ops` loads torch and this package, nothing else; an adapter names the library that it misses."""

import subprocess
import sys

import pytest

ADDED = """
import sys
import torch
before = set(sys.modules)
import soho_fast.ops
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(sorted(name for name in sys.modules if name.startswith("soho_fast.") and "ops" not in name and "_C" not in name))
"""


def _python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_ops_load_torch_alone():
    done = _python(ADDED)
    assert done.stdout.splitlines() == ["['soho_fast']", "[]"], done.stdout + done.stderr


def test_the_ops_run_where_nothing_but_torch_is_installed():
    """An import of any of these would raise."""
    missing = ("numpy", "transformers", "deepspeed", "torchvision", "safetensors", "tokenizers", "PIL", "triton")
    hide = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); import torch; from soho_fast import ops; "
    done = _python(hide + "print(ops.codebook_lookup(torch.eye(3), torch.eye(3)).tolist())")
    assert done.stdout.strip() == "[0, 1, 2]", done.stderr


@pytest.mark.parametrize(
    ("adapter", "library", "package"),
    [
        ("vector_quantize_pytorch", "vector_quantize_pytorch", "vector-quantize-pytorch"),
        ("pylibraft", "numpy", "numpy"),
    ],
)
def test_an_adapter_without_its_library_says_how_to_install_it(adapter, library, package):
    hide = f"import sys; sys.modules[{library!r}] = None; import soho_fast.adapters; print('imported'); "
    done = _python(hide + f"import soho_fast.adapters.{adapter}")
    assert done.stdout.strip() == "imported", "the adapters are imported one by one"
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(
        f"ModuleNotFoundError: soho_fast.adapters.{adapter} needs the package {library}: pip install"
    )
    assert package in error
