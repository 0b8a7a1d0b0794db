"""Many questions at once, in Python: the answers are those of one by one, in order, and little is read ahead."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import SMALL

from soho_fast.ask.pipeline import SohoPipeline, like_shapes
from soho_fast.data.images import load_any
from soho_fast.model import SohoConfig, SohoForImageTextRetrieval

QUESTIONS = ["is there a man", "a red", "the woman and the man is a blue", "blue"]


def scores(answer):
    return {next(iter(row.values())): row["score"] for row in answer}


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert scores(one) == pytest.approx(scores(other), abs=2e-6)


def encoded(soho, monkeypatch):
    """How many images the CNN is given from here on, call by call."""
    sizes, encode = [], soho.model.encode_images

    def counting(pixel_values=None, pixel_mask=None):
        sizes.append(len(pixel_values))
        return encode(pixel_values, pixel_mask)

    monkeypatch.setattr(soho.model, "encode_images", counting)
    return sizes


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_lists_are_answered_as_one_by_one(soho_of, image_folder, batch_size):
    soho, (folder, names) = soho_of("answer"), image_folder
    paths = [folder / name for name in names] * 2
    questions = [QUESTIONS[number % 4] for number in range(len(paths))]
    expected = [soho.answer(*both, top_k=3) for both in zip(paths, questions, strict=True)]
    assert len({round(answer[0]["score"], 4) for answer in expected}) > 15, "an exchanged answer would be seen"
    found = soho.answer(paths, questions, top_k=3, batch_size=batch_size)
    assert isinstance(found, list)
    assert_same(found, expected)
    opened = [str(path) if number % 2 else Image.open(path) for number, path in enumerate(paths)]
    assert_same(soho.answer(tuple(opened), questions, top_k=3, batch_size=batch_size), expected)
    asked = [{"image": image, "question": text} for image, text in zip(opened, questions, strict=True)]
    assert_same(soho(asked, top_k=3, batch_size=batch_size), expected)
    assert soho(asked[0], top_k=3) == expected[0]


def test_the_other_questions(soho_of, image_folder):
    folder, names = image_folder
    paths = [folder / name for name in names]
    soho = soho_of("rank")
    texts = [QUESTIONS[: 1 + number % 4] for number in range(len(paths))]
    assert_same(soho.rank(paths, texts), [soho.rank(*both) for both in zip(paths, texts, strict=True)])
    assert_same(soho.rank(paths, QUESTIONS, top_k=2), [soho.rank(path, QUESTIONS, top_k=2) for path in paths])
    assert_same(soho.rank(paths[0], texts), [soho.rank(paths[0], each) for each in texts])
    soho = soho_of("compare")
    pairs = list(itertools.pairwise(paths))
    found = soho.compare(paths[:-1], paths[1:], "both a red", batch_size=2)
    assert_same(found, [soho.compare(*pair, "both a red") for pair in pairs])
    assert_same(soho.compare([paths[0]], [paths[0]], ["a red"]), [soho.compare(paths[0], paths[0], "a red")])
    soho = soho_of("entails")
    assert_same(soho.entails(paths, "a red"), [soho.entails(path, "a red") for path in paths])


def test_one_image_of_many_texts_is_encoded_once(soho_of, image_folder, monkeypatch):
    soho, (folder, names) = soho_of("rank"), image_folder
    sizes = encoded(soho, monkeypatch)
    soho.rank(folder / names[0], [f"{text} {n}" for text in QUESTIONS for n in range(50)], batch_size=2)
    assert sizes == [1]
    soho.rank([folder / names[0]] * 20, QUESTIONS)
    soho.rank([Image.open(folder / names[0])] * 20, QUESTIONS)
    assert sizes == [1, 1, 1]
    kept = soho.encode(folder / names[0])
    expected = soho.rank(folder / names[0], QUESTIONS)
    sizes.clear()
    assert_same([soho.rank(kept, QUESTIONS), *soho.rank([kept, kept], QUESTIONS)], [expected] * 3)
    assert sizes == []
    together = soho.encode([folder / name for name in names], batch_size=3)
    assert sum(sizes) == len(names) and max(sizes) <= 3
    assert_same(soho.rank(together, QUESTIONS), soho.rank([folder / name for name in names], QUESTIONS))


def test_what_feels_its_padding_is_encoded_as_alone(processor, image_folder):
    """The released code's CNN takes the padding of a batch for a part of the image."""
    folder, names = image_folder
    torch.manual_seed(0)
    model = SohoForImageTextRetrieval(SohoConfig.from_preset("official", **SMALL))
    soho = SohoPipeline(model, processor)
    paths = [folder / name for name in names]
    for one, path in zip(soho.encode(paths), paths, strict=True):
        torch.testing.assert_close(one.features, soho.encode(path).features, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_answered_is_reported_by_its_number(soho_of, image_folder):
    soho, (folder, names) = soho_of("answer"), image_folder
    paths = [folder / names[0], folder / "nowhere.png", folder / names[1]]
    with pytest.raises(ValueError, match=r"^question 1 \(from 0\): image: .*nowhere\.png can't be read"):
        soho.answer(paths, "a red")
    with pytest.raises(ValueError, match=r"^image: .*nowhere\.png can't be read") as raised:
        soho.answer(paths[1], "a red")
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    answers = soho.answer(paths, ["a red", "a red", ""], errors="return")
    assert_same(answers[:1], [soho.answer(paths[0], "a red")])
    assert "nowhere.png can't be read" in str(answers[1]) and str(answers[2]) == "text: expected words, got ''"
    assert [answer.__traceback__ for answer in answers[1:]] == [None, None], "it would keep what was computed"


def test_mistakes_of_a_call(soho_of, image_folder):
    soho, (folder, names) = soho_of("answer"), image_folder
    path = folder / names[0]
    pixels = [load_any(folder / name, soho.processor.image_processor) for name in names[:1] * 2]
    both = soho.model.encode_images(**soho.processor.image_processor.collate(pixels))
    for call, words in (
        (lambda: soho.answer(both, "a red"), "image: expected one image, as encode gives it, got a batch of 2"),
        (lambda: soho.answer([path], ["a", "red"]), "image, question: expected as many of each, got 1 of image, 2 of"),
        (lambda: soho.answer(path, "a", batch_size=0), "batch_size: expected at least 1, got 0"),
        (lambda: soho.answer(path, "a", errors="skip"), "errors: expected 'raise' or 'return', got 'skip'"),
        (lambda: soho({"image": path}), "expected a dict with image, question, got a dict with image"),
        (lambda: soho([path]), "expected a dict with image, question, got PosixPath"),
        (lambda: soho_of("rank").rank(path, []), r"texts: expected a list of at least one text, got \[\]"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert soho.answer([], "a red") == []
    with pytest.raises(ValueError, match="scores are not finite"), torch.no_grad():
        head = soho.model.head[3].bias
        before = head.clone()
        try:
            head[1] = float("nan")
            soho.answer(path, "a red")
        finally:
            head.copy_(before)


def test_like_shapes_go_together():
    chance = np.random.default_rng(0)
    sizes = [(int(600 / max(r, 1)), int(600 * min(r, 1))) for r in np.exp(chance.normal(0, 0.6, 200))]
    batches = like_shapes(sizes, 8)
    assert sorted(number for batch in batches for number in batch) == list(range(200))
    assert max(map(len, batches)) == 8 and len(batches) < 60
    for batch in batches:
        height, width = (max(sizes[number][axis] for number in batch) for axis in (0, 1))
        own = sum(sizes[number][0] * sizes[number][1] for number in batch)
        assert own >= 0.8 * height * width * len(batch)
    assert like_shapes([], 8) == [] and like_shapes([(9, 9)] * 5, 2) == [[0, 1], [2, 3], [4]]
