"""One fault of each class, on tiny runs of the real commands: nothing is lost."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_one_fault_of_each_class_loses_nothing():
    done = subprocess.run(
        [sys.executable, "tests/faults", "--count", "1"], cwd=ROOT, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| `")]
    assert len(rows) >= 21 and all(line.endswith("| 0 |") for line in rows), done.stdout
