"""A tiny model of each kind, an explorer by hand of their codebook, and a server of both on this machine's loopback."""

import hashlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "serving"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))

SMALL = {
    "backbone": "resnet10", "visual_pool": 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "num_codes": 8, "max_position_embeddings": 16, "vocab_size": 31,
}  # fmt: skip
K, NUM_SHOWN = SMALL["num_codes"], 3


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
    """Some features of the explorer's pictures, so that its patches have codes of all kinds."""
    import torch

    images = [picture(number) for number in range(NUM_SHOWN)]
    pixels = tiny_processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features, _ = tiny_model("SohoForPreTraining").soho.encode_features(pixels)
    return features.flatten(0, 1)[::2][:K].clone()


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_processor, codebook):
    """Folder of runs by the question that they take.

    `retrieval` has no dictionary, `entails` another codebook; `moved` has the codebook of the others and another CNN.
    """
    folder = tmp_path_factory.mktemp("runs")
    without = {"use_dictionary_output": False}
    for name, kind, fields in (
        ("rank", "SohoForPreTraining", {}),
        ("retrieval", "SohoForImageTextRetrieval", {"use_dictionary": False, **without}),
        ("answer", "SohoForQuestionAnswering", {"id2label": {0: "yes", 1: "no", 2: "2"}, **without}),
        ("moved", "SohoForQuestionAnswering", {"id2label": {0: "yes", 1: "no"}, "seed": 1, **without}),
        ("compare", "SohoForVisualReasoning", {"id2label": {0: "False", 1: "True"}}),
        ("entails", "SohoForVisualEntailment", {"id2label": {0: "entailment", 1: "neutral", 2: "contradiction"}}),
    ):
        made = tiny_model(kind, **fields)
        if name not in ("retrieval", "entails"):
            made.soho.visual_dictionary.codebook.copy_(codebook)
        made.save_pretrained(folder / name / "model")
        tiny_processor.save_pretrained(folder / name / "model")
    return folder


def picture(number: int, size=(96, 80)):
    """A picture whose quarters differ."""
    from PIL import Image

    image = Image.new("RGB", size, (40 * number, 200, 30))
    image.paste((220, 20, 60 * number), (0, 0, size[0] // 2, size[1] // 2))
    image.paste((10, 30 + 70 * number, 250), (size[0] // 2, size[1] // 3, size[0], size[1]))
    return image


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory, codebook, runs):
    """An explorer of three pictures, whose codes are those of the runs `rank`, `answer` and `compare`."""
    from soho_fast.explore.attention import SeeingPipeline
    from soho_fast.explore.bundle import SCHEMA, copy_pages, image_path, write_in_files, write_value

    folder = tmp_path_factory.mktemp("bundle") / "explorer"
    copy_pages(folder)
    for name in ("data", "images/0000"):
        (folder / name).mkdir(parents=True)
    weights = hashlib.sha256(codebook.numpy().tobytes()).hexdigest()
    meta = {
        "schema": SCHEMA, "title": "By hand", "model": "by hand", "weights": weights, "num_codes": K,
        "num_channels": SMALL["hidden_size"], "num_active": K, "num_images": 3, "num_tokens": 27, "num_shown": 3,
        "has_captions": True,
        "has_distances": True, "has_decoded": False, "has_timeline": False, "maps": ["PCA"], "window": 2,
        "num_levels": 1,
        "sources": [{"name": "hand", "num_images": 3}],
        "licences": [{"what": "pictures", "credit": "by hand", "licence": "CC0"}], "position_rows": 3,
        "position_columns": 3, "histogram_edges": [0.0, 1.0, 2.0], "measures": {}, "figure": [0, 1],
        "interval": {"level": 0.95, "num_tests": 1},
    }  # fmt: skip
    occurrence = [0, 0, 0, 0.5, 2.5, 3.0]
    word = {"word": "red", "both": 2, "images": 2, "lift": 1.5, "low": 1.1, "high": 2.0}
    codes = [
        {
            "code": code, "tokens": 3, "images": 3, "rank": code + 1, "nearest": [occurrence],
            "quantiles": [occurrence], "random": [occurrence], "histogram": [2, 1], "positions": [1] * 9,
            "words": [word],
            "neighbours": [{"code": (code + 1) % K, "count": 2, "lift": 1.5}],
            "near": [{"code": (code + 1) % K, "distance": 0.5}], "next": [],
        }
        for code in range(K)
    ]  # fmt: skip
    wall = {
        "tokens": [3] * K, "images": [3] * K, "mean_distance": [0.5] * K, "spread": [0.1] * K,
        "word": [f"word{code}" for code in range(K)], "lift": [1.5] * K, "lift_low": [1.1] * K, "lift_high": [2.0] * K,
        "precision": [0.5] * K, "near_code": [1] * K, "near_distance": [0.5] * K,
        "x": [0.5] * K, "y": [0.5] * K, "x_near": [None] * K, "y_near": [None] * K,
        "medoid": [occurrence] * K, "label": [None] * K,
    }  # fmt: skip
    pictures, pipeline = [], SeeingPipeline.from_pretrained(runs / "rank")
    for number in range(NUM_SHOWN):
        picture(number).save(folder / image_path(number))
        rows, columns, index = pipeline.codes_of((folder / image_path(number)).read_bytes())
        assert len(set(index)) > 1
        pictures.append(
            {
                "image": number, "name": f"{number}.png", "source": 0, "licences": [0], "captions": ["a red man"],
                "width": 96, "height": 80, "patches_high": 2.0, "patches_wide": 77 / 32, "rows": rows,
                "columns": columns, "index": index, "masked": None,
            }
        )  # fmt: skip
    write_value(folder, "meta", meta)
    write_value(folder, "wall", wall)
    write_value(folder, "words", [{"word": "red", "images": 3, "forms": [], "codes": [{"code": 0, **word}]}])
    write_value(folder, "timeline", None)
    write_value(folder, "server", None)
    write_in_files(folder, "codes", codes, 64)
    write_in_files(folder, "images", pictures, 256)
    return folder


@pytest.fixture(scope="session")
def served(runs, bundle_folder):
    """All five models; uploads of at most 1 MB."""
    from loopback import serve

    serving = serve(runs, bundle_folder, ("rank", "retrieval", "answer", "compare", "entails"))
    yield serving
    serving.close()


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    picture(2, (100, 70)).save(path)
    return path
