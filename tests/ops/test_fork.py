"""A forked child, after its parent has run two threads: what docs/ops.md says to do is enough."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
import torch
from soho_fast import ops

features, codebook = torch.randn(20000, 64), torch.randn(512, 64)
torch.set_num_threads(2)
expected = ops.codebook_lookup(features, codebook)
if sys.argv[1] == "parent":
    torch.set_num_threads(1)
child = os.fork()
if child == 0:
    if sys.argv[1] == "child":
        torch.set_num_threads(1)
    os._exit(not torch.equal(ops.codebook_lookup(features, codebook), expected))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("who", ["parent", "child"])
def test_a_lookup_in_a_forked_child_with_one_thread(who):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, who], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "0", done.stderr
