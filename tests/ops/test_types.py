"""What a type checker says of programs that call the public ops: nothing of a right one, and where a wrong one errs."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RIGHT = """
import torch
from torch import Tensor
from soho_fast import ops

features, codebook = torch.randn(4, 9, 8), torch.randn(5, 8)
index: Tensor = ops.codebook_lookup(features, codebook)
index, distance = ops.codebook_lookup(features, ops.prepare_codebook(codebook), return_distance=True)
quantized: Tensor = ops.straight_through(features, codebook, index, backend="reference")
counts, sums = ops.codebook_stats(features, index, 5, valid=index >= 0)
moved: Tensor = ops.codebook_ema_(codebook, counts, sums, decay=0.99)
moved = ops.scatter_mean_ema_(codebook, features, index, 0.99)
target: Tensor = ops.sample_group(index, generator=torch.Generator())
masked, labels = ops.group_mask(quantized, index, torch.zeros(8), target, inplace=True)
names: list[str] = ops.available_backends()
built: dict = ops.build_info()
ops.set_cpu_level(None)
"""

# A wrong line, and what of it is named.
WRONG = {
    'ops.codebook_lookup("features", torch.ones(2, 2))': 'No overload .* matches argument types "str", "Tensor"',
    'ops.codebook_lookup(torch.ones(2, 2), "codebook")': 'No overload .* matches argument types "Tensor", "str"',
    "ops.codebook_lookup(torch.ones(2, 2), torch.ones(2, 2), return_distence=True)": "No overload",
    "ops.codebook_lookup(torch.ones(2, 2), torch.ones(2, 2), return_distance=True).shape": 'has no attribute "shape"',
    "first: int = ops.straight_through(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2))": 'variable has type "int"',
    "ops.codebook_stats(torch.ones(2, 2), torch.ones(2), 2.5)": '"float"; expected "int"',
    'ops.codebook_ema_(torch.ones(2, 2), torch.ones(2), torch.ones(2, 2), "0.9")': '"str"; expected "float"',
    "ops.group_mask(torch.ones(1, 2, 2), torch.ones(1, 2), torch.ones(2), 3)": '"int"; expected "Tensor"',
    "ops.prepare_codebook(torch.ones(2, 2)).packed_by": '"PreparedCodebook" has no attribute "packed_by"',
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says of both programs."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    folder = tmp_path_factory.mktemp("programs")
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text("import torch\nfrom soho_fast import ops\n\n" + "\n".join(WRONG) + "\n")
    command = [sys.executable, "-m", "mypy", "--check-untyped-defs", str(folder / "right.py"), str(folder / "wrong.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_right_program_passes(said):
    assert not [line for line in said if "wrong.py:" not in line][:-1], "the last line counts the errors"


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_call_is_reported(call, said):
    line = 4 + list(WRONG).index(call)
    assert any(re.search(f"wrong.py:{line}: error: .*{WRONG[call]}", each) for each in said), said
