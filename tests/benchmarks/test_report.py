"""From records to ratios, shares of the limits and targets."""

import json
from pathlib import Path

import pytest

from benchmarks.ops import report, targets
from benchmarks.ops.report import Row, rows_of

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"


@pytest.mark.parametrize("name", ["amd-epyc-family-25-model-17", "intel-xeon-family-6-model-207"])
def test_targets_are_judged_as_when_the_stored_results_were_made(name):
    stored = json.loads((RESULTS / f"ops-{name}.json").read_text())["ops"]
    found = [vars(each) for each in targets.verdicts([Row(**row) for row in stored["rows"]])]
    claims = {each["claim"] for each in found}
    assert len(found) >= 30 and {each["met"] for each in found} >= {True, False}
    assert found == [each for each in stored["targets"] if each["claim"] in claims]


def record(op, case, method, seconds, *, wrong=0.0, shape=(2, 3, 4), work=None, **info) -> dict:
    known = dict(op=op, case=case, method=method, wrong=wrong, level="", shape=list(shape), work=work or {})
    return {"extra_info": {**known, "threads": 2, **info}, "stats": {"min": seconds}}


def test_ratios_and_shares_of_the_limits():
    records = [
        record("machine limit", "read", "read", 0.5, work={"read": 10e9}),
        record("codebook_update", "a", "soho_fast avx2", 0.3),
        record("codebook_update", "a", "soho_fast", 0.2, work={"read": 2e9, "copy": 1.0}, float64_share=0.01),
        record("codebook_update", "a", "torch index_add_", 0.5, wrong=0.25),
        record("codebook_update", "a", "faiss-cpu", 0.3),
        record("codebook_update", "without a baseline", "soho_fast", 0.2),
        {"extra_info": {"images": 3}, "stats": {"min": 1.0}},  # of another suite
    ]
    rows = rows_of(records)
    assert rows[2].info == {"threads": 2, "float64_share": 0.01}
    assert report.limits_of(rows) == {"read": 20e9}
    table = report.tables(rows, limits=True)["codebook_update"]
    assert list(table.columns) == ["case", "ours", "of the machine's limit", "torch index_add_", "faiss-cpu"]
    assert table.rows == [["a", "200 ms (soho_fast)", "50 % of read", "2.5x (25.00% wrong)", "1.5x"]]
    assert report.tables(rows, limits=False)["codebook_update"].rows == [[*table.rows[0][:2], *table.rows[0][3:]]]
