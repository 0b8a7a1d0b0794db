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
    # Targets come and go; a new one is of cases that these results have not.
    claims, before = ({each["claim"] for each in those} for those in (found, stored["targets"]))
    assert all(each["met"] is None for each in found if each["claim"] not in before)
    common = [each for each in found if each["claim"] in before]
    assert len(common) >= 30 and {each["met"] for each in common} >= {True, False}
    assert common == [each for each in stored["targets"] if each["claim"] in claims]


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


def by_claim(records, part) -> targets.Verdict:
    (found,) = [item for item in targets.verdicts(rows_of(records)) if part in item.claim]
    return found


def test_growth_looks_at_doublings_in_order_of_size():
    def growth(*seconds, sizes=(1000, 2000, 4000)) -> list[dict]:
        pairs = zip(sizes, seconds, strict=True)
        return [record("lookup growth", f"N={n}", "soho_fast", taken, series="N", size=n) for n, taken in pairs]

    assert by_claim(growth(1.0, 2.0, 4.0)[::-1], "when N is doubled").met is True
    assert by_claim(growth(1.0, 2.0, 4.5), "when N is doubled").met is False
    assert by_claim(growth(1.0, 2.0, 4.5), "when K is doubled").met is None
    assert by_claim(growth(1.0, 2.0, 40.0, sizes=(1000, 2000, 9000)), "when N is doubled").measured == "2.00x"


@pytest.mark.parametrize(("extra", "met"), [(9 * 2**20, True), (64 * 2**20, False)])
def test_memory_may_not_grow_with_the_matrix(extra, met):
    records = [record("lookup memory", "a", "soho_fast", 1.0, shape=(16384, 1024, 64), extra_bytes=extra)]
    found = by_claim(records, "extra memory")
    assert found.met is met and "N x K would be 64 MiB" in found.measured
