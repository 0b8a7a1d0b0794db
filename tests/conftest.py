"""What tests of several rooms share: threads that wait as the training command's do, and a tiny corpus."""

import os
import sys
from pathlib import Path

# Before torch loads OpenMP; see soho_fast/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Compiled graphs that are kept name the arguments of our ops: those of another checkout may name them otherwise.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "inductor"))

# What a test starts is no worker of these tests: pytest-benchmark would measure nothing there.
os.environ.pop("PYTEST_XDIST_WORKER", None)

import pytest

sys.path[:0] = [str(Path(__file__).parent / room) for room in ("data", "forked", "model/official", "rules")]


HERE = Path(__file__).parent

# What `make test` leaves to `make test-rest`: folders and files. A single test is left to it by the mark `rest`.
REST = (
    "adapters", "ask", "benchmarks", "cluster", "cuda_model", "data_mini", "explore", "kernels", "model/official",
    "packaging", "plan", "studies", "typing", "commands/test_quickly.py", "data/test_released_images.py",
    "data/test_shard_command.py", "data/test_tokenizer.py", "engine/test_elastic.py", "engine/test_recipe_official.py",
    "engine/test_recipe_paper.py", "engine/test_released_training.py", "engine/test_watchdog.py",
    "faults/test_campaign.py", "model/test_checksums.py", "ops/test_triton.py", "ops/test_triton_interpreted.py",
    "ops/test_types.py", "ops/test_without_compiler.py", "tasks/evaluation/test_pair_scoring.py",
)  # fmt: skip

# The files that take longest, longest first.
LONG = ("test_docs.py", "test_study_runs.py", "test_triton.py", "test_plan.py", "test_elastic.py", "test_quickly.py")


def pytest_addoption(parser):
    parser.addoption(
        "--part",
        choices=["all", "first", "rest"],
        default="all",
        help="first: what `make test` runs; rest: the others.",
    )


def _is_of_rest(path):
    name = path.relative_to(HERE).as_posix()
    return any(name == part or name.startswith(f"{part}/") for part in REST)


def pytest_configure(config):
    config.addinivalue_line("markers", "rest: left out by `make test`, run by `make test-rest`")
    missing = [part for part in REST if not (HERE / part).exists()]
    assert not missing, f"REST of tests/conftest.py names what is not there: {missing}"


def pytest_ignore_collect(collection_path, config):
    # Not even imported; marks within the files of the other part are looked at below.
    if config.getoption("part") == "first" and collection_path != HERE and _is_of_rest(collection_path):
        return True
    return None


def pytest_collection_modifyitems(config, items):
    part = config.getoption("part")
    if part != "all":
        is_rest = [item.get_closest_marker("rest") is not None or _is_of_rest(item.path) for item in items]
        left_out = [item for item, rest in zip(items, is_rest, strict=True) if rest != (part == "rest")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item, rest in zip(items, is_rest, strict=True) if rest == (part == "rest")]
    # Files that take long begin first: at the end one would run on one worker while the other has nothing to do.
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


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
