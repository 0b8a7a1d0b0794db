"""Every snippet of docs/ops.md runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from soho_fast import ops

PAGE = (Path(__file__).resolve().parents[2] / "docs/ops.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(number, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning:__main__", "-c", SNIPPETS[number]],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for line, comment in re.findall(r"^ *print\((\w+)\)  # (.*)$", SNIPPETS[number], flags=re.MULTILINE):
        assert comment in done.stdout, line


def test_every_op_has_its_place():
    assert len(SNIPPETS) >= 10
    for name in ops.__all__:
        assert re.search(rf"\b{name}\b", PAGE), name
