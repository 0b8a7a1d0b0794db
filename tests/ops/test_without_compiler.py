"""Installing where the C++ ops cannot be built: what setup.py says, and what runs then."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TRAIN = """
import sys
# An editable installation, such as the one these tests run from, would lend its extension.
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
import torch
from soho_fast import ops
from soho_fast.model import SohoConfig, SohoForPreTraining
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_codes=8)
model = SohoForPreTraining(SohoConfig.from_preset("paper", backbone="resnet10", vocab_size=30, **sizes)).train()
before = model.soho.visual_dictionary.codebook.clone()
ids, pixels = torch.randint(5, 30, (2, 6)), torch.randn(2, 3, 64, 64)
for _ in range(2):
    out = model(pixel_values=pixels, input_ids=ids, mlm_labels=ids, mask_uniform=torch.rand(2).double())
    out.loss.backward()
assert torch.isfinite(out.loss) and not torch.equal(model.soho.visual_dictionary.codebook, before)
assert ops.available_backends() == ["reference"]
print(ops.__file__)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """What an installation reads, without anything that was built."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt"):
        shutil.copy2(ROOT / name, folder / name)
    for name in ("csrc", "soho_fast"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    return folder


def run(source: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of python with these arguments, where the environment says nothing else of compilers."""
    values = {name: value for name, value in os.environ.items() if name not in ("CXX", "SOHO_FAST_BUILD_EXTENSION")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=source, env=values | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_without_a_compiler_the_package_installs_and_trains_on_the_reference(source, tmp_path):
    target, empty = tmp_path / "site", tmp_path / "bin"
    empty.mkdir()
    pip = ["-m", "pip", "install", "-v", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    code, text = run(source, *pip, ".", PATH=str(empty))
    assert code == 0, text
    assert "installing without the compiled extension: no C++ compiler was found (install g++ or clang" in text, text
    assert (target / "soho_fast" / "recipes" / "mini.yaml").is_file() and not list(target.rglob("_C*"))
    code, text = run(tmp_path, "-c", TRAIN, PYTHONPATH=str(target))
    assert code == 0, text
    assert text.splitlines()[-1] == str(target / "soho_fast" / "ops" / "__init__.py")
    assert text.count("soho_fast runs its slower plain torch reference") == 1, text
    assert "install a C++ compiler and reinstall the package" in text


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"CXX": "/nowhere/c++"}, 0, "installing without the compiled extension: no C++ compiler was found"),
        ({"SOHO_FAST_BUILD_EXTENSION": "0"}, 0, "without the compiled extension: SOHO_FAST_BUILD_EXTENSION=0."),
        (
            {"SOHO_FAST_BUILD_EXTENSION": "1", "CXX": "/nowhere/c++"}, 1,
            "was asked for (SOHO_FAST_BUILD_EXTENSION=1) and cannot be built: no C++ compiler was found",
        ),
        ({"SOHO_FAST_BUILD_EXTENSION": "yes"}, 1, "SOHO_FAST_BUILD_EXTENSION: expected 0, 1 or unset, got 'yes'"),
        ({"SOHO_FAST_CUDA": "maybe"}, 1, "SOHO_FAST_CUDA: expected 0, 1 or unset, got 'maybe'"),
        ({"CXX": "false"}, 1, "building the extension failed in `cmake -S"),
    ],
)  # fmt: skip
def test_what_setup_says(source, tmp_path, environment, code, words):
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **environment}
    ended, text = run(source, "setup.py", "build_ext", "--build-lib", str(tmp_path), **environment)
    assert ended == code, text
    assert words in text and "Traceback" not in text, text
    assert not list(tmp_path.rglob("_C*"))
