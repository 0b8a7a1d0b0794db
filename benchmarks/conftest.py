"""The short and the long benchmarks; makes `benchmarks` importable under a bare `pytest`.

`pytest benchmarks/ --benchmark-only` runs every op beside its baselines, in at most ten minutes of two cores; `--full`
the long cases too. Threads wait as those of the training command do.
"""

import os
import sys
from pathlib import Path

# Before torch loads OpenMP; see soho_fast/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)


def pytest_addoption(parser) -> None:
    parser.addoption("--full", action="store_true", help="the long benchmarks too: all that docs/results.md has")


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "full: a long benchmark, which runs with --full")


def pytest_collection_modifyitems(config, items) -> None:
    if not config.getoption("--full"):
        long = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
