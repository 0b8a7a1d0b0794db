"""Gloo ranks that fit together: the same centres on all, and those of one process on the joined rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("rank_program.py")
NUM_ROWS = 600


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank of one, two and three found, by number of ranks. Eighths add without rounding, so one process on
    the joined rows must find the same bits where weights are whole."""
    folder = tmp_path_factory.mktemp("ranks")
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(20, 9, generator=generator) * 3
    rows = places[torch.randint(20, (NUM_ROWS,), generator=generator)] + torch.randn(NUM_ROWS, 9, generator=generator)
    rows = (rows * 8).round() / 8
    given = torch.cat([rows[:25], rows[:5] + 1e3])  # five of them empty at first
    weight = torch.randint(0, 4, (NUM_ROWS,), generator=generator).float()
    torch.save({"rows": rows, "weight": weight, "given": given}, folder / "rows.pt")

    def ranks(number):
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, PROGRAM, str(rank), str(number)),
                    *(folder / f"meet{number}", folder / "rows.pt", folder / f"{number}_{rank}.pt"),
                ],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(number)
        ]
        assert [process.wait(timeout=180) for process in processes] == [0] * number
        return [torch.load(folder / f"{number}_{rank}.pt") for rank in range(number)]

    return {number: ranks(number) for number in (1, 2, 3)}


CASES = [(init, weighted) for init in ("mini-batch", "k-means++", "random", "given") for weighted in (False, True)]
CASES += [("batched", False), ("residual", False), ("wide", False)]


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("case", [*CASES, ("minibatch", False), ("heavy", True), ("unseeded", False)], ids=str)
def test_ranks_have_the_same_centres(found, number, case):
    first, *others = (rank["found"][case] for rank in found[number])
    for centers, _, inertia, steps in others:
        assert torch.equal(centers, first[0]) and inertia == first[2] and steps == first[3]


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_find_what_one_process_finds(found, number, case):
    ((centers, labels, inertia, steps),) = (rank["found"][case] for rank in found[1])
    many = [rank["found"][case] for rank in found[number]]
    assert many[0][3] == steps
    assert torch.equal(torch.cat([rank[1] for rank in many]), labels)
    if case[0] in ("residual", "wide"):  # residuals are no eighths, and another share has another median
        torch.testing.assert_close(many[0][0], centers, rtol=2.0**-23, atol=2.0**-23)
        assert many[0][2] == pytest.approx(inertia, rel=1e-6)
    else:
        assert torch.equal(many[0][0], centers)
        assert many[0][2] == pytest.approx(inertia, rel=1e-12)


@pytest.mark.parametrize("number", [2, 3])
def test_heavy_rows_may_all_be_on_one_rank(found, number):
    """Each is in many batches, as it is in one process."""
    (one,) = (rank["found"]["heavy", True] for rank in found[1])
    assert found[number][0]["found"]["heavy", True][2] < 1.1 * one[2]


def test_a_rank_may_fit_alone(found):
    first, second = (rank["found"]["alone", False] for rank in found[2])
    assert len(first[1]) == NUM_ROWS // 3 and len(second[1]) == NUM_ROWS - NUM_ROWS // 3
    assert not torch.equal(first[0], second[0])


def test_all_ranks_refuse_what_one_refuses(found):
    first, second = (rank["refused"] for rank in found[2])
    assert first[0] == second[0] == "X: expected the same number of features on every rank, got [9, 5]"
    assert first[1].startswith("X: expected finite values in float32")
    assert second[1].startswith("rank 0 refused its rows: ValueError: X: expected finite values")
    for number, name in ((2, "n_clusters"), (3, "init")):
        for told in (first, second):
            assert told[number].startswith(f"{name}: expected the same on every rank")
    expected = "partial_fit: expected the same centres so far on every rank, but some ranks have none"
    assert first[4] == second[4] == expected
