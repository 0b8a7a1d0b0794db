"""The files are in the published formats, balanced, and true of the images they name."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from PIL import Image

from soho_fast.data.mini.writers import words_of
from soho_fast.data.readers.captions import read_karpathy
from soho_fast.data.readers.questions import read_vqa


def _json(path):
    return json.loads(path.read_text())


def test_karpathy_coco(corpus, settings):
    content = _json(corpus / "dataset_coco.json")
    assert set(content) == {"images", "dataset"} and content["dataset"] == "coco"
    images = content["images"]
    keys = {"filepath", "filename", "imgid", "cocoid", "split", "sentids", "sentences"}
    assert all(set(image) == keys for image in images)
    splits = Counter(image["split"] for image in images)
    assert splits == {"train": 56, "restval": 4, "val": 10, "test": 10}
    assert [image["imgid"] for image in images] == list(range(len(images)))
    sentences = [sentence for image in images for sentence in image["sentences"]]
    assert [sentence["sentid"] for sentence in sentences] == list(range(len(sentences)))
    for image in images:
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        assert image["filename"] == f"COCO_{image['filepath']}_{image['cocoid']:012d}.jpg"
        for sentence in image["sentences"]:
            assert set(sentence) == {"tokens", "raw", "imgid", "sentid"} and sentence["imgid"] == image["imgid"]
            assert sentence["tokens"] == re.findall(r"[a-z]+", sentence["raw"].lower())
        with Image.open(corpus / image["filepath"] / image["filename"]) as opened:
            assert opened.format == "JPEG" and opened.size == (settings["image_size"],) * 2
    assert {image["filepath"] for image in images if image["split"] in ("restval", "val")} == {"val2014"}


def test_the_published_readers_read_it(corpus):
    captioned = read_karpathy(corpus / "dataset_coco.json", corpus, splits=("train", "restval"))
    assert len(captioned) == 60 and all(len(record.captions) == 5 for record in captioned)
    read = {}
    for subset, has_answers in (("train2014", True), ("val2014", True), ("test2015", False), ("test-dev2015", False)):
        annotations = corpus / "vqa" / f"v2_mscoco_{subset}_annotations.json" if has_answers else None
        questions = corpus / "vqa" / f"v2_OpenEnded_mscoco_{subset}_questions.json"
        read[subset] = read_vqa(questions, corpus, annotations)
        assert len(read[subset]) == len(_json(questions)["questions"])
        for record in read[subset] if has_answers else []:
            assert Counter(record.answers.answers).most_common(1)[0][0] == record.answers.most_common
    full, dev = ({record.question_id for record in read[subset]} for subset in ("test2015", "test-dev2015"))
    assert dev < full and {each.image.name.split("/")[0] for each in read["test2015"]} == {"test2015"}


def _questions(corpus, split):
    return _json(corpus / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json")


def test_vqa_files(corpus):
    names = sorted(path.name for path in (corpus / "vqa").iterdir())
    assert names == [
        "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        "v2_OpenEnded_mscoco_test2015_questions.json",
        "v2_OpenEnded_mscoco_train2014_questions.json",
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_train2014_annotations.json",
        "v2_mscoco_val2014_annotations.json",
    ]
    splits = {image["cocoid"]: image["split"] for image in _json(corpus / "dataset_coco.json")["images"]}
    for subset, split in (("train2014", "train"), ("val2014", "val"), ("test2015", "test")):
        content = _questions(corpus, subset)
        assert {"info", "task_type", "data_type", "license", "data_subtype", "questions"} == set(content)
        assert content["data_subtype"] == subset
        for row in content["questions"]:
            assert set(row) == {"image_id", "question", "question_id"}
            assert splits[row["image_id"]] == split, "a training image must not be asked about in validation"
            assert (corpus / subset / f"COCO_{subset}_{row['image_id']:012d}.jpg").is_file()
    ids = [row["question_id"] for subset in ("train2014", "val2014") for row in _questions(corpus, subset)["questions"]]
    assert len(ids) == len(set(ids))
    dev, full = (_questions(corpus, name)["questions"] for name in ("test-dev2015", "test2015"))
    assert 0 < len(dev) < len(full) and all(row in full for row in dev)


@pytest.mark.parametrize("subset", ["train2014", "val2014"])
def test_vqa_annotations(corpus, subset):
    content = _json(corpus / "vqa" / f"v2_mscoco_{subset}_annotations.json")
    assert set(content) == {"info", "license", "data_subtype", "annotations", "data_type"}
    questions = _questions(corpus, subset)["questions"]
    keys = {"question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id"}
    disagreements = 0
    for question, row in zip(questions, content["annotations"], strict=True):
        assert set(row) == keys
        assert (row["question_id"], row["image_id"]) == (question["question_id"], question["image_id"])
        assert question["question"].lower().startswith(row["question_type"])
        assert row["answer_type"] in ("yes/no", "number", "other")
        assert [answer["answer_id"] for answer in row["answers"]] == list(range(1, 11))
        assert all(set(answer) == {"answer", "answer_confidence", "answer_id"} for answer in row["answers"])
        assert {answer["answer_confidence"] for answer in row["answers"]} <= {"yes", "maybe", "no"}
        (common, number), *rest = Counter(answer["answer"] for answer in row["answers"]).most_common()
        assert common == row["multiple_choice_answer"] and number >= 6
        disagreements += bool(rest)
    assert 0.2 < disagreements / len(questions) < 0.8


def test_every_word_is_one_token(corpus):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    texts = [s["raw"] for image in _json(corpus / "dataset_coco.json")["images"] for s in image["sentences"]]
    for split in ("train2014", "val2014", "test2015"):
        texts += [row["question"] for row in _questions(corpus, split)["questions"]]
    for text in texts:
        tokens = tokenizer.tokenize(text)
        assert "[UNK]" not in tokens
        assert [token for token in tokens if token.isalpha()] == words_of(text)
    assert tokenizer.pad_token_id == 0
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token) == ("[CLS]", "[SEP]", "[MASK]")
    ids = tokenizer("A Dog", "two cats")
    assert tokenizer.convert_ids_to_tokens(ids.input_ids)[0] == "[CLS]"
    assert ids.token_type_ids == [0] * (ids.input_ids.index(3) + 1) + [1] * (
        len(ids.input_ids) - ids.input_ids.index(3) - 1
    )
    assert "[UNK]" not in tokenizer.tokenize("Zeppelins, 42 of them!")
    assert len(tokenizer) == len(_json(corpus / "tokenizer" / "tokenizer.json")["model"]["vocab"])
