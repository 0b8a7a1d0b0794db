"""Timing of the op benchmarks: a result is checked before it is timed, and a wrong one of ours is never timed.

Every comparison is a pytest-benchmark group; the number in brackets is the ratio to the group's fastest entry. Read
ratios only where min and median agree: where they are far apart, other processes held the cores (OMP_NUM_THREADS=1
suffers least).
"""

import time
from collections.abc import Callable

import pytest
import torch

MIN_ROUNDS, MAX_ROUNDS = 7, 60
SECONDS_PER_CASE = 0.6  # fast calls need many rounds: on a busy machine a few say nothing


@pytest.fixture
def time_checked(benchmark) -> Callable[[str, Callable, Callable[[object], float], bool], None]:
    """Function (group, call, share_wrong, must_be_exact): times `call` after `share_wrong(call())` was looked at.

    `share_wrong` returns the share of wrong results; it goes into the report, and where `must_be_exact` it must be 0.
    """

    def run(group: str, call: Callable, share_wrong: Callable[[object], float], must_be_exact: bool) -> None:
        result = call()
        wrong = share_wrong(result)
        if must_be_exact and wrong:
            pytest.fail(f"{wrong:.2%} of the results are wrong: not timed")
        benchmark.group = f"{group}, {torch.get_num_threads()} threads"
        benchmark.extra_info["wrong"] = f"{wrong:.2%}"
        start = time.perf_counter()
        call()
        rounds = int(SECONDS_PER_CASE / (time.perf_counter() - start))
        benchmark.pedantic(call, rounds=min(max(rounds, MIN_ROUNDS), MAX_ROUNDS), warmup_rounds=1)

    return run


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded source of the inputs, the same for every contender of a group."""
    return torch.Generator().manual_seed(0)
