"""What a type checker says of a user's program: no result is of type Any, and what is wrong is refused."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("user_program.py")

# A wrong line, and what the checker says of it.
WRONG = {
    'ops.codebook_lookup(rows_NC, codebook, metric="euclid")': "No overload variant",
    'ops.prepare_codebook(codebook, metric="euclid")': r"expected \"Literal\['euclidean', 'cosine', 'dot'\]\"",
    'ops.codebook_lookup("features", codebook)': "No overload variant",
    'ops.codebook_lookup(rows_NC, "codebook")': "No overload variant",
    "ops.codebook_lookup(rows_NC, codebook, return_distence=True)": "No overload variant",
    "ops.codebook_lookup(rows_NC, codebook, return_distance=True).shape": 'has no attribute "shape"',
    "first: int = ops.straight_through(rows_NC, codebook, index)": 'variable has type "int"',
    "ops.codebook_stats(rows_NC, index, 2.5)": '"float"; expected "int"',
    'ops.codebook_ema_(codebook, index, codebook, "0.9")': '"str"; expected "float"',
    "ops.group_mask(rows_NC, index, codebook, 3)": '"int"; expected "Tensor"',
    "ops.prepare_codebook(codebook).packed_by": '"PreparedCodebook" has no attribute "packed_by"',
    "kmeans.predict(rows_NC).labels": '"Tensor" has no attribute "labels"',
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says of the program with the wrong lines behind it."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    path = tmp_path_factory.mktemp("typing") / "program.py"
    path.write_text(PROGRAM.read_text() + "\n".join(WRONG) + "\n")
    command = [sys.executable, "-m", "mypy", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return re.findall(r"program\.py:(\d+): (error|note): (.*)", done.stdout)


def test_no_result_is_any(said):
    lines = PROGRAM.read_text().splitlines()
    revealed = {int(line): text for line, _, text in said if text.startswith("Revealed type is")}
    assert sorted(revealed) == [number for number, line in enumerate(lines, 1) if line.startswith("reveal_type(")]
    assert {lines[line - 1]: text for line, text in revealed.items() if re.search(r"\bAny\b", text)} == {}


def test_what_is_wrong_is_refused_and_nothing_else(said):
    first = len(PROGRAM.read_text().splitlines()) + 1
    errors = {int(line): text for line, kind, text in said if kind == "error"}
    assert sorted(errors) == list(range(first, first + len(WRONG))), errors
    for number, expected in enumerate(WRONG.values(), first):
        assert re.search(expected, errors[number]), errors[number]
