"""The files are read as the published ones and name images that are there; test_builder.py knows them byte by byte."""

from __future__ import annotations

import json
from collections import Counter

from PIL import Image

from soho_fast.data.mini.writers import words_of
from soho_fast.data.readers.captions import read_karpathy
from soho_fast.data.readers.questions import read_vqa


def _json(path):
    return json.loads(path.read_text())


def test_the_published_readers_read_it(corpus, settings):
    captioned = read_karpathy(corpus / "dataset_coco.json", corpus, splits=("train", "restval"))
    assert len(captioned) == 60 and all(len(record.captions) == 5 for record in captioned)
    with Image.open(captioned[0].image.open()) as opened:
        assert opened.format == "JPEG" and opened.size == (settings["image_size"],) * 2
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
