"""Rows of a study's file as it was before: told, and not compared with those of its settings now."""

from soho_fast.studies.matrix import runs_of
from soho_fast.studies.report import rows_by_cell
from soho_fast.studies.study import find_study, read_study


def _row(run, digest):
    names = {name: getattr(run.cell, name) for name in ("arm", "seed", "stage", "variant")}
    return {"study": "planted", **names, "digest": digest, "measures": {"score": 0.5}}


def test_rows_of_before_are_taken_where_there_are_none_of_today():
    runs = runs_of(read_study(find_study("planted")))
    before = [_row(run, f"before {number}") for number, run in enumerate(runs)]
    cells, old = rows_by_cell("planted", runs, before)
    assert len(cells) == old == len(runs)
    # One arm was made anew by other settings; the other arms' rows are of before.
    anew = [_row(run, run.digest) for run in runs if run.cell.arm == "leaked"]
    cells, old = rows_by_cell("planted", runs, before + anew)
    assert {cell.arm for cell in cells} == {"leaked"} and old == 0
