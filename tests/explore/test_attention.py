"""Where a model looked: attention against its own weights by hand, scores against SohoPipeline's, patches and codes."""

import hashlib
import io
import math

import numpy as np
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
    file, text = as_file((90, 60)), "there is a red man"
    tokens, (share_DShw,) = pipeline.attention(text, [pipeline.see(file)[1]])
    model = pipeline.model
    pixels = pipeline.processor.image_processor.collate([pipeline._load(file)])
    ids_1S = pipeline.processor.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        visual = model.encode_images(**pixels)
        expected = attention_by_hand(model.soho, visual, ids_1S)
    assert tokens == ["[CLS]", *text.split()]
    S = ids_1S.shape[1]
    assert len(share_DShw) == len(expected) == 2
    for share_Shw, share_TT in zip(share_DShw, expected, strict=True):
        expected_SL = share_TT[: S - 1, S:][:, visual.valid[0]]
        assert torch.tensor(share_Shw).flatten(1) == pytest.approx(expected_SL, abs=2e-6)
        assert expected_SL.std() > 1e-3  # Nothing that any mistake would match.


@pytest.mark.parametrize("name", ["rank", "retrieval", "answer", "compare"])
def test_scores_are_the_pipelines(pipelines, runs, name):
    files = [
        as_file(size, number) for number, size in enumerate([(90, 60), (64, 110)][: 2 if name == "compare" else 1])
    ]
    question = "rank" if name == "retrieval" else name
    texts = [f"a {one} and a man" for one in ("red", "green", "blue")] if question == "rank" else "is there a man"
    expected, found = (
        getattr(pipeline, question)(*files, texts)
        for pipeline in (SohoPipeline.from_pretrained(runs / name), pipelines[name])
    )
    key = {"rank": "text", "answer": "answer", "compare": "label"}[question]
    assert {row[key]: row["score"] for row in found} == pytest.approx(
        {row[key]: row["score"] for row in expected}, abs=1e-6
    )
    assert len({row["score"] for row in found}) > 1


@pytest.mark.parametrize("size", [(90, 60), (64, 64), (40, 130)])
def test_patches_and_codes_are_the_models(pipelines, size):
    pipeline = pipelines["rank"]
    file = as_file(size)
    pixels_HW3, seen, (high, wide) = pipeline.see(file)
    pixels_3HW = pipeline._load(file)
    with torch.no_grad():
        visual = pipeline.model.encode_images(**pipeline.processor.image_processor.collate([pixels_3HW]))
    index_hw = pipeline.codes_of(seen)
    assert index_hw.ravel().tolist() == visual.index[visual.valid].tolist()
    assert (high, wide) == tuple(edge / 32 for edge in pixels_3HW.shape[1:])
    assert index_hw.shape == (math.ceil(high), math.ceil(wide))
    assert np.array_equal(pixels_HW3, pixels_3HW.permute(1, 2, 0))


def test_a_model_that_reads_features_has_codes_too(pipelines, codebook):
    pipeline = pipelines["answer"]
    file = as_file((90, 60))
    with torch.no_grad():
        visual = pipeline.model.encode_images(**pipeline.processor.image_processor.collate([pipeline._load(file)]))
    assert visual.index is None
    distance_LK = torch.cdist(visual.features[0].double(), codebook.double())
    expected = distance_LK.argmin(1)[visual.valid[0]].tolist()
    assert pipeline.codes_of(pipeline.see(file)[1]).ravel().tolist() == expected


def test_two_images_have_their_own_attention(pipelines):
    pipeline = pipelines["compare"]
    left, right = (pipeline.see(as_file(size, seed))[1] for size, seed in (((90, 60), 1), ((64, 120), 2)))
    (_, there), (_, back) = (pipeline.attention("both red", images) for images in ([left, right], [right, left]))
    assert [share.shape[2:] for share in there] == [(2, 3), (4, 2)]
    for one, other in zip(there, back[::-1], strict=True):
        assert one == pytest.approx(other, abs=2e-6)
        share_DS = one.sum((2, 3))
        assert (share_DS > 0).all() and (share_DS < 1).all()


def test_weights_are_the_sha_256_of_the_codebook(pipelines, codebook):
    assert pipelines["rank"].weights() == hashlib.sha256(codebook.numpy().astype("<f4").tobytes()).hexdigest()
    assert pipelines["retrieval"].weights() is None
