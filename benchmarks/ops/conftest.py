"""Timing of the op benchmarks: a result is checked before it is timed, and a wrong one of ours is never timed.

Every competition (op, case) is a pytest-benchmark group with its methods as rows. After the tables of
pytest-benchmark come the ratios, the share of the machine's limits and the targets (report.py, targets.py);
--benchmark-json holds all of it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from benchmarks import blas
from soho_fast import ops

MIN_ROUNDS, MAX_ROUNDS, SECONDS_PER_ROUND = 3, 60, 5e-4
PACKAGES = ("torch", "numpy", "faiss-cpu", "scikit-learn", "superkmeans", "vector-quantize-pytorch")


@pytest.fixture
def time_checked(benchmark) -> Iterator[Callable]:
    """Function that times `call()` in the competition (op, case) after `share_wrong(call())` was looked at.

    Arguments: op, case, shape, method, call, share_wrong; by name: max_wrong, the share of wrong results above which a
    baseline is refused, which may lose near-ties (ours is for any); level, the CPU level of ours to force; work, how
    much of each machine limit the call needs (name -> operations or bytes); more for `extra_info`.
    """

    from benchmarks.ops.report import OURS
    from benchmarks.ops.shapes import SECONDS_PER_CASE

    def run(op, case, shape, method, call, share_wrong, *, max_wrong=0.0, level=None, work=None, **info) -> None:
        if level is not None:
            ops.set_cpu_level(level)
        before = _lookup_totals()
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        looked_up = {name: total - before[name] for name, total in _lookup_totals().items()}
        wrong, ours = share_wrong(result), method.startswith(OURS)
        if wrong > (0.0 if ours else max_wrong):
            pytest.fail(f"{method}: {wrong:.2%} of the results are wrong: not timed")
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
            method=method,
            wrong=wrong,
            level=ops.build_info().get("cpu_level", "") if ours else "",
            threads=torch.get_num_threads(),
            work=work or {},
            float64_share=looked_up["compared"] / looked_up["rows"] if looked_up.get("rows") else None,
            **info,
        )
        # A call of microseconds is timed by many at a time: beside it the clock would count.
        rounds = min(max(int(SECONDS_PER_CASE / seconds), MIN_ROUNDS), MAX_ROUNDS)
        benchmark.pedantic(call, rounds=rounds, iterations=max(1, int(SECONDS_PER_ROUND / seconds)))

    yield run
    if ops.build_info()["extension"]:
        ops.set_cpu_level(None)


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded source of the inputs, the same for every method of a group."""
    return torch.Generator().manual_seed(0)


def _lookup_totals() -> dict[str, int]:
    """Rows of all lookups of ours so far, and how many of them float64 decided; {} without the extension."""
    try:
        from soho_fast import _C
    except ImportError:
        return {}
    return _C.lookup_totals()


def _setup() -> dict:
    """What ran: versions of ours and of the baselines, their BLAS kernels, threads, levels."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    kernels = blas.recorded(package for package, number in versions.items() if number != "absent")
    return {"versions": versions, "blas": kernels, "threads": torch.get_num_threads(), "build": ops.build_info()}


def _machine(cpu: dict) -> str:
    """The processor's name, and the numbers that tell apart generations of one name, where they are known."""
    numbers = f", family {cpu['family']} model {cpu['model']}" if "family" in cpu and "model" in cpu else ""
    return cpu.get("brand_raw", "unnamed CPU") + numbers


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    """Puts what a page is rendered from beside pytest-benchmark's records."""
    from benchmarks.ops import report, targets

    output_json.get("machine_info", {}).pop("node", None)  # a result is published; the machine's name says nothing
    rows = report.rows_of(output_json["benchmarks"])
    if rows:
        output_json["ops"] = {
            "machine": _machine(output_json["machine_info"].get("cpu", {})),
            **_setup(),
            "datetime": output_json["datetime"],
            "rows": [asdict(row) for row in rows],
            "targets": [asdict(verdict) for verdict in targets.verdicts(rows)],
        }


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config) -> None:
    """Tables after those of pytest-benchmark: ratios, and with --full, which they are for, the targets."""
    from benchmarks.ops import report, targets
    from benchmarks.tables import as_text

    session = getattr(config, "_benchmarksession", None)
    records = [bench.as_dict(include_data=False) for bench in session.benchmarks if bench] if session else []
    rows = report.rows_of(records)
    if not rows:
        return
    setup = _setup()
    tables = {f"ops: {op}": table for op, table in report.tables(rows, limits=True).items()}
    if config.getoption("--full"):
        tables |= {"ops: hard inputs": targets.hard_table(rows)}
        tables |= {"ops: targets": targets.verdict_table(targets.verdicts(rows))}
    for title, table in tables.items():
        if table.rows:
            terminalreporter.section(title)
            terminalreporter.write_line(as_text(table))
    terminalreporter.section("ops: what ran")
    names = ", ".join(f"{name} {number}" for name, number in setup["versions"].items())
    levels = ", ".join(setup["build"].get("cpu_levels_available", ["reference only"]))
    limits = ", ".join(f"{name} {rate / 1e9:.1f} G/s" for name, rate in report.limits_of(rows).items())
    terminalreporter.write_line(f"{setup['threads']} threads; levels {levels}; {names}")
    terminalreporter.write_line(f"BLAS kernels: {report.blas_text(setup['blas'])}")
    terminalreporter.write_line(f"limits: {limits or 'not measured'}")
    skipped = Counter(each.longrepr[2].removeprefix("Skipped: ") for each in terminalreporter.stats.get("skipped", []))
    for reason, count in skipped.items():
        terminalreporter.write_line(f"not timed: {count} of the cases: {reason}")
