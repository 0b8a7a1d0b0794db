"""Prints stages and ratios after pytest-benchmark's tables."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter) -> None:
    """A line for each method: its stages, and how many times as long bottom-up attention in float32 takes."""
    from benchmarks.inference.baselines import REGION
    from benchmarks.inference.measure import FINISHED
    from benchmarks.inference.targets import BATCHED, BY_CLASS
    from benchmarks.tables import Table, as_text

    lines = []
    for row in FINISHED:
        stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in row.seconds.items())
        regions = [each for each in FINISHED if each.family == REGION]
        ratios = [f"{each.total(nms) / row.total():.1f}x" for each in regions for nms in (BY_CLASS, BATCHED)]
        lines.append((row.method, stages, " / ".join(ratios)))
    if lines:
        terminalreporter.section("inference: ratios")
        head = ("", "seconds of a pass's stages", f"regions in float32 take, {BY_CLASS} / {BATCHED}")
        terminalreporter.write_line(as_text(Table(head, lines)))
