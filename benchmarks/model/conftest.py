"""Prints the ratios after pytest-benchmark's tables."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter) -> None:
    """One line per shape and precision: how many times faster, and whether the target is met."""
    from benchmarks.model.comparison import FINISHED
    from benchmarks.ops.report import training_steps
    from benchmarks.tables import as_text

    if steps := [row for comparison in FINISHED for row in comparison.rows()]:
        terminalreporter.section("training step: ratios, of medians")
        terminalreporter.write_line(as_text(training_steps(steps)))


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    """Puts the same next to the records."""
    from benchmarks.model.comparison import FINISHED

    output_json["training_steps"] = [row for comparison in FINISHED for row in comparison.rows()]


def pytest_unconfigure() -> None:
    """Leaves the process group that the engine's step has started."""
    from soho_fast.engine.distributed import leave_processes

    leave_processes()
