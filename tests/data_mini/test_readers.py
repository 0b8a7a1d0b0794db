"""The published readers read the demo corpus: there is no other way into it."""

import json
from collections import Counter

import pytest

from soho_fast.data.readers.captions import read_karpathy
from soho_fast.data.readers.questions import read_vqa
from soho_fast.data.readers.records import ReadReport
from soho_fast.data.readers.statements import read_nlvr2, read_snli_ve


@pytest.mark.parametrize("split", ["train2014", "val2014"])
def test_vqa(corpus, split):
    questions = corpus / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json"
    records = read_vqa(questions, corpus, corpus / "vqa" / f"v2_mscoco_{split}_annotations.json")
    assert len(records) == len(json.loads(questions.read_text())["questions"])
    for record in records:
        assert Counter(record.answers.answers).most_common(1)[0][0] == record.answers.most_common


def test_vqa_without_answers(corpus):
    full, dev = (
        read_vqa(corpus / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json", corpus)
        for split in ("test2015", "test-dev2015")
    )
    assert {record.question_id for record in dev} < {record.question_id for record in full}
    assert {record.image.name.split("/")[0] for record in full + dev} == {"test2015"}


@pytest.mark.parametrize("split", ["train", "dev", "test1"])
def test_nlvr2(corpus, split):
    records = read_nlvr2(corpus / "nlvr2" / f"{split}.json", corpus / "nlvr2" / "images")
    assert Counter(record.label for record in records) == dict.fromkeys((True, False), len(records) // 2)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_snli_ve(corpus, split):
    report = ReadReport()
    records = read_snli_ve(corpus / "snli_ve" / f"snli_ve_{split}.jsonl", corpus, report=report)
    labels = Counter(record.label for record in records)
    assert len(labels) == 3 and len(set(labels.values())) == 1
    assert report.num_captions == len(records) and 0 < report.num_images <= len(records)


def test_flickr_and_coco_hold_the_same_images(corpus):
    coco = read_karpathy(corpus / "dataset_coco.json", corpus, ["test"])
    flickr = read_karpathy(corpus / "dataset_flickr30k.json", corpus, ["test"])
    assert [record.captions for record in coco] == [record.captions for record in flickr]
    assert coco[0].image.read() == flickr[0].image.read()
