"""Captions in the files of Karpathy, COCO and Visual Genome."""

import json

import pytest
from tiny_corpus import draw, edit_json, sentences_of, write_karpathy, write_zip

from soho_fast.data.readers.captions import held_out_ids, read_coco_captions, read_karpathy, read_visual_genome
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


def write_coco(folder, year="2014", split="train"):
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
    path = write_coco(tmp_path, year)
    for images in (tmp_path, tmp_path / f"train{year}", write_zip(tmp_path / "all.zip", tmp_path)):
        first, second = read_coco_captions(path, images)
        assert (first.image_id, first.captions) == ("9", ("a blue",))
        assert (second.image_id, second.captions) == ("4", ("a red", "there is a red"))
        assert second.image.read() == (tmp_path / f"train{year}" / second.image.name.split("/")[-1]).read_bytes()
    assert first.source == f"captions_train{year}"


def test_excluded_images_are_left_out_with_their_captions(tmp_path):
    report = ReadReport()
    (record,) = read_coco_captions(write_coco(tmp_path), tmp_path, exclude_coco_ids={4}, report=report)
    assert record.image_id == "9"
    assert report.lines()[1:] == ["captions_train2014: 1 images left out: held out in COCO or Flickr30K"]


def region(image_id, phrase, width=9, height=9):
    box = {"x": 0, "y": 0, "width": width, "height": height}
    return {"region_id": hash(phrase) % 1000, "image_id": image_id, "phrase": phrase, **box}


def write_genome(folder, id_field="id", data_id_field="image_id"):
    rows = [(1, "VG_100K_2", None, "red"), (2, "VG_100K", 581, "green"), (3, "VG_100K", 582, "blue")]
    images, regions = [], []
    for number, directory, coco_id, colour in rows:
        url = f"https://cs.stanford.edu/people/rak248/{directory}/{number}.jpg"
        size = {"width": 48, "height": 40}
        images.append({data_id_field: number, "url": url, "coco_id": coco_id, "flickr_id": None, **size})
        phrases = [f"a {colour}", f"the {colour}", f"a {colour}"]
        regions.append({id_field: number, "regions": [region(number, phrase) for phrase in phrases]})
        draw(folder / directory / f"{number}.jpg", colour)
    (folder / "image_data.json").write_text(json.dumps(images))
    (folder / "region_descriptions.json").write_text(json.dumps(regions))
    return folder / "region_descriptions.json", folder / "image_data.json"


@pytest.mark.parametrize("id_field", ["id", "image_id"])
@pytest.mark.parametrize("data_id_field", ["id", "image_id"])
def test_regions_become_captions_and_the_folder_comes_from_the_url(tmp_path, id_field, data_id_field):
    records = read_visual_genome(*write_genome(tmp_path, id_field, data_id_field), tmp_path)
    assert [record.image.name for record in records] == ["VG_100K_2/1.jpg", "VG_100K/2.jpg", "VG_100K/3.jpg"]
    assert records[0].captions == ("a red", "the red"), "a phrase said twice is one caption"
    assert records[0].image_id == "1" and records[0].source == "visual_genome"


def test_images_straight_in_the_folders(tmp_path):
    paths = write_genome(tmp_path)
    records = read_visual_genome(*paths, [tmp_path / "VG_100K", tmp_path / "VG_100K_2"])
    assert [record.image.name for record in records] == ["1.jpg", "2.jpg", "3.jpg"]


def test_held_out_coco_images_are_dropped_and_null_coco_id_is_kept(tmp_path):
    report = ReadReport()
    records = read_visual_genome(*write_genome(tmp_path), tmp_path, exclude_coco_ids=[582, 7], report=report)
    assert [record.image_id for record in records] == ["1", "2"]
    assert report.num_excluded == 1
    assert report.lines()[-1].startswith("visual_genome: exclude_held_out_of names no file of Flickr30K, so its val")


def test_of_many_phrases_those_of_the_largest_regions_are_kept(tmp_path):
    regions, data = write_genome(tmp_path)
    sizes = {"a wheel": (3, 3), "a street": (40, 30), "a car": (20, 10), "a door": (20, 10), "a sign": (1, 1)}

    def enlarge(content):
        content[1]["regions"] = [region(2, phrase, *size) for phrase, size in sizes.items()]
        content[1]["regions"] += [region(2, "a sign", 48, 40), region(2, "a sign", 2, 2)]

    edit_json(regions, enlarge)
    captions = [
        read_visual_genome(regions, data, tmp_path, max_captions=number)[1].captions for number in (1, 3, 4, None)
    ]
    assert captions[0] == ("a sign",), "its largest region counts"
    assert captions[1] == ("a sign", "a street", "a car"), "of two of a size the first one"
    assert captions[2] == (*captions[1], "a door")
    assert captions[3] == tuple(sizes), "all of them stay in their order"
    edit_json(regions, lambda content: content[1]["regions"][0].pop("width"))
    with pytest.raises(ValueError, match=r"\[1\]\.regions\[0\]: no field 'width'"):
        read_visual_genome(regions, data, tmp_path, max_captions=3)


def test_held_out_flickr_images_are_dropped(tmp_path):
    regions, data = write_genome(tmp_path)
    edit_json(data, lambda content: content[0].update(flickr_id=581))
    records = read_visual_genome(regions, data, tmp_path, exclude_coco_ids=[582], exclude_flickr_ids=[581])
    assert [record.image_id for record in records] == ["2"], "581 is image 1 at Flickr, and image 2 at COCO"
