"""Timing of the op benchmarks: a result is checked before it is timed, and a wrong one of ours is never timed.

Every competition (op, case) is a pytest-benchmark group with its contenders as rows. After the tables of
pytest-benchmark come the ratios, the share of the machine's limits and the bars (report.py, bars.py); --benchmark-json
holds all of it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from soho_fast import ops

MIN_ROUNDS, MAX_ROUNDS = 3, 60
PACKAGES = ("torch", "numpy", "faiss-cpu", "scikit-learn", "superkmeans", "vector-quantize-pytorch")


@pytest.fixture
def time_checked(benchmark) -> Iterator[Callable]:
    """Function that times `call()` in the competition (op, case) after `share_wrong(call())` was looked at.

    Arguments: op, case, shape, contender, call, share_wrong; by name: max_wrong, the share of wrong results above which
    it is refused (0 for ours; a peer may lose near-ties); level, the CPU level of ours to force; work, how much of each
    machine limit the call needs (name -> operations or bytes); more for `extra_info`.
    """

    from benchmarks.ops.shapes import SECONDS_PER_CASE

    def run(op, case, shape, contender, call, share_wrong, *, max_wrong=0.0, level=None, work=None, **info) -> None:
        if level is not None:
            ops.set_cpu_level(level)
        before = _lookup_totals()
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        looked_up = {name: total - before[name] for name, total in _lookup_totals().items()}
        wrong = share_wrong(result)
        if wrong > max_wrong:
            pytest.fail(f"{contender}: {wrong:.2%} of the results are wrong: not timed")
        del result
        if seconds < 2 * SECONDS_PER_CASE:  # the first call also warmed up
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
        benchmark.group = f"{op} {case}, {torch.get_num_threads()} threads"
        benchmark.extra_info.update(
            op=op,
            case=case,
            shape=list(shape),
            contender=contender,
            wrong=wrong,
            level=ops.build_info().get("cpu_level", "") if contender.startswith("soho_fast") else "",
            threads=torch.get_num_threads(),
            work=work or {},
            float64_share=looked_up["compared"] / looked_up["rows"] if looked_up.get("rows") else None,
            **info,
        )
        benchmark.pedantic(call, rounds=min(max(int(SECONDS_PER_CASE / seconds), MIN_ROUNDS), MAX_ROUNDS))

    yield run
    if ops.build_info()["extension"]:
        ops.set_cpu_level(None)


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded source of the inputs, the same for every contender of a group."""
    return torch.Generator().manual_seed(0)


def _lookup_totals() -> dict[str, int]:
    """Rows of all lookups of ours so far, and how many of them float64 decided; {} without the extension."""
    try:
        from soho_fast import _C
    except ImportError:
        return {}
    return _C.lookup_totals()


def _setup() -> dict:
    """What ran: versions of ours and of the peers, threads, levels."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {"versions": versions, "threads": torch.get_num_threads(), "build": ops.build_info()}


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    """Puts the setup, the limits, the ratios and the bars next to the records."""
    from benchmarks.ops import bars, report

    output_json.get("machine_info", {}).pop("node", None)  # a result is published; the machine's name says nothing
    rows = report.rows_of(output_json["benchmarks"])
    output_json["soho_fast"] = {
        **_setup(),
        "limits_per_second": report.limits_of(rows),
        "ratios": report.ratio_table(rows),
        "hard_inputs": [asdict(item) for item in bars.hard_inputs(rows)],
        "bars": [asdict(verdict) for verdict in bars.verdicts(rows)],
    }


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config) -> None:
    """The same as text, after pytest-benchmark's tables."""
    from benchmarks.ops import bars, report

    session = getattr(config, "_benchmarksession", None)
    records = [bench.as_dict(include_data=False) for bench in session.benchmarks if bench] if session else []
    rows = report.rows_of(records)
    if not rows:
        return
    setup = _setup()
    terminalreporter.section("ops: ratios (a peer takes so many times as long)")
    names = ", ".join(f"{name} {number}" for name, number in setup["versions"].items())
    levels = ", ".join(setup["build"].get("cpu_levels_available", ["reference only"]))
    terminalreporter.write_line(f"{setup['threads']} threads; levels {levels}; {names}")
    for name, rate in report.limits_of(rows).items():
        terminalreporter.write_line(f"limit: {name} {rate / 1e9:.1f} G/s")
    for op, case, ours, limit, ratios in report.ratio_table(rows):
        terminalreporter.write_line(f"{op} {case}: {ours}{f' ({limit})' if limit else ''}: {ratios or 'no peer'}")
    for item in bars.hard_inputs(rows):
        terminalreporter.write_line(f"hard input against {item.against}, {item}")
    terminalreporter.section("ops: bars")
    for verdict in bars.verdicts(rows):
        terminalreporter.write_line(f"{verdict.word:12} {verdict.claim}: {verdict.bar}; {verdict.measured}")
