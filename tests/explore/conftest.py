"""A tiny model of each kind."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))

SMALL = {
    "backbone": "resnet10", "visual_pool": 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "num_codes": 8, "max_position_embeddings": 16, "vocab_size": 31,
}  # fmt: skip
K = SMALL["num_codes"]


def tiny_model(kind: str, seed: int = 0, **fields):
    """A model of a class of soho_fast.model, the same for the same seed but for its head."""
    import torch

    from soho_fast import model

    torch.manual_seed(seed)
    made = getattr(model, kind)(model.SohoConfig.from_preset(**SMALL, **fields)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3.0 if weight.dim() == 2 else 1.0)
    return made


@pytest.fixture(scope="session")
def tiny_processor(tokenizer_dir):
    from soho_fast.data.images import SohoImageProcessor
    from soho_fast.data.processor import SohoProcessor
    from soho_fast.data.text import load_tokenizer

    sizes = {"shortest_edge": 64, "longest_edge": 128}
    return SohoProcessor(SohoImageProcessor(size=sizes), load_tokenizer(tokenizer_dir))


@pytest.fixture(scope="session")
def codebook(tiny_processor):
    """Some features of three pictures, so that patches have codes of all kinds."""
    import torch

    images = [picture(number) for number in range(3)]
    pixels = tiny_processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features, _ = tiny_model("SohoForPreTraining").soho.encode_features(pixels)
    return features.flatten(0, 1)[::2][:K].clone()


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_processor, codebook):
    """Folder of runs by the question that they take.

    `retrieval` has no dictionary, `entails` another codebook.
    """
    folder = tmp_path_factory.mktemp("runs")
    without = {"use_dictionary_output": False}
    for name, kind, fields in (
        ("rank", "SohoForPreTraining", {}),
        ("retrieval", "SohoForImageTextRetrieval", {"dictionary": "none", **without}),
        ("answer", "SohoForQuestionAnswering", {"id2label": {0: "yes", 1: "no", 2: "2"}, **without}),
        ("compare", "SohoForVisualReasoning", {"id2label": {0: "False", 1: "True"}}),
        ("entails", "SohoForVisualEntailment", {"id2label": {0: "entailment", 1: "neutral", 2: "contradiction"}}),
    ):
        made = tiny_model(kind, **fields)
        if name not in ("retrieval", "entails"):
            made.soho.visual_dictionary.codebook.copy_(codebook)
        made.save_pretrained(folder / name / "model")
        tiny_processor.save_pretrained(folder / name / "model")
    return folder


@pytest.fixture(scope="session")
def built_run(tmp_path_factory, tokenizer_dir):
    """(a run of pre-training at step 4 whose explorer was built, its model in evaluation mode, its task)."""
    from test_build import pretraining_task, write_run

    from soho_fast.explore.__main__ import main

    folder = tmp_path_factory.mktemp("built")
    task = pretraining_task(folder / "data", tokenizer_dir)
    model = write_run(folder / "tiny", task, step=4)
    assert main(["build", str(folder / "tiny")]) == 0
    return folder / "tiny", model, task


def picture(number: int, size=(96, 80)):
    """A picture whose quarters differ."""
    from PIL import Image

    image = Image.new("RGB", size, (40 * number, 200, 30))
    image.paste((220, 20, 60 * number), (0, 0, size[0] // 2, size[1] // 2))
    image.paste((10, 30 + 70 * number, 250), (size[0] // 2, size[1] // 3, size[0], size[1]))
    return image


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    picture(2, (100, 70)).save(path)
    return path
