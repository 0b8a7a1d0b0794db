"""The op benchmarks run whole, on small shapes: every contender is there and right, and the result renders."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import render
from benchmarks.ops.report import rows_of
from soho_fast import ops

PROGRAM = Path(__file__).with_name("small_op_suite.py")
LEVELS = ops.build_info().get("cpu_levels_available", [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[str, dict]:
    """What the suite printed, and its JSON."""
    path = tmp_path_factory.mktemp("suite") / "result.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(path.read_text())


def test_every_contender_ran(finished):
    rows = rows_of(finished[1]["benchmarks"])
    ran = {(row.op, row.contender) for row in rows}
    peers = {"torch cdist+argmin", "torch addmm+argmin", "scikit-learn", "vector-quantize-pytorch"}
    for op in ("codebook_lookup", "lookup growth"):
        assert {(op, peer) for peer in peers} <= ran
    assert {("codebook_lookup", f"soho_fast {level}") for level in LEVELS} <= ran
    assert {("VisualDictionary", "soho_fast"), ("VisualDictionary", "soho_fast in vector-quantize-pytorch")} <= ran
    assert {("KMeans", name) for name in ("soho_fast", "scikit-learn")} <= ran
    assert {row.contender for row in rows if row.op == "machine limit"} == {
        "float32 product",
        "bfloat16 product",
        "copy",
        "read",
    }
    kinds = {row.case.rpartition(" ")[0] for row in rows if row.case.startswith("real ")}
    assert kinds >= {"real mobilenet_v2", "real photo windows"}
    assert all(row.wrong == 0.0 for row in rows if row.ours)
    for level in LEVELS:
        assert {row.level for row in rows if row.contender == f"soho_fast {level}"} == {level}


def test_the_end_of_the_output_and_the_json_hold_ratios_and_bars(finished):
    output, result = finished
    end = output[output.index("ops: ratios") :]
    bars = result["soho_fast"]["bars"]
    assert len(bars) == 30 and all(bar["claim"] in end for bar in bars)
    measured = [bar for bar in bars if bar["held"] is not None]
    expected = {
        "codebook_update",
        "group_mask",
        "codebook_lookup small",
        "codebook_lookup real",
        "codebook_lookup float32",
    }
    expected |= {"VisualDictionary normal noise", "VisualDictionary real", "KMeans"}
    assert {bar["claim"].split(":")[0] for bar in measured} >= expected
    assert f"torch {version('torch')}" in end and "1 threads" in end
    assert result["soho_fast"]["limits_per_second"].keys() >= {"copy", "read"}
    assert "node" not in result["machine_info"]


def test_the_result_renders(finished, tmp_path):
    result, page = tmp_path / "result.json", tmp_path / "results.md"
    result.write_text(json.dumps(finished[1]))
    page.write_text(f"{render.BEGIN}\n{render.END}\n")
    paths = {"page": page, "figure": tmp_path / "figure.png", "store": tmp_path / "stored.json"}
    render.main([str(result), *(f"--{name}={path}" for name, path in paths.items())])
    text = page.read_text()
    assert "| codebook_lookup 300x70x24 float32 |" in text and "scikit-learn" in text
    assert (tmp_path / "figure.png").stat().st_size > 10_000


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
