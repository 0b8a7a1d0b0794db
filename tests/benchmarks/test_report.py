"""From records to ratios, shares of the limits and targets."""

import pytest

from benchmarks.ops import report, targets
from benchmarks.ops.report import rows_of


def record(op, case, method, seconds, *, wrong=0.0, shape=(2, 3, 4), work=None, **info) -> dict:
    known = dict(op=op, case=case, method=method, wrong=wrong, level="", shape=list(shape), work=work or {})
    return {"extra_info": {**known, "threads": 2, **info}, "stats": {"min": seconds}}


def verdict(records, claim) -> targets.Verdict:
    (found,) = [
        item for item in targets.verdicts(rows_of(records)) if item.claim == claim and "geometric" in item.target
    ]
    return found


AVX512 = "codebook_lookup float32: soho_fast avx512 against faiss-cpu"


def lookups(first, second) -> list[dict]:
    """Two shapes on which faiss takes `first` and `second` times as long as the avx512 level."""
    return [
        record("codebook_lookup", "a float32", "soho_fast avx512", 0.1),
        record("codebook_lookup", "a float32", "soho_fast avx2", 0.3),
        record("codebook_lookup", "a float32", "faiss-cpu", 0.1 * first, wrong=0.01),
        record("codebook_lookup", "b float32", "soho_fast avx512", 2.0),
        record("codebook_lookup", "b float32", "faiss-cpu", 2.0 * second),
        record("codebook_lookup", "a bfloat16", "soho_fast avx512", 0.001),
        record("codebook_lookup", "small float32", "soho_fast avx512", 0.001),
    ]


def test_a_target_is_the_geometric_mean_over_the_shapes():
    missed = verdict(lookups(1.0, 1.3), AVX512)
    assert missed.met is False
    assert missed.measured == "1.14x (1.00 to 1.30 in 2 cases)"
    met = verdict(lookups(1.0, 4.0), AVX512)
    assert met.met is True and met.measured.startswith("2.00x")


def test_a_target_on_every_case_is_missed_by_one():
    records = [
        record("group_mask", case, name, seconds)
        for case, seconds_in_place in (("a", 0.1), ("b", 0.3))
        for name, seconds in (("soho_fast in place", seconds_in_place), ("torch where", 1.0))
    ]
    claim = "group_mask: soho_fast in place against torch where"
    (found,) = [item for item in targets.verdicts(rows_of(records)) if item.claim == claim]
    assert found.met is False and found.measured == "3.33x (3.33 to 10.00 in 2 cases)"


BEST = "codebook_lookup float32: soho_fast at its best level against the fastest baseline"


def test_a_target_takes_our_best_level_and_the_fastest_baseline():
    records = lookups(4.0, 12.0)
    for line in records:
        line["extra_info"]["level"] = line["extra_info"]["method"].removeprefix("soho_fast ")
    found = verdict(records, BEST)
    assert found.met is True and found.measured == "6.93x (4.00 to 12.00 in 2 cases)"
    records.append(record("codebook_lookup", "b float32", "torch addmm+argmin", 16.0))  # faster than faiss there
    assert verdict(records, BEST).measured == "5.66x (4.00 to 8.00 in 2 cases)"
    records.append(record("codebook_lookup", "a float32", "soho_fast avx2 prepared", 0.001, level="avx2"))  # no level
    assert verdict(records, BEST).measured == "5.66x (4.00 to 8.00 in 2 cases)"
    records.append(record("codebook_lookup", "a float32", "soho_fast vnni", 0.05, level="vnni"))
    assert verdict(records, BEST).measured == "8.00x (8.00 to 8.00 in 2 cases)"


def test_a_target_looks_at_its_number_of_channels():
    def lookup(channels, ratio):
        case, shape = f"real x {channels}", (2, 3, channels)
        ours = record("codebook_lookup", case, targets.PREPARED, 1.0, shape=shape)
        return [ours, record("codebook_lookup", case, targets.WITHOUT_PRUNING, ratio, shape=shape)]

    records = [line for channels in (64, 192, 767, 768, 1280) for line in lookup(channels, channels / 100)]
    many, few = (
        by_claim(records, f"real{limits}: soho_fast prepared against") for limits in (" C >= 768", " C >= 192 C < 768")
    )
    assert many.met is True and many.measured == "7.68x (7.68 to 12.80 in 2 cases)"
    assert few.met is False and few.measured == "1.92x (1.92 to 7.67 in 2 cases)"
    assert by_claim(records[:2], "real C >= 768").met is None


def test_a_level_that_did_not_run_is_neither_met_nor_missed():
    found = verdict(lookups(1.0, 4.0), AVX512.replace("avx512", "amx"))
    assert found.met is None


def by_claim(records, part) -> targets.Verdict:
    (found,) = [item for item in targets.verdicts(rows_of(records)) if part in item.claim]
    return found


def growth(seconds, series="N", sizes=(1000, 2000, 4000)) -> list[dict]:
    return [
        record("lookup growth", f"{series}={size}", "soho_fast", taken, series=series, size=size)
        for size, taken in zip(sizes, seconds, strict=True)
    ]


def test_growth_looks_at_doublings_in_order_of_size():
    records = growth([1.0, 2.0, 4.0])
    assert by_claim(records[::-1], "when N is doubled").met is True
    assert by_claim(growth([1.0, 2.0, 4.5]), "when N is doubled").met is False
    assert by_claim(growth([1.0, 2.0, 4.5]), "when K is doubled").met is None
    assert by_claim(growth([1.0, 2.0, 40.0], sizes=(1000, 2000, 9000)), "when N is doubled").measured == "2.00x"


def test_hard_inputs_are_compared_with_a_float32_pass():
    times = {("avx2", "easy"): 2.0, ("avx2", "ties"): 7.0, ("avx512", "easy"): 1.0, ("avx512", "ties"): 3.9}
    times |= {("avx512_vnni", "easy"): 0.5, ("avx512_vnni", "ties"): 3.95, ("avx512_vnni", "copies"): 4.1}
    records = []
    for (level, kind), seconds in times.items():
        records.append(record("hard inputs", "x", f"soho_fast {level}, {kind}", seconds, kind=kind, float64_share=0.5))
        records[-1]["extra_info"]["level"] = level
    found = by_claim(records, "own float32 pass")
    assert found.met is False
    assert targets.hard_table(rows_of(records)).rows == [
        ("x ties: 3.95x (avx512_vnni, 50% of rows in float64)", "a level's own float32 pass"),
        ("x copies: 4.10x (avx512_vnni, 50% of rows in float64)", "a level's own float32 pass"),
    ]
    assert found.measured == "3.95x to 4.10x in 2 cases; x copies: 4.10x (avx512_vnni, 50% of rows in float64)"
    assert by_claim(records[:-1], "own float32 pass").met is True
    assert by_claim(records[:1], "own float32 pass").met is None
    assert by_claim(records, "torch's float32 pass").met is None
    records.append(record("hard inputs", "x", "torch addmm+argmin", 1.5, kind="easy"))
    against_torch = by_claim(records, "torch's float32 pass")
    assert against_torch.met is False and "to 4.67x in 2 cases; x ties: 4.67x (avx2" in against_torch.measured
    records[-1] = record("hard inputs", "x", "torch addmm+argmin", 2.0, kind="easy")
    assert by_claim(records, "torch's float32 pass").met is True


@pytest.mark.parametrize(("extra", "met"), [(9 * 2**20, True), (64 * 2**20, False)])
def test_memory_may_not_grow_with_the_matrix(extra, met):
    records = [
        record("lookup memory", "a", "soho_fast", 1.0, shape=(16384, 1024, 64), extra_bytes=extra),
        record("lookup memory", "a", "torch cdist+argmin", 1.0, shape=(16384, 1024, 64), extra_bytes=2**30),
    ]
    found = by_claim(records, "extra memory")
    assert found.met is met and "N x K would be 64 MiB" in found.measured


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
    assert [row.info for row in rows][2] == {"threads": 2, "float64_share": 0.01}
    assert report.limits_of(rows) == {"read": 20e9}
    table = report.tables(rows, limits=True)["codebook_update"]
    assert list(table.columns) == ["case", "ours", "of the machine's limit", "torch index_add_", "faiss-cpu"]
    assert table.rows == [["a", "200 ms (soho_fast)", "50 % of read", "2.5x (25.00% wrong)", "1.5x"]]
    assert report.tables(rows, limits=False)["codebook_update"].rows == [
        ["a", "200 ms (soho_fast)", *table.rows[0][3:]]
    ]
    assert report.time_text(2.5e-5) == "25 us"


def test_what_was_not_measured_stands_below_what_was():
    verdicts = [targets.Verdict("a", "1x", "did not run", None), targets.Verdict("b", "1x", "2x", True)]
    verdicts.append(targets.Verdict("c", "1x", "0.5x", False))
    assert targets.verdict_table(verdicts).rows == [
        ("b", "1x", "2x", "met"), ("c", "1x", "0.5x", "**missed**"), ("a", "1x", "", "not measured here")
    ]  # fmt: skip
