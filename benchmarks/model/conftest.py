"""Prints the ratios after pytest-benchmark's tables."""


def pytest_terminal_summary(terminalreporter) -> None:
    """One line per shape and precision: how many times faster, and whether the bar holds."""
    from benchmarks.model.comparison import FINISHED

    if FINISHED:
        terminalreporter.section("training step, soho_fast against the eager pipeline")
    for comparison in FINISHED:
        for line in comparison.summary():
            terminalreporter.write_line(line)


def pytest_unconfigure() -> None:
    """Leaves the process group that the engine's step has started."""
    from soho_fast.engine.processes import leave_processes

    leave_processes()
