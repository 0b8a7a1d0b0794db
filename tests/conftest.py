"""What tests of several rooms share: threads that wait as the training command's do, and a tiny corpus."""

import os
import sys
from pathlib import Path

# Before torch loads OpenMP; see soho_fast/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# What a test starts is no worker of these tests: pytest-benchmark would measure nothing there.
os.environ.pop("PYTEST_XDIST_WORKER", None)

import pytest

sys.path[:0] = [str(Path(__file__).parent / room) for room in ("data", "forked", "model/official")]


def pytest_collection_modifyitems(items):
    # The file that takes longest begins first: at the end it would run on one worker while the other has nothing to do.
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    import tiny_corpus

    return tiny_corpus.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(tokenizer_dir):
    from soho_fast.data import load_tokenizer

    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def processor(tokenizer):
    from soho_fast.data import SohoImageProcessor, SohoProcessor

    return SohoProcessor(SohoImageProcessor(size={"shortest_edge": 32, "longest_edge": 48}, size_divisor=1), tokenizer)


@pytest.fixture
def records(tmp_path):
    import tiny_corpus

    from soho_fast.data import read_karpathy

    path = tiny_corpus.write_karpathy(tmp_path, {"train": list(tiny_corpus.COLOURS)})
    return read_karpathy(path, tmp_path, ["train"])
