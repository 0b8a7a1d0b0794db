"""The base installation: the ops work with torch alone, and what is missing is told by the name of its extra."""

import email
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import soho_fast

ROOT = Path(__file__).resolve().parents[2]

OPS = """
import importlib.util, json, torch
from soho_fast import ops
import soho_fast.common.errors, soho_fast.common.processes, soho_fast.engine.task

features = torch.tensor([[0.0, 1.0], [9.0, 9.0], [0.1, 0.9]], requires_grad=True)
codebook = torch.tensor([[0.0, 1.0], [8.0, 9.0]])
index = ops.codebook_lookup(features, codebook)
ops.straight_through(features, codebook, index).sum().backward()
counts, sums = ops.codebook_stats(features.detach(), index, num_codes=2)
ops.codebook_ema_(codebook, counts, sums, decay=0.5)
print(json.dumps({
    "index": index.tolist(), "grad": features.grad.tolist(), "code": codebook[1].tolist(),
    "backends": ops.available_backends(),
    "there": [name for name in ("numpy", "transformers", "deepspeed", "torchvision", "PIL", "tqdm", "yaml")
              if importlib.util.find_spec(name)],
}))
"""

ASKED = ("rank", "soho_fast", "soho_fast/ask/__main__.py", "a dog")  # what is there, so that torch is asked for
MODULES = ("model:SohoModel", "data", "tasks", "tasks.recipe", "engine.trainer", "ask.pipeline", "train", "evaluate")
EXPLORE = ("explore", "explore.bundle")
TOLD = """
import importlib, json, sys
told = {}
for name in sys.argv[1:]:
    try:
        module, _, asked = name.partition(":")
        module = importlib.import_module(f"soho_fast.{module}")
        if asked:
            getattr(module, asked)
    except ImportError as error:
        told[name] = [str(error), repr(error.__cause__)]
print(json.dumps(told))
"""

LOADED = """
import sys, torch
before = set(sys.modules)
import soho_fast
from soho_fast import ops
import soho_fast.adapters
import soho_fast.cluster
import soho_fast.common.errors, soho_fast.common.processes, soho_fast.engine.task
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names))
"""


@pytest.fixture(scope="module")
def torch_alone(wheel, tmp_path_factory) -> Path:
    """A folder with what `pip install soho_fast` installs: the wheel, and all that it requires."""
    folder = tmp_path_factory.mktemp("torch_alone")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        metadata = email.message_from_bytes(archive.read(f"soho_fast-{soho_fast.__version__}.dist-info/METADATA"))
    for extension in (ROOT / "soho_fast").glob("_C*.so"):
        shutil.copy2(extension, folder / "soho_fast")
    pending, seen = metadata.get_all("Requires-Dist"), set()
    while pending:
        requirement = Requirement(pending.pop())
        if requirement.name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(requirement.name)
        required = distribution(requirement.name)
        pending += required.requires or []
        for name in {path.parts[0] for path in required.files} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(required.locate_file(name))
    return folder


def run(*arguments: str, path: Path, site: bool = False) -> subprocess.CompletedProcess[str]:
    """Python with these arguments and `path`; without `site`, nothing else is installed."""
    environment = os.environ | {"PYTHONPATH": str(path), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *([] if site else ["-S"]), *arguments],
        cwd=path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_ops_work_with_torch_alone(torch_alone):
    done = run("-c", OPS, path=torch_alone)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["there"] == []
    assert found["index"] == [0, 1, 0]
    assert found["grad"] == [[1.0, 1.0]] * 3 and found["code"] == [8.5, 9.0]
    built = bool(list((torch_alone / "soho_fast").glob("_C*.so")))
    assert ("cpu" in found["backends"]) == built


def test_a_module_says_which_extra_it_needs(torch_alone):
    done = run("-c", TOLD, *MODULES, *EXPLORE, path=torch_alone)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert list(told) == [*MODULES, *EXPLORE]
    for name in EXPLORE:
        assert told.pop(name)[0] == 'soho_fast.explore needs numpy; install it with: pip install "soho_fast[explore]"'
    message, cause = told["model:SohoModel"]
    assert message == 'soho_fast.model needs transformers; install it with: pip install "soho_fast[train]"'
    assert cause == "ModuleNotFoundError(\"No module named 'transformers'\")"
    for message, cause in told.values():
        assert message.endswith('install it with: pip install "soho_fast[train]"') and message.count(" needs ") == 1
        assert cause.startswith("ModuleNotFoundError")


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "soho_fast.train"),
        ("soho_fast/train.py", "--recipe", "mini"),
        ("-m", "soho_fast.evaluate", "--run", "runs/mini"),
        ("-m", "soho_fast.ask", *ASKED),
        ("-m", "soho_fast.data.mini"),
    ],
)
def test_a_command_says_it_in_one_line(torch_alone, command):
    done = run(*command, path=torch_alone)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: soho_fast.") and line.endswith('install it with: pip install "soho_fast[train]"')


def test_what_an_installed_package_lacks_is_its_own_error(torch_alone, tmp_path):
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("import not_there\n")
    (tmp_path / "transformers" / "utils.py").touch()
    for installed in torch_alone.iterdir():
        (tmp_path / installed.name).symlink_to(installed)
    for arguments in (("-c", "from soho_fast.model import SohoModel"), ("-m", "soho_fast.ask", *ASKED)):
        done = run(*arguments, path=tmp_path)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'not_there'", done.stderr
        assert "soho_fast[train]" not in done.stderr


def test_the_ops_load_nothing_but_torch():
    """Also where everything is installed."""
    done = run("-c", LOADED, path=ROOT, site=True)
    assert done.returncode == 0, done.stderr
    # Triton's kernels are loaded where there is a GPU that they run on.
    assert set(done.stdout.split()) - {"triton"} == {"soho_fast"}
