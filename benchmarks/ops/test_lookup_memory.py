"""Extra memory of a lookup when N or K grows; the time shown is that of the measuring process, and means nothing."""

import pytest
import torch

from benchmarks.memory import in_a_process
from benchmarks.ops.lookup_memory import METHODS, extra_bytes
from benchmarks.ops.shapes import MEMORY_NKC, text
from benchmarks.short import first_by_default


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", first_by_default(MEMORY_NKC), ids=text)
def test_lookup_memory(shape, method, benchmark):
    benchmark.group = f"lookup memory {text(shape)}"
    grown = benchmark.pedantic(in_a_process, args=(extra_bytes, method, shape), rounds=1)
    if grown is None:
        pytest.skip("this system does not let a process restart the peak of its memory (/proc/self/clear_refs)")
    assert grown > 0
    benchmark.extra_info.update(
        op="lookup memory",
        case=text(shape),
        shape=list(shape),
        method=method,
        wrong=0.0,
        level="",
        threads=torch.get_num_threads(),
        work={},
        extra_bytes=grown,
    )
