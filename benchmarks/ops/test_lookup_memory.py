"""Extra memory of a lookup when N or K grows; the time shown is that of the measuring process, and means nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ops.shapes import MEMORY_NKC, text
from benchmarks.short import first_by_default

PROGRAM = Path(__file__).with_name("lookup_memory.py")


def extra_bytes(method: str, shape: tuple[int, int, int]) -> int:
    command = [sys.executable, str(PROGRAM), method, *map(str, shape), str(torch.get_num_threads())]
    paths = [str(PROGRAM.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not let a process restart the peak of its memory (/proc/self/clear_refs)")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("method", ["soho_fast", "torch cdist+argmin"])
@pytest.mark.parametrize("shape", first_by_default(MEMORY_NKC), ids=text)
def test_lookup_memory(shape, method, benchmark):
    benchmark.group = f"lookup memory {text(shape)}"
    grown = benchmark.pedantic(extra_bytes, args=(method.split()[0], shape), rounds=1)
    threads = torch.get_num_threads()
    assert grown > 0
    benchmark.extra_info.update(
        op="lookup memory",
        case=text(shape),
        shape=list(shape),
        method=method,
        wrong=0.0,
        level="",
        threads=threads,
        work={},
        extra_bytes=grown,
    )
