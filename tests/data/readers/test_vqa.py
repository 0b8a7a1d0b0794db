import json

import pytest
from tiny_corpus import draw, edit_json, write_zip

from soho_fast.data.readers.questions import read_vqa
from soho_fast.data.readers.records import ReadReport

IMAGE_IDS = (42, 42, 131089)


def write(folder, split="val2014"):
    """Three questions about two images in the published format; (questions, annotations)."""
    images = "test2015" if split == "test-dev2015" else split
    for number, image_id in enumerate(IMAGE_IDS):
        draw(folder / images / f"COCO_{images}_{image_id:012d}.jpg", ("red", "red", "blue")[number])
    questions = [
        {"image_id": image_id, "question": f"What is number {n}? ", "question_id": image_id * 1000 + n}
        for n, image_id in enumerate(IMAGE_IDS)
    ]
    annotations = [
        {
            "question_type": "what is", "answer_type": "other", **{id: row[id] for id in ("image_id", "question_id")},
            "multiple_choice_answer": f"answer {row['question_id']}",
            "answers": [
                {"answer_id": n, "answer": f"answer {row['question_id']}" if n > 1 else "no", "answer_confidence": "no"}
                for n in range(1, 11)
            ],
        }
        for row in reversed(questions)  # as published, the two files need not have the same order
    ]  # fmt: skip
    header = {"info": {}, "data_type": "mscoco", "data_subtype": split, "license": {}}
    paths = folder / f"v2_OpenEnded_mscoco_{split}_questions.json", folder / f"v2_mscoco_{split}_annotations.json"
    paths[0].write_text(json.dumps({**header, "task_type": "Open-Ended", "questions": questions}))
    paths[1].write_text(json.dumps({**header, "annotations": annotations}))
    return paths


def test_questions_meet_their_answers_and_images(tmp_path):
    questions, annotations = write(tmp_path)
    report = ReadReport()
    for images in (tmp_path, tmp_path / "val2014", write_zip(tmp_path / "all.zip", tmp_path)):
        first, second, third = read_vqa(questions, images, annotations, report=report)
        assert (first.question, first.question_id) == ("What is number 0?", 42000)
        assert first.answers.answers == ("no", *["answer 42000"] * 9)
        assert (third.answers.most_common, third.answers.answer_type) == ("answer 131089002", "other")
        assert first.answers.question_type == "what is"
        assert first.image is second.image, "an image is one object, however many questions it has"
        assert third.image.read() == (tmp_path / "val2014/COCO_val2014_000000131089.jpg").read_bytes()
    assert report.lines() == ["vqa val2014: 2 images, 3 questions"]


@pytest.mark.parametrize("split", ["test2015", "test-dev2015"])
def test_a_test_split_has_no_answers(tmp_path, split):
    questions, _ = write(tmp_path, split)
    records = read_vqa(questions, tmp_path)
    assert [record.answers for record in records] == [None, None, None]
    assert records[0].image.name == "test2015/COCO_test2015_000000000042.jpg"


def test_the_split_is_in_the_file_name_where_the_field_is_missing(tmp_path):
    questions, annotations = write(tmp_path)
    edit_json(questions, lambda content: content.pop("data_subtype"))
    assert len(read_vqa(questions, tmp_path, annotations)) == 3
    with pytest.raises(ValueError, match=r"mine\.json: neither a field 'data_subtype' nor a split such as val2014"):
        read_vqa(questions.rename(tmp_path / "mine.json"), tmp_path, annotations)


def test_missing_images(tmp_path):
    questions, annotations = write(tmp_path)
    (tmp_path / "val2014/COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"questions\.json: 1 of 2 images are not in .*000000000042\.jpg"):
        read_vqa(questions, tmp_path, annotations)
    report = ReadReport()
    (record,) = read_vqa(questions, tmp_path, annotations, missing_images="skip", report=report)
    assert record.question_id == 131089002 and record.answers.most_common == "answer 131089002"
    missing = "1 images left out: no file, as val2014/COCO_val2014_000000000042.jpg"
    assert report.lines() == ["vqa val2014: 1 images, 1 questions", f"vqa val2014: {missing}"]
    (tmp_path / "val2014/COCO_val2014_000000131089.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 2 images"):
        read_vqa(questions, tmp_path, annotations, missing_images="skip")


def test_files_that_do_not_belong_together(tmp_path):
    questions, annotations = write(tmp_path)
    _, others = write(tmp_path, "train2014")
    with pytest.raises(ValueError, match=r"annotations of train2014, but .* holds the questions of val2014"):
        read_vqa(questions, tmp_path, others)
    with pytest.raises(ValueError, match=r"annotations\.json: no field 'questions'"):
        read_vqa(annotations, tmp_path, questions)
