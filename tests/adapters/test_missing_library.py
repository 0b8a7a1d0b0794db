"""An adapter names the library that it misses, and none is loaded for a model that has none of its classes."""

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("library", "install"),
    [
        ("vector_quantize_pytorch", "vector-quantize-pytorch>=1.32"),
        ("transformers", "transformers>=5.23"),
        ("encodec", "encodec>=0.1.1"),
        ("moshi", "moshi>=0.2.13"),
        ("dac", "descript-audio-codec>=1"),
    ],
)
def test_an_adapter_without_its_library_says_how_to_install_it(library, install):
    hide = f"import sys; sys.modules['{library}'] = None; import soho_fast.adapters; print('imported'); "
    done = run(f"{hide}import soho_fast.adapters.{library}")
    assert done.stdout.strip() == "imported", "the adapters are imported one by one"
    error = done.stderr.strip().splitlines()[-1]
    said = f"soho_fast.adapters.{library} needs the package {library}: pip install '{install}'"
    assert error == f"ModuleNotFoundError: {said}"


def test_no_library_is_loaded_for_a_model_without_its_classes():
    done = run(
        "import sys, torch\n"
        "from soho_fast.adapters import accelerate, restore\n"
        "restore(torch.nn.Linear(2, 2))\n"
        "try: accelerate(torch.nn.Linear(2, 2))\n"
        "except ValueError as error: print(error)\n"
        "print(sorted({'transformers', 'encodec', 'moshi', 'dac', 'vector_quantize_pytorch'} & set(sys.modules)))"
    )
    assert done.stdout.splitlines() == [
        "model: expected one with a quantiser of transformers, encodec, moshi, dac, vector_quantize_pytorch that is "
        "known here, got Linear",
        "[]",
    ], done.stderr
