import pytest
from tiny_corpus import edit_json, sentences_of, write_karpathy, write_zip

from soho_fast.data.readers.captions import held_out_ids, read_karpathy
from soho_fast.data.readers.records import ReadReport

SPLITS = {"train": ["red", "green"], "restval": ["blue"], "val": ["cyan"], "test": ["white", "black"]}


def test_coco_splits_captions_and_images(tmp_path):
    path = write_karpathy(tmp_path, SPLITS)
    report = ReadReport()
    records = read_karpathy(path, tmp_path, ["train", "restval"], report=report)
    assert [record.image_id for record in records] == ["0", "1", "2"]
    assert records[2].captions == tuple(sentences_of("blue"))
    assert str(records[0].image) == str(tmp_path / "train2014/0000.jpg")
    assert records[2].image.name == "val2014/0002.jpg", "restval images live in val2014"
    assert records[0].image.read() == (tmp_path / "train2014/0000.jpg").read_bytes()
    assert report.lines() == ["coco: 3 images, 6 captions (train 2, restval 1)"]


def test_flickr_has_neither_filepath_nor_cocoid(tmp_path):
    path = write_karpathy(tmp_path, {"train": ["red"], "test": ["blue"]}, coco=False)
    below = read_karpathy(path, tmp_path / "flickr30k-images", ["test"])
    above = read_karpathy(path, tmp_path, ["test"])
    assert below[0].image.read() == above[0].image.read() != b""
    assert below[0].source == "flickr30k"


def test_more_than_five_sentences_are_kept_unless_cut(tmp_path):
    path = write_karpathy(tmp_path, {"test": ["red"]}, sentences=lambda colour: [f"a {colour} {n}" for n in range(7)])
    assert len(read_karpathy(path, tmp_path, ["test"])[0].captions) == 7
    assert read_karpathy(path, tmp_path, ["test"], max_captions=5)[0].captions[-1] == "a red 4"


def test_images_from_zip_and_from_several_places(tmp_path):
    path = write_karpathy(tmp_path, SPLITS)
    archive = write_zip(tmp_path / "images.zip", tmp_path)
    expected = [record.image.read() for record in read_karpathy(path, tmp_path, ["train", "val"])]
    zipped = read_karpathy(path, archive, ["train", "val"])
    assert [record.image.read() for record in zipped] == expected
    first = write_zip(tmp_path / "first.zip", tmp_path, "train2014/*.jpg")
    both = read_karpathy(path, [first, tmp_path / "val2014"], ["train", "val"])
    assert [record.image.read() for record in both] == expected


def test_heldout_coco_ids(tmp_path):
    path = write_karpathy(tmp_path, SPLITS)
    assert held_out_ids(path) == ("COCO", {1003, 1004, 1005})


def test_wrong_paths(tmp_path):
    path = write_karpathy(tmp_path, SPLITS)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist; expected a Karpathy split file"):
        read_karpathy(tmp_path / "nowhere.json", tmp_path, ["train"])
    with pytest.raises(FileNotFoundError, match="is a folder; expected a file"):
        read_karpathy(tmp_path, tmp_path, ["train"])
    with pytest.raises(FileNotFoundError, match=r"gone does not exist; expected a folder or a \.zip"):
        read_karpathy(path, tmp_path / "gone", ["train"])
    with pytest.raises(ValueError, match=r"neither a folder nor a \.zip"):
        read_karpathy(path, path, ["train"])


def test_unknown_and_empty_split_name_those_present(tmp_path):
    path = write_karpathy(tmp_path, {"train": ["red"], "val": ["blue"]})
    with pytest.raises(ValueError, match="split 'restval' holds no image; the file has: train, val"):
        read_karpathy(path, tmp_path, ["train", "restval"])
    with pytest.raises(ValueError, match="expected a list of split names"):
        read_karpathy(path, tmp_path, "train")
    with pytest.raises(ValueError, match="expected a list of split names"):
        read_karpathy(path, tmp_path, [])


def test_missing_images_are_counted_and_named(tmp_path):
    path = write_karpathy(tmp_path, SPLITS)
    (tmp_path / "train2014/0001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are not in .*; first: train2014/0001\.jpg"):
        read_karpathy(path, tmp_path, ["train"])
    report = ReadReport()
    assert len(read_karpathy(path, tmp_path, ["train"], missing_images="skip", report=report)) == 1
    assert report.lines()[1:] == ["coco: 1 images left out: no file, as train2014/0001.jpg"]
    (tmp_path / "train2014/0000.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 2 images are not in"):
        read_karpathy(path, tmp_path, ["train"], missing_images="skip")


def test_images_without_captions_are_left_out_and_counted(tmp_path):
    path = write_karpathy(tmp_path, SPLITS)
    edit_json(path, lambda content: content["images"][0].update(sentences=[]))
    edit_json(path, lambda content: content["images"][1]["sentences"][0].update(raw="  "))
    report = ReadReport()
    (record,) = read_karpathy(path, tmp_path, ["train"], report=report)
    assert record.captions == ("a green",)
    assert report.lines()[1:] == ["coco: 1 images left out: no caption", "coco: 1 captions left out: empty"]
    edit_json(path, lambda content: content["images"][1].update(sentences=[]))
    with pytest.raises(ValueError, match="no image with a caption was found"):
        read_karpathy(path, tmp_path, ["train"])


def test_flickr_ids_are_the_names_of_the_held_out_files(tmp_path):
    path = write_karpathy(tmp_path, {"train": ["red"], "val": ["green"], "test": ["blue", "cyan"]}, coco=False)
    assert held_out_ids(path) == ("Flickr30K", {1, 2, 3})
    edit_json(path, lambda content: content["images"][2].update(filename="COCO_2.jpg"))
    with pytest.raises(ValueError, match=r"images\[2\]: no cocoid, and the file 'COCO_2\.jpg' is not named by a"):
        held_out_ids(path)
    edit_json(path, lambda content: content.update(images=content["images"][:1]))
    with pytest.raises(ValueError, match="no image in the splits val, test"):
        held_out_ids(path)
