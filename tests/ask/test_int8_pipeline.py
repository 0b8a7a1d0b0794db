"""A pipeline in int8 takes its ranges from questions."""

import numpy as np
import pytest
import torch
from PIL import Image

from soho_fast.ask.pipeline import FIELDS, SohoPipeline, load_model

HAS_INT8 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_vnni", "amx_int8"))
pytestmark = pytest.mark.skipif(not HAS_INT8, reason="this processor has no instructions for int8")


def asked(action, image_folder):
    """Six questions, about images of several shapes."""
    folder, names = image_folder
    words = ["a red man", "is there a woman"]
    *images, text = FIELDS[action]
    return [
        {image: folder / names[number + place] for place, image in enumerate(images)}
        | {text: words if action == "rank" else words[number % 2]}
        for number in range(6)
    ]


def inputs(processor, question):
    """What the model is called with, from the image files and the processor."""
    *images, words = question.values()
    texts = words if isinstance(words, list) else [words]
    opened = [Image.open(image).convert("RGB") for image in images]
    batch = processor(images=opened, text=texts, return_tensors="pt", padding=True)
    return {**batch, "image_index": torch.tensor([[0, 1]] if len(images) == 2 else [0] * len(texts))}


@pytest.mark.parametrize("action", list(FIELDS))
def test_it_is_the_prepared_model_by_these_ranges(folder_of, image_folder, processor, action):
    questions = asked(action, image_folder)
    soho = SohoPipeline.from_pretrained(folder_of(action), precision="int8", calibration=questions)
    assert soho.model.prepared == {"precision": "int8", "compile": False}
    assert {"Int8Conv2d", "Int8Linear"} <= {type(module).__name__ for module in soho.model.modules()}
    model, _ = load_model(folder_of(action))
    batches = [inputs(processor, question) for question in questions]
    same = SohoPipeline(model.prepare_for_inference("int8", calibration=batches), processor)
    assert soho(questions) == same(questions)
    model, _ = load_model(folder_of(action))
    fewer = SohoPipeline(model.prepare_for_inference("int8", calibration=batches[:1]), processor)
    assert soho(questions) != fewer(questions), "a question that was left out would be seen"


def test_what_it_cannot_take_its_ranges_from(folder_of, image_folder):
    def load(questions, precision="int8"):
        SohoPipeline.from_pretrained(folder_of("rank"), precision=precision, calibration=questions)

    good = asked("rank", image_folder)
    for questions, precision, said in (
        (None, "int8", "calibration: expected batches with precision='int8', and none otherwise, got none"),
        (good, "float32", "and none otherwise, got some with precision='float32'"),
        (good, None, "and none otherwise, got some"),
        ([], "int8", "calibration: expected at least one batch"),
        ([*good, {"image": "nowhere.png", "texts": ["a red"]}], "int8", r"image: nowhere\.png can't be read"),
        ([{"image": good[0]["image"], "texts": [""]}], "int8", "text: expected words, got ''"),
        ([{"image": good[0]["image"], "texts": ["?!"]}], "int8", "holds no word that this model knows"),
        ([{"image": np.zeros((9, 9), np.float32), "texts": ["a red"]}], "int8", "image: expected uint8 pixels"),
        ([{"image": good[0]["image"], "text": "a red"}], "int8", "expected a dict with image, texts, got a dict with"),
    ):
        with pytest.raises(ValueError, match=said):
            load(questions, precision)
