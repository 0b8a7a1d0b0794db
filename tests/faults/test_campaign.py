"""The campaign loses nothing of the product as it is, and notices each of the worse ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_each_class():
    tried = (ROOT / "docs/faults.md").read_text().partition("## What is not promised")[0]
    told = subprocess.run(
        [sys.executable, "tests/faults", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    classes = re.search(r"Classes, with commas: ([\w, ]+)\.", " ".join(told.stdout.split()))
    assert sorted(re.findall(r"^\| `(\w+)` \|", tried, re.MULTILINE)) == sorted(classes[1].split(", "))


def test_the_campaign_notices_worse_products():
    done = subprocess.run(
        [sys.executable, "tests/faults/mutants.py"], cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) >= 18, done.stdout
    for mutant in found:
        without, with_it = mutant["lost"]
        assert without == 0 and with_it > 0, done.stdout
