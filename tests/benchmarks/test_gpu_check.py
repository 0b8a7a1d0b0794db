"""The GPU check without a GPU: what it refuses, the result it would write, and its measurements on the CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import cases, check
from soho_fast import ops

ROOT = Path(__file__).resolve().parents[2]
has_ours = pytest.mark.skipif("cpu" not in ops.available_backends(), reason="the compiled extension is absent")
BUDGET = 0.01


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_refuses_in_one_sentence_without_a_gpu(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/gpu/check.py", "--results", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("gpu-check: ")
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("; nothing was measured.\n")
    assert not list(tmp_path.iterdir())


def test_the_steps_hide_nothing(monkeypatch):
    """One failure leaves the other tests to run, and the sanitizer sees each allocation."""
    monkeypatch.setattr(check.shutil, "which", lambda program: f"/bin/{program}")
    steps = {name: (command, environment) for name, command, environment in check.test_commands()}
    assert list(steps) == ["op tests on the device", "compute-sanitizer"]
    for command, _ in steps.values():
        assert not {"-x", "--exitfirst"} & set(command)
        assert all((ROOT / word).is_file() for word in command if word.endswith(".py"))
    assert steps["compute-sanitizer"][1] == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    told = [sys.executable, "-c", "import os; print(os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'])"]
    assert check.run_step("environment", told, 60, **steps["compute-sanitizer"][1])["last_line"] == "1"


def _in_small(monkeypatch):
    monkeypatch.setattr(cases, "LOOKUPS", ((200, 20, 8),))
    monkeypatch.setattr(cases, "BATCHED", ((3, 50, 20, 8),))
    monkeypatch.setattr(cases, "UPDATES", ((200, 20, 8),))
    monkeypatch.setattr(cases, "MASKS", ((3, 7, 8),))
    monkeypatch.setattr(cases, "LAYERS", ())
    limits, exact = cases.machine_limits, cases.exact_rows
    eager = cases.eager_lookup
    monkeypatch.setattr(cases, "_lookup_baselines", lambda x, d, device: {"torch eager": lambda: eager(x, d)})
    monkeypatch.setattr(cases, "machine_limits", lambda *args: limits(*args, size=16, copied=1 << 12))
    monkeypatch.setattr(cases, "exact_rows", lambda device, budget: exact(device, 60, most=300, chunk=200))


@has_ours
def test_every_case_measures_and_is_json(monkeypatch):
    _in_small(monkeypatch)
    measured = json.loads(json.dumps(check.measure("cpu", time.perf_counter() + 600, BUDGET)))
    assert [case["op"] for case in measured["cases"]] == [
        *(["codebook_lookup"] * 2), "codebook_lookup, batched", "codebook gradient",
        "codebook_update", "group_mask",
    ]  # fmt: skip
    assert measured["left_out"] == 0 and measured["limits"]["copy_bytes_per_second"] > 0
    assert measured["exact_rows"] == {"rows": 300, "backends": ["cpu"], "different": 0}
    for case in measured["cases"]:
        assert any(name.startswith("cpu") for name in case["methods"])
        assert all(row["seconds"] > 0 for row in case["methods"].values())
    for case in (*measured["cases"][:2], *measured["cases"][-2:]):
        assert "cpu" in case["methods"] and any("torch" in name for name in case["methods"])
    assert measured["cases"][0]["methods"]["cpu"]["wrong"] == 0.0
    assert measured["cases"][-1]["methods"]["cpu in place"]["same"] is True


@has_ours
def test_a_wrong_backend_of_ours_is_not_timed(monkeypatch):
    lookup = ops.codebook_lookup
    monkeypatch.setattr(ops, "codebook_lookup", lambda *a, backend: lookup(*a, backend=backend) + (backend == "cpu"))
    with pytest.raises(AssertionError, match="cpu differs from the float64 argmin"):
        cases.lookup_case((50, 20, 8), torch.float32, "cpu", BUDGET)


def test_steps(capsys):
    passed = check.run_step("one", [sys.executable, "-c", "print('7 passed')"], 60)
    assert passed["outcome"] == "passed" and passed["last_line"] == "7 passed"
    assert check.run_step("two", [sys.executable, "-c", "raise SystemExit(3)"], 60)["outcome"] == "failed"
    late = check.run_step("three", [sys.executable, "-c", "import time; time.sleep(60)"], 1)
    assert late["outcome"] == "out of time" and late["seconds"] < 30
    assert "three: out of time" in capsys.readouterr().out
