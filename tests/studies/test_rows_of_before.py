"""Reports of rows that are not all a study asks for: of its file as it was before, of other data, or too few."""

import json

from soho_fast.studies.matrix import runs_of
from soho_fast.studies.report import rows_by_cell, write_report
from soho_fast.studies.study import find_study, read_study


def _row(run, digest):
    names = {name: getattr(run.cell, name) for name in ("condition", "seed", "stage")}
    return {"study": "planted", **names, "digest": digest, "metrics": {"score": 0.5}}


def test_rows_of_before_are_taken_where_there_are_none_of_today():
    runs = runs_of(read_study(find_study("planted")))
    before = [_row(run, f"before {number}") for number, run in enumerate(runs)]
    cells, old = rows_by_cell("planted", runs, before)
    assert len(cells) == old == len(runs)
    # One condition was made anew by other settings; the other conditions' rows are of before.
    anew = [_row(run, run.digest) for run in runs if run.cell.condition == "leaked"]
    cells, old = rows_by_cell("planted", runs, before + anew)
    assert {cell.condition for cell in cells} == {"leaked"} and old == 0


def test_what_is_not_known_is_null_in_the_file_of_differences(tmp_path):
    study = read_study(find_study("planted"))
    runs = runs_of(study)
    rows = [{**_row(run, run.digest), "metrics": {"val.vqa_score": 0.5}} for run in runs if run.cell.seed == 0]
    write_report(tmp_path, "planted", study, runs, rows)
    lines = [json.loads(line, parse_constant=str) for line in (tmp_path / "differences.jsonl").read_text().splitlines()]
    assert [(line["mean"], line["low"], line["p"]) for line in lines] == [(0.0, None, None)] * 4, lines


def test_rows_of_other_data_are_told(tmp_path):
    """The data are the same for all conditions; which share is trained on, for those of a seed."""
    study = read_study(find_study("dictionary"))
    runs = [run for run in runs_of(study) if run.cell.stage == "vqa" and run.cell.condition in ("none", "one level")]

    def page(changed, what):
        rows = []
        for run in runs:
            data = {"training data": f"8 records, of seed {run.cell.seed}", "held-out data": "9 records, 4f"}
            if run is changed:
                data[what] = "7 records, 00"
            rows.append({**_row(run, run.digest), "data": data})
        write_report(tmp_path, "dictionary", study, runs, rows)
        return (tmp_path / "report.md").read_text()

    first, *_, last = runs
    assert ": another " not in page(None, "")
    for what, other, known in (
        ("held-out data", first, "9 records, 4f"),
        ("training data", runs[-2], f"8 records, of seed {last.cell.seed}"),
    ):
        told = page(last, what)
        assert told.count(": another ") == 1, told
        assert f"**{last.cell}: another {what} than of {other.cell}: 7 records, 00, not {known}**" in told, told
