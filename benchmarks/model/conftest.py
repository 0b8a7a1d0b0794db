"""Prints the ratios after pytest-benchmark's tables."""


def pytest_terminal_summary(terminalreporter) -> None:
    """One line per shape and precision: how many times faster, and whether the bar holds."""
    from benchmarks.model.comparison import FINISHED

    if FINISHED:
        terminalreporter.section("training step, soho_fast against the eager pipeline")
    for row in (row for comparison in FINISHED for row in comparison.rows()):
        verdict = "held" if row["ratio"] >= row["bar"] else "MISSED"
        terminalreporter.write_line(
            f"{row['shape']}, {row['contender']}: {row['images_per_second']:.1f} images/s against "
            f"{row['eager_images_per_second']:.1f}: {row['ratio']:.2f}x (fastest rounds {row['fastest_ratio']:.2f}x, "
            f"CPU time {row['cpu_ratio']:.2f}x), bar {row['bar']:g}x {verdict}"
        )


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    """Puts the same next to the records."""
    from benchmarks.model.comparison import FINISHED

    output_json["training_steps"] = [row for comparison in FINISHED for row in comparison.rows()]


def pytest_unconfigure() -> None:
    """Leaves the process group that the engine's step has started."""
    from soho_fast.engine.distributed import leave_processes

    leave_processes()
