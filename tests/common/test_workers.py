"""Loader processes: what they give is what would have been loaded here, and none is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from soho_fast.common.workers import loaded_ahead

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
from soho_fast.common.workers import loaded_ahead

loads = loaded_ahead(lambda number: bytes(1_000_000), range(100), workers=2)
next(loads)
print("begun", flush=True)
input()
"""


class UnreadableError(ValueError):
    """Told by a load."""


def load(number: int) -> dict:
    if number == 3:
        raise UnreadableError(f"{number} can't be read")
    return {"pixels": torch.full((2,), number), "mask": None, "names": [str(number)]}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loads_come_in_order_and_an_error_as_it_was_raised(workers):
    torch.manual_seed(0)
    expected_next = torch.rand(())
    torch.manual_seed(0)
    loaded = []
    with pytest.raises(UnreadableError, match=r"^3 can't be read$"):
        for item in loaded_ahead(load, [7, 1, 2, 0, 3, 4], workers=workers):
            loaded.append(item)
    assert [(item["pixels"].tolist(), item["mask"], item["names"]) for item in loaded] == [
        ([number] * 2, None, [str(number)]) for number in (7, 1, 2, 0)
    ]
    assert torch.equal(torch.rand(()), expected_next), "the global generator is left alone"
    assert not multiprocessing.active_children()


def test_loader_processes_end_with_an_iterator_that_is_closed():
    with closing(loaded_ahead(load, range(100, 200), workers=2)) as items:
        assert next(items)["pixels"][0] == 100 and len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    assert list(loaded_ahead(load, [], workers=2)) == []


def test_loader_processes_end_with_a_process_that_is_killed():
    """Each holds a load that is larger than a pipe, which nobody reads any more."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)  # Until the last of them has left its standard output.
