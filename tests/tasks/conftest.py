import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).parent))

import tiny_corpus

from soho_fast.data import SohoImageProcessor, SohoProcessor, load_tokenizer, read_karpathy


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    return tiny_corpus.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def processor(tokenizer_dir):
    image_processor = SohoImageProcessor(size={"shortest_edge": 32, "longest_edge": 48}, size_divisor=1)
    return SohoProcessor(image_processor, load_tokenizer(tokenizer_dir))


@pytest.fixture
def records(tmp_path):
    path = tiny_corpus.write_karpathy(tmp_path, {"train": list(tiny_corpus.COLOURS)})
    return read_karpathy(path, tmp_path, ["train"])
