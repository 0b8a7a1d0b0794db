"""Tells images a second after pytest-benchmark's tables, and puts them beside its records."""

import pytest

from benchmarks.data.report import rows_of, table
from benchmarks.tables import as_text


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    """What the table of docs/training.md is rendered from."""
    if rows := rows_of(output_json["benchmarks"]):
        machine = output_json["machine_info"].get("cpu", {}).get("brand_raw", "unnamed CPU")
        output_json["decoding"] = {"machine": machine, "datetime": output_json["datetime"], "rows": rows}


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config) -> None:
    session = getattr(config, "_benchmarksession", None)
    records = [bench.as_dict(include_data=False) for bench in session.benchmarks if bench] if session else []
    if rows := rows_of(records):
        terminalreporter.section("decoding: ratios")
        terminalreporter.write_line(as_text(table(rows)))
