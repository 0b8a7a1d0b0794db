import json

import pytest
from tiny_corpus import COLOURS, draw, write_zip

from soho_fast.data.readers.json_lines import read_json_lines, read_json_lines_questions
from soho_fast.data.readers.records import ReadReport
from soho_fast.tasks.evaluation.metrics.vqa import vqa_accuracy, vqa_score


def write(folder, *lines):
    """`images.jsonl` in a folder, of dicts or of raw text."""
    path = folder / "images.jsonl"
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


RED = {"file": "My Photos/red one.JPG", "captions": ["a red", "there is a red"]}
BLUE = {"file": "blue.png", "captions": ["a blue"]}


@pytest.fixture
def folder(tmp_path):
    draw(tmp_path / RED["file"], "red")
    draw(tmp_path / BLUE["file"], "blue")
    return tmp_path


def test_images_beside_the_file_below_another_root_in_a_zip_and_absolute(folder, tmp_path_factory):
    path = write(folder, RED, "", BLUE)
    report = ReadReport()
    first, second = read_json_lines(path, report=report)
    assert first.captions == ("a red", "there is a red") and second.captions == ("a blue",)
    assert (first.image_id, first.source) == ("My Photos/red one.JPG", "images")
    red = (folder / RED["file"]).read_bytes()
    assert first.image.read() == red
    assert report.lines() == ["images: 2 images, 3 captions"]

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    absolute = {**BLUE, "file": str(folder / "blue.png")}
    path = write(elsewhere, {**RED, "file": "./My Photos//red one.JPG"}, absolute)
    archive = write_zip(elsewhere / "photos.zip", folder, "**/*.JPG")
    for images in (folder, [archive, folder]):
        records = read_json_lines(path, images)
        assert records[0].image.read() == red
        assert records[1].image.read() == (folder / "blue.png").read_bytes()


def test_splits_by_a_field(folder):
    path = write(folder, {**RED, "split": "train"}, {**BLUE, "split": "val"})
    report = ReadReport()
    (record,) = read_json_lines(path, splits=["val"], report=report)
    assert record.captions == ("a blue",)
    assert report.lines() == ["images: 1 images, 1 captions (val 1)"]
    assert len(read_json_lines(path)) == 2, "all splits where none is named"
    with pytest.raises(ValueError, match="split 'test' holds no image; the file's splits: train 1, val 1"):
        read_json_lines(path, splits=["test"])
    with pytest.raises(ValueError, match=r"line 2: no field 'split', while .*line 1 has one"):
        read_json_lines(write(folder, {**RED, "split": "train"}, BLUE))


def test_a_share_is_held_out_by_the_name_alone(tmp_path):
    lines = [{"file": f"{number}.jpg", "captions": ["a red"]} for number in range(60)]
    for line in lines:
        draw(tmp_path / line["file"], size=(8, 8))

    def names(splits, some):
        return [record.image_id for record in read_json_lines(write(tmp_path, *some), (), splits)]

    train, val = names(["train"], lines), names(["val"], lines)
    assert sorted([*train, *val]) == sorted(line["file"] for line in lines) and 5 <= len(val) <= 20
    assert names(["val"], lines[:40]) == [name for name in val if int(name[:-4]) < 40], "others change nothing"
    assert names(["val"], lines[::-1]) == val[::-1], "nor does the order"
    with pytest.raises(ValueError, match=r"split 'val' holds no image; the file's splits: train 1"):
        names(["val"], [line for line in lines if line["file"] == train[0]])


QUESTION = {"question": "What colour is it? ", "answer": "The red!"}


def test_questions_and_one_answer_is_enough(folder):
    more = {"question": "How many?", "answers": ["two", "2", "three"]}
    path = write(folder, {**RED, "questions": [QUESTION, more]}, BLUE)
    report = ReadReport()
    first, second = read_json_lines_questions(path, report=report)
    assert first.image is second.image
    assert (first.question, first.question_id, second.question_id) == ("What colour is it?", 0, 1)
    assert first.answers.answers == ("red",) * 10 and first.answers.answer_type == "other"
    assert second.answers.answers == ("2", "2", "3") * 3 + ("2",)
    assert (second.answers.most_common, second.answers.answer_type) == ("2", "number")
    assert report.lines() == ["images: 1 images, 2 questions", "images: 1 images left out: no question"]
    assert vqa_accuracy({0: "red", 1: "2"}, [first, second])["vqa_score"] == 1.0
    assert vqa_accuracy({0: "blue", 1: "3"}, [first, second])["vqa_score"] == pytest.approx(0.9 / 2)
    assert vqa_score("a cat", first.answers.answers) == 0.0


def test_the_id_of_a_question_is_its_place_in_the_whole_file(folder):
    path = write(
        folder,
        {**RED, "questions": [QUESTION] * 3, "split": "train"},
        {**BLUE, "questions": [QUESTION], "split": "val"},
    )
    assert [record.question_id for record in read_json_lines_questions(path, splits=["val"])] == [3]


def test_questions_to_be_answered(folder):
    asked = {"question": "What is it?"}
    path = write(
        folder, {**RED, "questions": [QUESTION], "split": "train"}, {**BLUE, "questions": [asked], "split": "test"}
    )
    assert read_json_lines_questions(path, splits=["test"])[0].answers is None
    with pytest.raises(ValueError, match=r"line 2: questions\[0\] has no answer, while .*line 1: questions\[0\] has"):
        read_json_lines_questions(path)
    with pytest.raises(ValueError, match=r'images\.jsonl: no question was found; expected some, as "questions"'):
        read_json_lines_questions(write(folder, BLUE))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file": "a.jpg"', "not valid JSON"),
        ("[1]", r'a JSON list; expected one JSON object a line, \{"file": "dog.jpg"'),
        ({"captions": ["a"]}, r"no field 'file' \(the record has: captions\)"),
        ({"file": 7}, "field 'file' is 7, expected str"),
        ({"file": " "}, "field 'file' is empty; expected the path of an image"),
        (
            {"file": "a.jpg", "caption": "a"},
            "unknown field 'caption'; the known ones are file, captions, questions, split",
        ),
        ({"file": "a.jpg", "captions": "a dog"}, "field 'captions' is 'a dog', expected list"),
        ({"file": "a.jpg", "captions": ["a", None]}, r"captions\[1\] is None, expected a text"),
        ({"file": "a.jpg", "split": ""}, "field 'split' is empty; expected a name such as train or val"),
        (RED, "image My Photos/red one.JPG comes twice, first in .*line 1; expected a line an image"),
        ({**RED, "file": "./My Photos/red one.JPG"}, "image My Photos/red one.JPG comes twice"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(folder, line, words):
    with pytest.raises(ValueError, match=rf"images\.jsonl: line 2: {words}"):
        read_json_lines(write(folder, RED, line))


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What?", "expected a JSON object with a field 'question', got str"),
        ({"answer": "red"}, "no field 'question'"),
        ({"question": "?", "answer": "red", "type": "x"}, "unknown field 'type'; the known ones are question, answer"),
        ({**QUESTION, "question": " "}, "field 'question' is empty; expected its words"),
        ({**QUESTION, "answers": ["red"]}, "both 'answer' and 'answers'; expected one of them"),
        ({"question": "?", "answer": 2}, "field 'answer' is 2, expected str"),
        ({"question": "?", "answers": []}, "0 answers; expected 1 to 10"),
        ({"question": "?", "answers": ["a dog"] * 11}, "11 answers; expected 1 to 10"),
        ({"question": "?", "answers": ["red", 2]}, "answer 2; expected a text with at least one word"),
        ({"question": "?", "answer": "A."}, r"answer 'A\.'; expected a text with at least one word that is no article"),
    ],
)
def test_a_malformed_question_is_refused_by_its_place(folder, question, words):
    path = write(folder, {**RED, "questions": [QUESTION, question]})
    with pytest.raises(ValueError, match=rf"images\.jsonl: line 1: questions\[1\]: {words}"):
        read_json_lines_questions(path)


def test_another_encoding_is_named(folder):
    path = folder / "images.jsonl"
    path.write_bytes(json.dumps(BLUE).encode() + b'\n{"file": "blue.png", "captions": ["caf\xe9"]}\n')
    with pytest.raises(ValueError, match=r"images\.jsonl: line 2: not UTF-8 .*; save the file as UTF-8"):
        read_json_lines(path)


def test_missing_images_and_empty_captions(folder):
    path = write(folder, RED, {"file": "gone.jpg", "captions": ["a"]}, {**BLUE, "captions": [" ", "a blue"]})
    with pytest.raises(FileNotFoundError, match=r"images\.jsonl: 1 of 3 images are not in .*; first: gone\.jpg"):
        read_json_lines(path)
    report = ReadReport()
    assert len(read_json_lines(path, missing_images="skip", report=report)) == 2
    assert report.lines()[1:] == [
        "images: 1 images left out: no file, as gone.jpg", "images: 1 captions left out: empty",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no image with a caption was found"):
        read_json_lines(write(folder, {"file": "blue.png"}))


def test_any_name_that_a_file_can_have(tmp_path):
    names = ["über größe ✓.jpg", "a,b;c.jpeg", "no-suffix", *(f"{colour}.png" for colour in COLOURS)]
    for name in names:
        draw(tmp_path / "draft.png").rename(tmp_path / name)
    path = write(tmp_path, *({"file": name, "captions": ["a"]} for name in names))
    assert [record.image_id for record in read_json_lines(path)] == names


def test_a_caption_longer_than_a_book_is_refused_by_name(folder):
    path = write(folder, RED, {**BLUE, "captions": ["blue " * 30_000]})
    with pytest.raises(ValueError, match=r"line 2: captions\[0\] has 150,000 characters; expected at most 100,000"):
        read_json_lines(path)
    with pytest.raises(ValueError, match=r"line 1: field 'file' has 200,000 characters"):
        read_json_lines(write(folder, {**RED, "file": "a" * 200_000}))
