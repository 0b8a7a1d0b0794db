import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tiny_corpus

from soho_fast.data import SohoImageProcessor, SohoProcessor, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    return tiny_corpus.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def processor(tokenizer):
    return SohoProcessor(SohoImageProcessor(size={"shortest_edge": 32, "longest_edge": 48}, size_divisor=1), tokenizer)
