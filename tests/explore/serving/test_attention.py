"""Where a model looked: attention against its own weights by hand, scores against SohoPipeline's, patches and codes."""

import hashlib
import io
import math

import pytest
import torch
from PIL import Image

from soho_fast.ask import SohoPipeline
from soho_fast.explore.attention import SeeingPipeline


def as_file(size, seed=0) -> bytes:
    noise = torch.randint(
        0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), generator=torch.Generator().manual_seed(seed)
    )
    image = Image.fromarray(noise.to(torch.uint8).numpy()).resize(size)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pipelines(runs):
    return {name: SeeingPipeline.from_pretrained(runs / name) for name in ("rank", "retrieval", "answer", "compare")}


def attention_by_hand(soho, visual, input_ids_1S):
    """[(T, T) of each layer], mean over heads, of one text without padding and one image, from the layers' weights."""
    visual_BLD = visual.features if visual.embedding is None else visual.embedding
    states_TD = torch.cat(
        [soho.text_embeddings(input_ids=input_ids_1S)[0], soho.visual_embeddings(visual_BLD, visual.position)[0]]
    )
    real_T = torch.cat([torch.ones(input_ids_1S.shape[1], dtype=torch.bool), visual.valid[0]])
    found = []
    for layer in soho.encoder.layer:
        attention = layer.attention.self
        H, E = attention.num_attention_heads, attention.attention_head_size
        query_HTE, key_HTE, value_HTE = (
            (states_TD @ linear.weight.T + linear.bias).view(-1, H, E).transpose(0, 1)
            for linear in (attention.query, attention.key, attention.value)
        )
        score_HTT = query_HTE @ key_HTE.transpose(1, 2) / math.sqrt(E)
        share_HTT = score_HTT.masked_fill(~real_T, float("-inf")).softmax(-1)
        found.append(share_HTT.mean(0))
        context_TD = (share_HTT @ value_HTE).transpose(0, 1).flatten(1)
        states_TD = layer.feed_forward_chunk(layer.attention.output(context_TD, states_TD))
    return found


@pytest.mark.parametrize("name", ["rank", "answer"])
def test_attention_is_that_of_the_layers_weights(pipelines, name):
    pipeline = pipelines[name]
    file, texts = as_file((90, 60)), ["there is a red man", "a woman"][: 2 if name == "rank" else 1]
    reply = pipeline.ask(name, [file], texts, attend=0)
    model = pipeline.model
    pixels = pipeline.processor.image_processor.collate([pipeline._load(file)])
    ids_1S = pipeline.processor.tokenizer(texts[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        visual = model.encode_images(**pixels)
        expected = attention_by_hand(model.soho, visual, ids_1S)
    assert reply["tokens"] == ["[CLS]", *texts[0].split()] and reply["attended"] == 0
    S = ids_1S.shape[1]
    (image,) = reply["images"]
    assert len(image["attention"]) == len(expected) == 2
    for layer, share_TT in zip(image["attention"], expected, strict=True):
        expected_SL = share_TT[: S - 1, S:][:, visual.valid[0]]
        assert torch.tensor(layer) == pytest.approx(expected_SL, abs=2e-6)
        assert expected_SL.std() > 1e-3  # Nothing that any mistake would match.


def test_of_several_texts_the_best_is_attended_unless_another_is_asked_for(pipelines):
    texts = ["a red", "there is a man and a woman .", "blue", "a red"]
    reply = pipelines["rank"].ask("rank", [as_file((64, 64))], texts)
    best = reply["answers"][0]
    assert reply["attended"] == best["number"] and texts[best["number"]] == best["text"]
    assert sorted(answer["number"] for answer in reply["answers"]) == [0, 1, 2, 3]
    other = pipelines["rank"].ask("rank", [as_file((64, 64))], texts, attend=1)
    assert other["tokens"] == ["[CLS]", *texts[1].split()] and other["answers"] == reply["answers"]
    alone = pipelines["rank"].ask("rank", [as_file((64, 64))], texts[1:2])
    # Padding to the longest text changes nothing.
    assert torch.tensor(other["images"][0]["attention"]) == pytest.approx(
        torch.tensor(alone["images"][0]["attention"]), abs=2e-6
    )
    with pytest.raises(ValueError, match="attend: expected the number of a text, 0 to 3, got 4"):
        pipelines["rank"].ask("rank", [as_file((64, 64))], texts, attend=4)


@pytest.mark.parametrize("name", ["rank", "retrieval", "answer", "compare"])
def test_scores_are_the_pipelines(pipelines, runs, tmp_path, name):
    paths = []
    for number, size in enumerate([(90, 60), (64, 110)][: 2 if name == "compare" else 1]):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(as_file(size, number))
    question = "rank" if name == "retrieval" else name
    words = ["red", "green", "blue", "yellow", "cyan", "white"]
    texts = [f"a {one} and a {other}" for one in words for other in words][: 36 if question == "rank" else 1]
    plain = SohoPipeline.from_pretrained(runs / name)
    expected = getattr(plain, question)(*paths, *([texts] if question == "rank" else texts))
    found = pipelines[name].ask(question, [path.read_bytes() for path in paths], texts)["answers"]
    key = {"rank": "text", "answer": "answer", "compare": "label"}[question]
    assert {row[key]: row["score"] for row in found} == pytest.approx(
        {row[key]: row["score"] for row in expected}, abs=1e-6
    )
    assert len({row["score"] for row in found}) > 1


@pytest.mark.parametrize("size", [(90, 60), (64, 64), (40, 130)])
def test_patches_and_codes_are_the_models(pipelines, size):
    pipeline = pipelines["rank"]
    file = as_file(size)
    (image,) = pipeline.ask("rank", [file], ["a red"])["images"]
    pixels_3HW = pipeline._load(file)
    with torch.no_grad():
        visual = pipeline.model.encode_images(**pipeline.processor.image_processor.collate([pixels_3HW]))
    assert image["codes"] == visual.index[visual.valid].tolist()
    assert len(image["codes"]) == image["rows"] * image["columns"] == len(image["attention"][0][0])
    assert (image["patches_high"], image["patches_wide"]) == tuple(edge / 32 for edge in pixels_3HW.shape[1:])
    assert image["rows"] == math.ceil(image["patches_high"]) and image["columns"] == math.ceil(image["patches_wide"])


def test_a_model_that_reads_features_has_codes_too(pipelines, codebook):
    pipeline = pipelines["answer"]
    file = as_file((90, 60))
    reply = pipeline.ask("answer", [file], ["is there a man"])
    with torch.no_grad():
        visual = pipeline.model.encode_images(**pipeline.processor.image_processor.collate([pipeline._load(file)]))
    assert visual.index is None and reply["reads"] == "features"
    distance_LK = torch.cdist(visual.features[0].double(), codebook.double())
    assert reply["images"][0]["codes"] == distance_LK.argmin(1)[visual.valid[0]].tolist()
    assert pipelines["rank"].ask("rank", [file], ["a red"])["reads"] == "codes"


def test_codes_alone_are_those_of_an_answer(pipelines):
    for name in ("rank", "answer"):
        file = as_file((90, 60))
        (image,) = pipelines[name].ask(name, [file], ["a red"])["images"]
        assert pipelines[name].codes_of(file) == (image["rows"], image["columns"], image["codes"])


def test_two_images_have_their_own_attention_and_padding_has_none(pipelines):
    left, right = as_file((90, 60), 1), as_file((64, 120), 2)
    there = pipelines["compare"].ask("compare", [left, right], ["both red"])
    back = pipelines["compare"].ask("compare", [right, left], ["both red"])
    assert [(image["rows"], image["columns"]) for image in there["images"]] == [(2, 3), (4, 2)]
    for one, other in zip(there["images"], back["images"][::-1], strict=True):
        assert one["codes"] == other["codes"]
        assert torch.tensor(one["attention"]) == pytest.approx(torch.tensor(other["attention"]), abs=2e-6)
    assert all(0 < sum(row) < 1 for image in there["images"] for layer in image["attention"] for row in layer)


def test_weights_are_the_sha_256_of_the_codebook(pipelines, codebook):
    assert pipelines["rank"].weights() == hashlib.sha256(codebook.numpy().astype("<f4").tobytes()).hexdigest()
    assert pipelines["retrieval"].weights() is None


def test_work_ends_when_nobody_waits(pipelines):
    calls = []

    def go_on():
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipelines["rank"].ask("rank", [as_file((64, 64))], ["a red"] * 40, go_on=go_on)
    assert len(calls) == 2
