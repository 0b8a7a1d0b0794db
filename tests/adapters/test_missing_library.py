"""An adapter names the library that it misses."""

import subprocess
import sys


def test_an_adapter_without_its_library_says_how_to_install_it():
    hide = "import sys; sys.modules['vector_quantize_pytorch'] = None; import soho_fast.adapters; print('imported'); "
    code = hide + "import soho_fast.adapters.vector_quantize_pytorch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported", "the adapters are imported one by one"
    said = "soho_fast.adapters.vector_quantize_pytorch needs the package vector_quantize_pytorch: pip install"
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"ModuleNotFoundError: {said}") and "vector-quantize-pytorch" in error
