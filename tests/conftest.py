"""What tests of several rooms share: their two parts, their draws, what may be skipped, and a tiny corpus."""

import os
import random
import re
import signal
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest

# Before torch loads OpenMP; see soho_fast/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Compiled graphs that are kept name the arguments of our ops: those of another checkout may name them otherwise.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "inductor"))

# What a test starts is no worker of these tests: pytest-benchmark would measure nothing there.
os.environ.pop("PYTEST_XDIST_WORKER", None)

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / room) for room in ("data", "forked", "model/official", "rules")]

LEFT_OUT = "no time was left (--minutes)"

# The files that take longest, longest first.
LONG = ("test_docs.py", "test_triton.py", "test_elastic.py", "test_quickly.py")

# What a test may be skipped for under --strict-skips: this machine lacks what `make` cannot install.
LACKING = re.compile(
    "Triton is not interpreted here"  # which tests/ops/test_triton.py does, in processes of its own
    "|refused by name|of the CPU kernels' passes|this build has CUDA kernels|this torch has CUDA|a GPU is here"
    "|it can run here|not enough free memory on this GPU|this Triton lacks the compiler"
    "|this processor has no instructions for (bfloat16|int8)|DeepSpeed's engine has no bfloat16 on this CPU"
    "|could not import '(kernels|webdataset|onnxscript|onnxruntime)'"
    "|needs (g\\+\\+-aarch64-linux-gnu|a device that is always full)"
    "|this user cannot mount a tmpfs|CUDA kernels are not compiled|needs nvdisasm|no node here"
    "|this torch has another OpenMP|no time was left"
)


def pytest_addoption(parser):
    parser.addoption(
        "--part", choices=["all", "first", "rest"], default="all",
        help="first: what `make test` runs; rest: what tests/rest.txt names",
    )  # fmt: skip
    parser.addoption("--minutes", type=float, default=float("inf"), help="tests that would begin later are left out")
    parser.addoption("--order", help="files in an order that follows from this text, such as a commit")
    parser.addoption("--draws", type=int, default=0, help="other random numbers for what has no seed of its own")
    parser.addoption(
        "--strict-skips", action="store_true", help="a skip fails, but for those of LACKING in tests/conftest.py"
    )


def pytest_configure(config):
    # Cron, nohup and shells in the background let a process ignore these, and so would all that it starts. With a
    # handler the tests stay deaf to them, and what they start begins as from a terminal, but for xdist's workers.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
    config.until = time.monotonic() + 60 * config.getoption("minutes")
    lines = (HERE / "rest.txt").read_text().splitlines()
    config.rest = {line for line in lines if line and not line.startswith("#")}
    for name in config.rest:
        path, _, test = name.partition("[")[0].partition("::")
        assert (HERE / path).exists(), f"tests/rest.txt names what is not there: {name}"
        assert not test or f"\ndef {test}(" in (HERE / path).read_text(), f"tests/rest.txt: there is no test {name}"


def _is_of_rest(config, path, *tests):
    name = path.relative_to(HERE)
    names = [*map(str, (name, *name.parents)), *(f"{name}::{test}" for test in tests)]
    return any(name in config.rest for name in names)


def pytest_ignore_collect(collection_path, config):
    # Not even imported; tests of files that both parts share are looked at below.
    if config.getoption("part") == "first" and _is_of_rest(config, collection_path):
        return True
    return None


def pytest_collection_modifyitems(config, items):
    part = config.getoption("part")
    if part != "all":
        is_rest = {item: _is_of_rest(config, item.path, item.originalname, item.name) for item in items}
        config.hook.pytest_deselected(items=[item for item in items if is_rest[item] != (part == "rest")])
        items[:] = [item for item in items if is_rest[item] == (part == "rest")]
    if order := config.getoption("order"):
        # What --minutes leaves out is something else at each commit.
        items.sort(key=lambda item: zlib.crc32(f"{order} {item.path.name}".encode()))
    else:
        # Files that take long begin first: at the end one would run on one worker while the other has nothing to do.
        items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    return _without_silent_skips(item.config, report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return _without_silent_skips(collector.config, report)


def _without_silent_skips(config, report):
    """A skip becomes a failure under --strict-skips, unless this machine lacks what nobody can install here."""
    if config.getoption("strict_skips") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        if not LACKING.search(reason):
            report.outcome, report.longrepr = "failed", f"{reason} (--strict-skips: is it one of LACKING?)"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if time.monotonic() > item.config.until:
        pytest.skip(LEFT_OUT)


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats.get("skipped", [])
    files = Counter(report.nodeid.partition("::")[0] for report in reports if LEFT_OUT in report.longrepr[2])
    if files:
        terminalreporter.write_line(f"{LEFT_OUT} for " + ", ".join(f"{files[file]} of {file}" for file in files))


def _seed(config, name):
    seed = zlib.crc32(f"{name} {config.getoption('draws')}".encode())
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    # Whichever test of a file comes first: what they share is the same.
    if fixturedef.scope != "function":
        _seed(request.config, f"{fixturedef.baseid} {fixturedef.argname} {request.param_index}")


@pytest.fixture(autouse=True)
def _draws(request):
    """What a test draws without a seed of its own follows from its name: the one that was red is red again, alone."""
    _seed(request.config, request.node.nodeid)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    import tiny_corpus

    return tiny_corpus.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(tokenizer_dir):
    from soho_fast.data.text import load_tokenizer

    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def processor(tokenizer):
    from soho_fast.data.images import SohoImageProcessor
    from soho_fast.data.processor import SohoProcessor

    return SohoProcessor(SohoImageProcessor(size={"shortest_edge": 32, "longest_edge": 48}, size_divisor=1), tokenizer)


@pytest.fixture
def records(tmp_path):
    import tiny_corpus

    from soho_fast.data.readers.captions import read_karpathy

    path = tiny_corpus.write_karpathy(tmp_path, {"train": list(tiny_corpus.COLOURS)})
    return read_karpathy(path, tmp_path, ["train"])
