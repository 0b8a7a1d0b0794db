import json

import pytest
from tiny_corpus import draw, write_zip

from soho_fast.data.readers.records import ReadReport
from soho_fast.data.readers.statements import read_snli_ve

NEW = {
    "Flickr30K_ID": "4705552913",
    "annotator_labels": ["neutral", "entailment", "neutral"],
    "captionID": "4705552913.jpg#2",
    "gold_label": "neutral",
    "pairID": "4705552913.jpg#2r1n",
    "sentence1": "Two women are embracing.",
    "sentence2": "The sisters are hugging. ",
}
OLD = {
    **{name: value for name, value in NEW.items() if name != "Flickr30K_ID"},
    "Flikr30kID": "23.jpg",
    "gold_label": "contradiction",
    "pairID": "23.jpg#2r1c",
}


def write(folder, *rows):
    for number, colour in (("4705552913", "red"), ("23", "blue")):
        draw(folder / f"flickr30k-images/{number}.jpg", colour)
    path = folder / "snli_ve_dev.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_both_field_names_and_never_the_premise(tmp_path):
    path = write(tmp_path, NEW, OLD)
    report = ReadReport()
    archive = write_zip(tmp_path / "all.zip", tmp_path)
    for images in (tmp_path, tmp_path / "flickr30k-images", archive):
        new, old = read_snli_ve(path, images, report=report)
        assert (new.hypothesis, new.label, new.pair_id) == (
            "The sisters are hugging.",
            "neutral",
            "4705552913.jpg#2r1n",
        )
        assert new.image.read() == (tmp_path / "flickr30k-images/4705552913.jpg").read_bytes()
        assert old.image.read() == (tmp_path / "flickr30k-images/23.jpg").read_bytes()
        assert old.label == "contradiction"
    assert "embracing" not in repr([new, old])
    assert report.lines() == ["snli_ve: 2 images, 2 hypotheses"]


def test_the_premise_need_not_be_there(tmp_path):
    row = {name: value for name, value in NEW.items() if name != "sentence1"}
    assert read_snli_ve(write(tmp_path, row), tmp_path)[0].hypothesis == "The sisters are hugging."


def test_lines_without_a_majority_are_left_out_and_counted(tmp_path):
    report = ReadReport()
    (record,) = read_snli_ve(write(tmp_path, {**NEW, "gold_label": "-"}, OLD), tmp_path, report=report)
    assert record.label == "contradiction"
    assert report.lines() == [
        "snli_ve: 1 images, 1 hypotheses",
        "snli_ve: 1 hypotheses left out: gold label '-', no majority among the annotators",
    ]
    with pytest.raises(ValueError, match=r"snli_ve_dev\.jsonl: every gold_label is '-'; expected"):
        read_snli_ve(write(tmp_path, {**NEW, "gold_label": "-"}), tmp_path)


def test_missing_images(tmp_path):
    path = write(tmp_path, NEW, OLD)
    (tmp_path / "flickr30k-images/23.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"snli_ve_dev\.jsonl: 1 of 2 images .*23\.jpg"):
        read_snli_ve(path, tmp_path)
    assert [record.label for record in read_snli_ve(path, tmp_path, missing_images="skip")] == ["neutral"]
