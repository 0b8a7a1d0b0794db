"""Two gloo ranks that all-reduce counts and sums end with the codebook of one rank on the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch

PROGRAM = Path(__file__).with_name("rank_program.py")


def _codebooks(num_ranks, folder):
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(rank), str(num_ranks), folder / f"meet{num_ranks}", folder / f"{rank}.pt"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(num_ranks)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * num_ranks
    return [torch.load(folder / f"{rank}.pt") for rank in range(num_ranks)]


def test_two_ranks_equal_one_on_the_joined_batch(tmp_path):
    (joined,) = _codebooks(1, tmp_path)
    first, second = _codebooks(2, tmp_path)
    assert torch.equal(first, second), "ranks drifted apart"
    assert torch.equal(first, joined)
