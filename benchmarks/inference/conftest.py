"""Prints stages and ratios after pytest-benchmark's tables."""


def pytest_terminal_summary(terminalreporter) -> None:
    """A line for each contender: its stages, and how many times faster it is than bottom-up attention in float32."""
    from benchmarks.inference.bars import BATCHED, BY_CLASS
    from benchmarks.inference.contenders import REGION
    from benchmarks.inference.test_inference import FINISHED

    if FINISHED:
        terminalreporter.section("inference: a passes' stages in seconds, and the ratio to regions in float32")
    peers = [row for row in FINISHED if row.family == REGION]
    for row in FINISHED:
        stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in row.seconds.items())
        ratios = [f"{peers[0].total(nms) / row.total():.1f}x ({nms})" for nms in (BY_CLASS, BATCHED) if peers]
        terminalreporter.write_line(f"{row.contender}: {stages}; {', '.join(ratios)}")
