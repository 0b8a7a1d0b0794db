"""The campaign loses nothing of the product as it is, and notices each of the worse ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def printed(*command, seconds=900):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_each_class_and_one_fault_of_each_loses_nothing():
    page = (ROOT / "docs/failures.md").read_text().partition("\n## Faults tried\n")[2]
    rows = [line for line in printed("tests/faults", "--count", "1").splitlines() if line.startswith("| `")]
    of_page = re.findall(r"`(\w+)`", page.partition("Classes: ")[2].partition("\n\n")[0])
    assert of_page == [re.match(r"\| `(\w+)` \|", row)[1] for row in rows]
    assert all(row.endswith("| 0 |") for row in rows), rows


def test_the_campaign_notices_worse_products():
    lines = printed("tests/faults/mutants.py", seconds=1800).splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(found) >= 10, lines
    assert all(without == 0 and with_it > 0 for without, with_it in (mutant["lost"] for mutant in found)), lines
