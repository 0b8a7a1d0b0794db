import json

import pytest
from tiny_corpus import draw, write_zip

from soho_fast.data.readers.captions import read_coco_captions
from soho_fast.data.readers.records import ReadReport


def write(folder, year="2014", split="train"):
    name = (lambda n: f"COCO_{split}2014_{n:012d}.jpg") if year == "2014" else (lambda n: f"{n:012d}.jpg")
    content = {
        "images": [{"id": number, "file_name": name(number), "height": 40, "width": 48} for number in (9, 4)],
        "annotations": [
            {"id": 1, "image_id": 4, "caption": "a red\n"},
            {"id": 2, "image_id": 9, "caption": "a blue"},
            {"id": 3, "image_id": 4, "caption": "there is a red"},
        ],
    }
    draw(folder / f"{split}{year}" / name(4), "red")
    draw(folder / f"{split}{year}" / name(9), "blue")
    path = folder / f"captions_{split}{year}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_captions_are_grouped_by_image(tmp_path, year):
    path = write(tmp_path, year)
    for images in (tmp_path, tmp_path / f"train{year}", write_zip(tmp_path / "all.zip", tmp_path)):
        first, second = read_coco_captions(path, images)
        assert (first.image_id, first.captions) == ("9", ("a blue",))
        assert (second.image_id, second.captions) == ("4", ("a red", "there is a red"))
        assert second.image.read() == (tmp_path / f"train{year}" / second.image.name.split("/")[-1]).read_bytes()
    assert first.source == f"captions_train{year}"


def test_excluded_images_are_left_out_with_their_captions(tmp_path):
    report = ReadReport()
    (record,) = read_coco_captions(write(tmp_path), tmp_path, exclude_coco_ids={4}, report=report)
    assert record.image_id == "9"
    assert report.lines()[1:] == ["captions_train2014: 1 images left out: held out in COCO or Flickr30K"]
