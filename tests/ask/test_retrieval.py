"""`ask retrieve`: the images that a text describes best, at two stages."""

import json

import pytest
import torch
from PIL import Image
from small_models import save_small

from soho_fast.ask import SohoPipeline
from soho_fast.ask.__main__ import main
from soho_fast.ask.retrieval import Retriever
from soho_fast.common.versions import write_run_of
from soho_fast.model import SohoForImageTextRetrieval, SohoForPreTraining

TEXTS = ["a red man", "blue", "there is a man and a woman ."]


@pytest.fixture(scope="module", params=[SohoForImageTextRetrieval, SohoForPreTraining])
def folder(request, processor, tmp_path_factory):
    """The folder of a model with a contrastive head."""
    folder = tmp_path_factory.mktemp("contrastive")
    save_small(request.param, processor, folder, contrastive_weight=0.3)
    return folder


def matched(soho, paths, texts):
    """Of each text the score of each image, pair by pair."""
    return [{number: soho.rank(path, [text])[0]["score"] for number, path in enumerate(paths)} for text in texts]


def vectors(soho, paths, texts):
    """Inner products, of one image and one text at a time, (T, I)."""
    model = soho.model
    with torch.no_grad():
        images = [soho.encode(path) for path in paths]
        image_IE = torch.cat([model.image_vectors(model.embed_images(each), each.valid) for each in images])
        ids = [torch.tensor([soho.processor.tokenizer(text)["input_ids"]]) for text in texts]
        return torch.cat([model.text_vectors(each) for each in ids]) @ image_IE.T


def numbers_of(answers):
    return [[row["image"] for row in answer] for answer in answers]


def test_the_vectors_choose_and_matching_ranks(folder, image_folder):
    soho = SohoPipeline.from_pretrained(folder, device="cpu")
    paths = [image_folder[0] / name for name in image_folder[1]]
    retriever, scores = Retriever(soho, paths, batch_size=2), matched(soho, paths, TEXTS)
    for candidates in (3, 10):
        found = retriever(TEXTS, candidates=candidates)
        best = vectors(soho, paths, TEXTS).topk(candidates).indices.tolist()
        assert numbers_of(found) == [
            sorted(some, key=score_of.__getitem__, reverse=True) for some, score_of in zip(best, scores, strict=True)
        ]
        for answer, score_of in zip(found, scores, strict=True):
            assert [row["score"] for row in answer] == pytest.approx(
                [score_of[row["image"]] for row in answer], abs=1e-5
            )
    assert numbers_of(retriever(TEXTS, top_k=2, candidates=10)) == [order[:2] for order in numbers_of(found)]
    assert numbers_of(Retriever(soho, soho.encode(paths))(TEXTS, candidates=10)) == numbers_of(found)


def test_each_text_has_its_own_candidates(folder, image_folder, monkeypatch):
    """Planted: the vectors choose image 1 for the first text, 7 and 4 for the next; matching reads no other."""
    soho, planted = SohoPipeline.from_pretrained(folder, device="cpu"), {0: 1, 1: 7, 2: 4}
    paths = [image_folder[0] / name for name in image_folder[1]]
    scores, seen, size = matched(soho, paths, TEXTS), [], soho.model.contrastive_head.image_projection.out_features

    def image_vectors(visual_BLD, valid_BL):
        seen.extend(valid_BL)
        return torch.eye(size, 10).T[len(seen) - len(valid_BL) : len(seen)]

    monkeypatch.setattr(soho.model, "image_vectors", image_vectors)
    monkeypatch.setattr(soho.model, "text_vectors", lambda input_ids, attention_mask: torch.eye(size)[[1, 7, 4]])
    retriever = Retriever(soho, paths, batch_size=1)
    for _ in range(2):
        found = retriever(TEXTS, candidates=1)
        assert numbers_of(found) == [[1], [7], [4]]
        for text, image in planted.items():
            assert found[text][0]["score"] == pytest.approx(scores[text][image], abs=1e-5)
    assert len(seen) == len(paths), "once for both searches"


def test_an_image_that_cannot_be_used_takes_no_ones_place(folder, image_folder, tmp_path, monkeypatch):
    """Planted: its vector, which is zeros, would be the nearest of all."""
    (tmp_path / "broken.png").write_bytes(b"none")
    soho, paths = SohoPipeline.from_pretrained(folder, device="cpu"), [image_folder[0] / image_folder[1][0]]
    one_E = torch.ones(1, soho.model.contrastive_head.image_projection.out_features)
    monkeypatch.setattr(soho.model, "image_vectors", lambda visual, valid: one_E)
    monkeypatch.setattr(soho.model, "text_vectors", lambda input_ids, attention_mask: -one_E)
    found = Retriever(soho, [tmp_path / "broken.png", *paths])(["a red man"], candidates=1)
    assert numbers_of(found) == [[1]]


def test_without_a_contrastive_head_all_are_matched(soho_of, image_folder):
    soho, said = soho_of("rank"), []
    paths = [image_folder[0] / name for name in image_folder[1]]
    found = Retriever(soho, paths, say=said.append)(TEXTS, candidates=2)
    scores = matched(soho, paths, TEXTS)
    assert numbers_of(found) == [sorted(each, key=each.__getitem__, reverse=True) for each in scores]
    assert said == ["this model has no contrastive head: all 10 images are matched with each text"]


def test_the_command(folder, image_folder, capsys):
    images, names = image_folder
    (images / "broken.png").write_bytes(b"none")
    soho = SohoPipeline.from_pretrained(folder, device="cpu")
    found = Retriever(soho, [images / name for name in names])(TEXTS[:2], 2, 4)
    rows = [(row["image"], row["score"]) for answer in found for row in answer]
    for more in ([], ["--json"]):
        arguments = [str(folder), *TEXTS[:2], "--images", str(images), "--candidates", "4", "--top_k", "2", *more]
        assert main(["retrieve", *arguments]) == 0
        said = capsys.readouterr()
        assert said.err.endswith("1 of 11 images can't be used\n")
        lines, shown = said.out.splitlines(), [(str(images / names[n]), score) for n, score in rows]
        if more:
            *answers, broken = map(json.loads, lines)
            assert broken["image"] == str(images / "broken.png") and "can't be read" in broken["error"]
            assert [line["text"] for line in answers] == TEXTS[:2]
            told = [(row["image"], row["score"]) for line in answers for row in line["answers"]]
            assert told == [(name, pytest.approx(score, abs=1e-5)) for name, score in shown]
        else:
            shown = [f"{100 * score:5.1f} %  {name}" for name, score in shown]
            assert lines[:6] == [f"{TEXTS[0]}:", *shown[:2], f"{TEXTS[1]}:", *shown[2:]]
            assert lines[6].startswith(f"{images / 'broken.png'}: image: ")


@pytest.fixture(scope="module")
def by_vectors(folder):
    """A model whose contrastive head ranked held-out data better; the folder's own had no metrics."""
    soho = {}
    of_itm = {"image_to_text_mrr": 0.5, "text_to_image_mrr": 0.2}
    for head, mrr in (("itm", 0.4), ("contrastive", 0.7)):
        metrics = of_itm | {"vectors_image_to_text_mrr": mrr, "vectors_text_to_image_mrr": 0.1}
        write_run_of(folder, 4, "0123", metrics)
        soho[head] = SohoPipeline.from_pretrained(folder, device="cpu")
        assert soho[head].head == head
        assert SohoPipeline.from_pretrained(folder, device="cpu", head="itm").head == "itm"
    yield soho["contrastive"]
    (folder / "run.json").unlink()


def test_the_better_head_ranks_and_labels(by_vectors, folder, image_folder):
    soho, paths = by_vectors, [image_folder[0] / name for name in image_folder[1][:3]]
    cosine_TI = vectors(soho, paths, TEXTS)
    for number, answer in enumerate(soho.rank(paths, [TEXTS] * 3)):
        assert {row["text"]: row["score"] for row in answer} == pytest.approx(
            dict(zip(TEXTS, cosine_TI[:, number].tolist(), strict=True)), abs=1e-5
        )
        assert [row["score"] for row in answer] == sorted((row["score"] for row in answer), reverse=True)
    scale = soho.model.contrastive_head.log_scale.detach().exp()
    prompts = [f"{start} {label}" for label in ("red", "blue") for start in ("a", "the")]
    expected = (scale * vectors(soho, paths[:1], prompts).view(2, 2)).mean(1).softmax(0)
    found = soho.label(paths[0], ["red", "blue"], templates=["a {}", "the {}"])
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        dict(zip(("red", "blue"), expected.tolist(), strict=True)), abs=1e-5
    )


def test_the_better_head_finds_images(by_vectors, folder, image_folder, capsys):
    images, names = image_folder
    paths = [images / "broken.png", *(images / name for name in names)]
    paths[0].write_bytes(b"none")
    cosine_TI = vectors(by_vectors, paths[1:], TEXTS)
    found = Retriever(by_vectors, paths)(TEXTS, candidates=len(paths))
    best = cosine_TI.sort(descending=True)
    assert numbers_of(found) == (best.indices + 1).tolist(), "the broken one is in no answer"
    assert torch.tensor([[row["score"] for row in answer] for answer in found]).allclose(best.values, atol=1e-5)
    assert main(["retrieve", str(folder), TEXTS[1], "--images", str(images), "--top_k", "1"]) == 0
    first = f"{best.values[1, 0]:6.3f}  {images / names[best.indices[1, 0]]}"
    assert capsys.readouterr().out.splitlines()[:2] == [f"{TEXTS[1]}:", first]
    assert main(["rank", str(folder), str(paths[1]), TEXTS[1]]) == 0
    assert capsys.readouterr().out == f"{cosine_TI[1, 0]:6.3f}  {TEXTS[1]}\n"


def test_a_head_that_is_not_there_is_refused(folder, folder_of):
    with pytest.raises(ValueError, match=r"^head: expected 'itm' or 'contrastive', got 'vectors'$"):
        SohoPipeline.from_pretrained(folder, head="vectors")
    with pytest.raises(ValueError, match="no contrastive head"):
        SohoPipeline.from_pretrained(folder_of("rank"), head="contrastive")


def test_where_no_image_can_be_used_each_says_so(folder, tmp_path, capsys):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"none")
    assert main(["retrieve", str(folder), "a red", "zebra", "--images", str(tmp_path), "--candidates", "1"]) == 2
    assert capsys.readouterr().err == "error: text: 'zebra' holds no word that this model knows\n"
    assert main(["retrieve", str(folder), "a red", "--images", str(tmp_path), "--candidates", "1"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "a red:" and said.out.count("can't be read") == 3
    assert said.err == "3 of 3 images can't be used\n"


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("rank", ["a red", "--images", "gone"], "images: gone can't be read (there is no such file or folder)"),
        ("rank", ["a red", "--images", "."], "images: . holds no image, nor does a folder in it"),
        ("rank", ["a red", "--images", ".", "--candidates", "0"], "candidates: expected at least 1, got 0"),
        ("rank", ["a " * 30, "--images", "one.png"], "text: expected at most 16 tokens, got 32"),
        ("answer", ["a red", "--images", "one.png"], "rank: needs a model for image-text retrieval or pre-training"),
    ],
)
def test_mistakes_are_one_line(folder_of, tmp_path, monkeypatch, capsys, kind, arguments, words):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    monkeypatch.chdir(tmp_path / "empty" if "." in arguments else tmp_path)
    assert main(["retrieve", str(folder_of(kind)), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1, said
