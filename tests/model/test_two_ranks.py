"""Two ranks on gloo against one process on the joined batch."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """First rank, second rank, one process."""
    folder = tmp_path_factory.mktemp("ranks")
    script, names = Path(__file__).with_name("two_ranks.py"), ("0", "1", "alone")
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    processes = [subprocess.Popen([sys.executable, script, folder, name], env=environment) for name in names]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{name}.pt") for name in names]


@pytest.mark.parametrize("kind", ["paper", "official"])
def test_both_ranks_hold_the_same_bits(results, kind):
    first, second, _ = (result[kind] for result in results)
    moved = ("visual_dictionary", "feature_norm.running", "fusion.norm.running")
    names = [name for name in first["state"] if any(part in name for part in moved)]
    assert len(names) > (4 if kind == "paper" else 10)
    assert [name for name in names if not torch.equal(first["state"][name], second["state"][name])] == []
    assert first["num_reset"] == second["num_reset"] and bool(first["num_reset"]) == (kind == "paper")
    assert torch.equal(first["losses"], second["losses"]), "every rank reports the loss of the joined batch"


@pytest.mark.parametrize("kind", ["paper", "official"])
def test_two_ranks_train_as_one_process_on_the_joined_batch(results, kind):
    first, _, one = (result[kind] for result in results)
    torch.testing.assert_close(first["losses"], one["losses"], rtol=2e-4, atol=2e-4)
    assert first["num_reset"] == one["num_reset"]
    for name, value in one["state"].items():
        torch.testing.assert_close(first["state"][name], value, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_micro_batches_and_ranks_move_the_dictionary_as_one_batch(results):
    """1, 2 and 4 micro-batches on 1 and 2 ranks, bit for bit: the sums are exact, and all else follows from them."""
    expected = results[2]["dictionaries"][1]
    for rank, parts in itertools.product(range(3), (1, 2, 4)):
        found = results[rank]["dictionaries"][parts]
        different = [name for name, value in expected["state"].items() if not torch.equal(found["state"][name], value)]
        assert not different, (rank, parts, different)
        torch.testing.assert_close(found["figures"], expected["figures"], rtol=1e-5, atol=1e-6)
