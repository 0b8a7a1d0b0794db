"""The op benchmarks run whole, on small shapes: every method is there and right, and the result renders."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import blas, render
from benchmarks.ops.report import blas_text, rows_of
from soho_fast import ops

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("small_op_suite.py")
LEVELS = ops.build_info().get("cpu_levels_available", [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[str, dict]:
    """What the suite printed, and its JSON."""
    path = tmp_path_factory.mktemp("suite") / "result.json"
    # Of a machine that chooses kernels for all programs, the suite would refuse low ones.
    environment = {name: value for name, value in os.environ.items() if name != blas.VARIABLE} | {
        "OMP_NUM_THREADS": "1"
    }
    command = [sys.executable, str(PROGRAM), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(path.read_text())


def test_every_method_ran(finished):
    rows = rows_of(finished[1]["benchmarks"])
    ran = {(row.op, row.method) for row in rows}
    baselines = {"torch cdist+argmin", "torch addmm+argmin", "scikit-learn", "vector-quantize-pytorch"}
    for op in ("codebook_lookup", "lookup growth"):
        assert {(op, baseline) for baseline in baselines} <= ran
    assert {("codebook_lookup", f"soho_fast {level}") for level in LEVELS} <= ran
    assert {("VisualDictionary", "soho_fast"), ("VisualDictionary", "soho_fast in vector-quantize-pytorch")} <= ran
    assert {("KMeans", name) for name in ("soho_fast", "scikit-learn")} <= ran
    assert {row.method for row in rows if row.op == "machine limit"} == {
        "float32 product",
        "bfloat16 product",
        "copy",
        "read",
    }
    kinds = {row.case.rpartition(" ")[0] for row in rows if row.case.startswith("real ")}
    assert kinds >= {"real mobilenet_v2", "real photo windows"}
    assert all(row.wrong == 0.0 for row in rows if row.ours)
    for level in LEVELS:
        assert {row.level for row in rows if row.method == f"soho_fast {level}"} == {level}


def test_the_end_of_the_output_and_the_json_hold_ratios_and_targets(finished):
    output, result = finished
    end = output[output.index("= ops: ") :]
    ratios = {"codebook_lookup", "codebook_update", "group_mask", "residual_lookup", "KMeans", "KMeans.fit"}
    ratios |= {"VisualDictionary"}
    sections = re.split(r"=+ ops: (\S+) =+", end[: end.index("= ops: hard inputs")])
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert found.keys() == ratios and all(re.search(r" \d\S*x", table) for table in found.values())
    targets = result["ops"]["targets"]
    assert len(targets) == 34 and all(target["claim"] in end for target in targets)
    measured = [target for target in targets if target["met"] is not None]
    expected = {
        "codebook_update", "group_mask", "codebook_lookup small", "codebook_lookup few", "codebook_lookup one row",
        "codebook_lookup real", "codebook_lookup float32",
    }  # fmt: skip
    expected |= {"VisualDictionary normal noise", "VisualDictionary real", "KMeans"}
    assert {target["claim"].split(":")[0] for target in measured} >= expected
    assert f"torch {version('torch')}" in end and "1 threads" in end
    assert "limits: float32 product " in end
    kernels = result["ops"]["blas"]
    present = {name for name, number in result["ops"]["versions"].items() if number != "absent"}
    assert kernels.keys() == present - {"vector-quantize-pytorch"}  # which calls torch's
    assert f"BLAS kernels: {blas_text(kernels)}" in end
    assert "node" not in result["machine_info"]


def test_the_end_of_the_output_says_what_is_missing(finished):
    output, result = finished
    absent = [name for name, number in result["ops"]["versions"].items() if number == "absent"]
    assert all(f"of the cases: {name} is not installed (pip install 'soho_fast[bench]')" in output for name in absent)
    assert "of the cases: needs a run of the demo: SOHO_FAST_BENCH_RUN names its folder" in output


def test_the_result_renders(finished, tmp_path):
    result = tmp_path / "result.json"
    result.write_text(json.dumps(finished[1]))
    for page in (render.USERS, render.TARGETS):
        (tmp_path / page).parent.mkdir()
        (tmp_path / page).write_text("<!-- ops: begin -->\n<!-- ops: end -->\n")
    render.main([str(result), "--root", str(tmp_path)])
    text = (tmp_path / render.USERS).read_text()
    assert "### codebook_lookup\n" in text and "| 300x70x24 float32 |" in text and "scikit-learn" in text
    cpu = finished[1]["machine_info"]["cpu"]
    assert all(str(cpu[name]) in text.splitlines()[1] for name in ("brand_raw", "family", "model") if name in cpu)
    assert (tmp_path / "docs/benchmarks.png").stat().st_size > 10_000


def test_a_wrong_result_of_ours_is_not_timed(tmp_path):
    """A lookup that answers wrongly makes its cases fail, and leaves no time behind."""
    program = tmp_path / "wrong.py"
    program.write_text(
        "import runpy, sys\n"
        "from soho_fast import ops\n"
        "right = ops.codebook_lookup\n"
        "def wrong(features, codebook, **options):\n"
        "    index = right(features, codebook, **options)\n"
        "    return index if options else index.roll(1)\n"
        "ops.codebook_lookup = wrong\n"
        f"sys.argv = [{str(PROGRAM)!r}, {str(tmp_path / 'result.json')!r}]\n"
        "import pytest\n"
        "main = pytest.main\n"
        "pytest.main = lambda arguments: main([*arguments, '-k', 'test_every_level'])\n"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "of the results are wrong: not timed" in done.stdout
    if (tmp_path / "result.json").exists():
        assert not rows_of(json.loads((tmp_path / "result.json").read_text() or "{}").get("benchmarks", []))
