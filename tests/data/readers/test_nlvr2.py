import json

import pytest
from tiny_corpus import draw, write_zip

from soho_fast.data.readers.records import ReadReport
from soho_fast.data.readers.statements import read_nlvr2


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
