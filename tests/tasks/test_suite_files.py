"""Files of the suites that need no training, planted small in their published formats."""

import json

import pytest
from tiny_corpus import draw, edit_json, write_zip

from soho_fast.data.readers.records import ReadReport
from soho_fast.tasks.suites import read_suite

CASE = {
    "image_path": "7.jpg", "image_id": 7, "bbox_x": 3, "bbox_y": 5, "bbox_w": 20, "bbox_h": 10,
    "true_caption": "the man is there", "false_caption": "there is the man",
}  # fmt: skip
VOTES = {"caption": 2, "foil": 0, "other": 1}
FILES = {
    "sugarcrepe": {
        "0": {"filename": "7.jpg", "caption": "a red man", "negative_caption": "a blue man"},
        "8": {"filename": "8.jpg", "caption": "a man", "negative_caption": "a woman"},
    },
    "valse": {
        "one": {"image_file": "7.jpg", "caption": "a red man", "foil": "a blue man", "mturk": VOTES},
        "two": {"image_file": "8.jpg", "caption": "a man", "foil": "a woman", "mturk": {**VOTES, "caption": 1}},
        "three": {"image_file": "8.jpg", "caption": ["a man"], "foil": "a woman", "mturk": {**VOTES, "caption": 3}},
    },
    "aro_relation": [{**CASE, "relation_name": "is"}],
    "aro_attribution": [{**CASE, "attributes": ["red", "blue"]}],
}
PAIR = {
    "id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "a red man", "caption_1": "a man, red",
    "tag": "Adjective", "collapsed_tag": "Object",
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """write(suite) gives its file; the images lie beside it."""
    for name in ("7.jpg", "8.jpg", "ex_0_img_0.png", "ex_0_img_1.png"):
        draw(tmp_path / "images" / name)

    def write(suite):
        path = tmp_path / f"{suite}.json"
        path.write_text(json.dumps(PAIR) + "\n" if suite == "winoground" else json.dumps(FILES[suite]))
        return path

    return write


def test_sugarcrepe_has_ids_with_gaps_and_the_file_as_group(write, tmp_path):
    report = ReadReport()
    first, second = read_suite("sugarcrepe", write("sugarcrepe"), tmp_path / "images", report=report)
    assert (first.texts, first.group, first.box) == (("a red man", "a blue man"), "sugarcrepe", None)
    assert [image.name for image in second.images] == ["8.jpg"]
    assert report.lines() == ["sugarcrepe sugarcrepe: 2 images, 2 examples"]


def test_valse_takes_what_two_annotators_chose(write, tmp_path):
    records = read_suite("valse", write("valse"), tmp_path / "images")
    assert [record.texts for record in records] == [("a red man", "a blue man"), ("a man", "a woman")]


@pytest.mark.parametrize(("suite", "group"), [("aro_relation", "is"), ("aro_attribution", "red_blue")])
def test_aro_has_a_box_and_groups(write, tmp_path, suite, group):
    (record,) = read_suite(suite, write(suite), tmp_path)  # below images/
    assert (record.group, record.box) == (group, (3, 5, 20, 10))
    assert record.texts == ("the man is there", "there is the man")


def test_winoground_has_two_images_named_without_a_suffix(write, tmp_path):
    archive = write_zip(tmp_path / "images.zip", tmp_path / "images", "*.png")
    (record,) = read_suite("winoground", write("winoground"), archive)
    assert [image.name for image in record.images] == ["ex_0_img_0.png", "ex_0_img_1.png"]
    assert (record.texts, record.group) == (("a red man", "a man, red"), "Object")


@pytest.mark.parametrize(
    ("suite", "change", "words"),
    [
        ("sugarcrepe", lambda file: file["8"].pop("caption"), r"sugarcrepe\.json: 8: no field 'caption'"),
        ("sugarcrepe", lambda file: file["8"].update(caption=" "), r"8: field 'caption' is empty; expected a text"),
        ("sugarcrepe", lambda file: file.clear(), "no example of sugarcrepe counts"),
        ("valse", lambda file: file["two"].pop("mturk"), r"valse\.json: two: no field 'mturk'"),
        ("valse", lambda file: file["two"].update(mturk={}), r"two\.mturk: no field 'caption'"),
        ("valse", lambda file: file["three"].update(caption=[]), r"three: field 'caption' is \[\]"),
        ("valse", lambda file: (file.pop("one"), file.pop("three")), "no example of valse counts"),
        ("aro_relation", lambda file: file[0].pop("relation_name"), r"relation\.json: \[0\]: no field 'relation_name'"),
        ("aro_relation", lambda file: file[0].update(bbox_w=10**6, bbox_h=10**6), r"\(3, 5, 1000000, 1000000\); expec"),
        ("aro_relation", lambda file: file[0].update(bbox_w=0), r"\[0\]: the box \(x, y, w, h\) is \(3, 5, 0, 10\)"),
        ("aro_attribution", lambda file: file[0].update(attributes=["red"]), r"is \['red'\], expected two"),
        ("winoground", lambda file: file.pop("image_1"), r"winoground\.json: line 1: no field 'image_1'"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(write, tmp_path, suite, change, words):
    with pytest.raises(ValueError, match=words):
        read_suite(suite, edit_json(write(suite), change), tmp_path / "images")


def test_a_missing_image_is_named_or_its_example_left_out(write, tmp_path):
    (tmp_path / "images/8.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"sugarcrepe\.json: 1 of 2 images are not in .*; first: 8\.jpg"):
        read_suite("sugarcrepe", write("sugarcrepe"), tmp_path / "images")
    (record,) = read_suite("sugarcrepe", write("sugarcrepe"), tmp_path / "images", missing_images="skip")
    assert record.images[0].name == "7.jpg"
    with pytest.raises(FileNotFoundError, match=r"gone\.json does not exist"):
        read_suite("sugarcrepe", tmp_path / "gone.json", tmp_path / "images")
