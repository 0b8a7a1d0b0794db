"""Statements about images, in the files of NLVR2 and SNLI-VE."""

import json

import pytest
from tiny_corpus import draw, write_zip

from soho_fast.data.readers.records import ReadReport
from soho_fast.data.readers.statements import read_nlvr2, read_snli_ve


def write(folder, split="dev", lines=None):
    """Two statements about one pair and one about another; training pairs lie below their directory."""
    rows = [
        {"identifier": f"{split}-850-0-0", "sentence": "The left image is red.", "label": "True"},
        {"identifier": f"{split}-850-0-1", "sentence": "Both are green.", "label": "False"},
        {"identifier": f"{split}-850-3-0", "sentence": "The left image is red.", "label": "False"},
    ]
    for row in rows:
        pair = folder / "images" / split
        if split == "train":
            row["directory"] = 61
            pair = pair / "61"
        for side, colour in enumerate(("red", "blue")):
            draw(pair / f"{row['identifier'][:-2]}-img{side}.png", colour)
    path = folder / f"{split}.json"
    path.write_text("\n".join(lines or [json.dumps(row) for row in rows]) + "\n")
    return path


@pytest.mark.parametrize("split", ["train", "dev", "test1"])
def test_statements_labels_and_pairs(tmp_path, split):
    path = write(tmp_path, split)
    inner = tmp_path / "images" / split / ("61" if split == "train" else "")
    archive = write_zip(tmp_path / "all.zip", tmp_path / "images", "**/*.png")
    for images in (tmp_path / "images", tmp_path / "images" / split, inner, archive):
        report = ReadReport()
        first, second, third = read_nlvr2(path, images, report=report)
        assert [record.label for record in (first, second, third)] == [True, False, False]
        assert (first.sentence, first.identifier) == ("The left image is red.", f"{split}-850-0-0")
        assert first.left is second.left and first.right is second.right
        assert first.left.read() == (inner / f"{split}-850-0-img0.png").read_bytes()
        assert first.right.read() == (inner / f"{split}-850-0-img1.png").read_bytes()
        assert third.left.name.endswith(f"{split}-850-3-img0.png")
        assert report.lines() == ["nlvr2: 4 images, 3 statements"]


def test_a_pair_with_a_missing_image_is_left_out_whole(tmp_path):
    path = write(tmp_path)
    (tmp_path / "images/dev/dev-850-0-img1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"dev\.json: 1 of 4 images .*dev-850-0-img1\.png"):
        read_nlvr2(path, tmp_path / "images")
    (record,) = read_nlvr2(path, tmp_path / "images", missing_images="skip")
    assert record.identifier == "dev-850-3-0"
    (tmp_path / "images/dev/dev-850-3-img0.png").unlink()
    with pytest.raises(FileNotFoundError, match="of no example both images are there"):
        read_nlvr2(path, tmp_path / "images", missing_images="skip")


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


def write_snli_ve(folder, *rows):
    for number, colour in (("4705552913", "red"), ("23", "blue")):
        draw(folder / f"flickr30k-images/{number}.jpg", colour)
    path = folder / "snli_ve_dev.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_both_field_names_and_never_the_premise(tmp_path):
    path = write_snli_ve(tmp_path, NEW, OLD)
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
    assert read_snli_ve(write_snli_ve(tmp_path, row), tmp_path)[0].hypothesis == "The sisters are hugging."


def test_lines_without_a_majority_are_left_out_and_counted(tmp_path):
    report = ReadReport()
    (record,) = read_snli_ve(write_snli_ve(tmp_path, {**NEW, "gold_label": "-"}, OLD), tmp_path, report=report)
    assert record.label == "contradiction"
    assert report.lines() == [
        "snli_ve: 1 images, 1 hypotheses",
        "snli_ve: 1 hypotheses left out: gold label '-', no majority among the annotators",
    ]
    with pytest.raises(ValueError, match=r"snli_ve_dev\.jsonl: every gold_label is '-'; expected"):
        read_snli_ve(write_snli_ve(tmp_path, {**NEW, "gold_label": "-"}), tmp_path)


def test_missing_images(tmp_path):
    path = write_snli_ve(tmp_path, NEW, OLD)
    (tmp_path / "flickr30k-images/23.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"snli_ve_dev\.jsonl: 1 of 2 images .*23\.jpg"):
        read_snli_ve(path, tmp_path)
    assert [record.label for record in read_snli_ve(path, tmp_path, missing_images="skip")] == ["neutral"]
