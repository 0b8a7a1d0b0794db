"""Makes `benchmarks` importable under a bare `pytest`, and prints the ratios after pytest-benchmark's tables."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)


def pytest_terminal_summary(terminalreporter) -> None:
    """One line per shape: how many times faster, and whether the bar holds."""
    from benchmarks.model.comparison import FINISHED

    if FINISHED:
        terminalreporter.section("training step, soho_fast against the eager pipeline")
    for comparison in FINISHED:
        terminalreporter.write_line(comparison.summary())
