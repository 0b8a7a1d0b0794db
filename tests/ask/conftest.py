"""Small models to ask: one of each kind for all tests, and one's own to damage."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def processor(tmp_path_factory):
    from tiny_corpus import write_tokenizer

    from soho_fast.data.images import SohoImageProcessor
    from soho_fast.data.processor import SohoProcessor
    from soho_fast.data.text import load_tokenizer

    tokenizer = load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    return SohoProcessor(SohoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}), tokenizer)


@pytest.fixture
def save(tmp_path, processor):
    """Writes a model of a kind into a run of this test; returns the model and the run."""
    from small_models import save_small

    return lambda kind: (save_small(kind, processor, tmp_path / "run/model"), tmp_path / "run")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory, processor):
    """The folder of the model for a question, or of the pre-trained one, written once."""
    from small_models import KINDS, save_small

    folders = {}

    def folder(question):
        if question not in folders:
            folders[question] = tmp_path_factory.mktemp(question)
            save_small(KINDS[question], processor, folders[question])
        return folders[question]

    return folder


@pytest.fixture(scope="session")
def soho_of(folder_of):
    """The pipeline of a question, loaded once."""
    from soho_fast.ask.pipeline import SohoPipeline

    loaded = {}

    def soho(question):
        if question not in loaded:
            loaded[question] = SohoPipeline.from_pretrained(folder_of(question), device="cpu")
        return loaded[question]

    return soho


@pytest.fixture
def images(tmp_path):
    from PIL import Image
    from tiny_corpus import draw

    left = draw(tmp_path / "left.jpg", "red", (60, 40))
    right = tmp_path / "right.png"
    Image.new("RGBA", (40, 70), (0, 0, 250, 255)).save(right)
    return left, right


@pytest.fixture
def image_folder(tmp_path):
    """A folder with ten images of coloured patches, in mixed shapes, and their names."""
    import numpy as np
    from PIL import Image

    sizes = [(60, 40), (40, 60), (50, 50), (90, 30), (32, 32), (64, 33), (33, 64), (20, 80), (60, 41), (64, 64)]
    names = [f"{number}.png" for number in range(len(sizes))]
    (tmp_path / "images").mkdir()
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        patches = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(patches).resize(size, Image.Resampling.NEAREST).save(tmp_path / "images" / name)
    return tmp_path / "images", names
