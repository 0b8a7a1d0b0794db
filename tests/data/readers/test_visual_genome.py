import json

import pytest
from tiny_corpus import draw, edit_json

from soho_fast.data.readers.captions import read_visual_genome
from soho_fast.data.readers.records import ReadReport


def region(image_id, phrase, width=9, height=9):
    box = {"x": 0, "y": 0, "width": width, "height": height}
    return {"region_id": hash(phrase) % 1000, "image_id": image_id, "phrase": phrase, **box}


def write(folder, id_field="id", data_id_field="image_id"):
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
    records = read_visual_genome(*write(tmp_path, id_field, data_id_field), tmp_path)
    assert [record.image.name for record in records] == ["VG_100K_2/1.jpg", "VG_100K/2.jpg", "VG_100K/3.jpg"]
    assert records[0].captions == ("a red", "the red"), "a phrase said twice is one caption"
    assert records[0].image_id == "1" and records[0].source == "visual_genome"


def test_images_straight_in_the_folders(tmp_path):
    paths = write(tmp_path)
    records = read_visual_genome(*paths, [tmp_path / "VG_100K", tmp_path / "VG_100K_2"])
    assert [record.image.name for record in records] == ["1.jpg", "2.jpg", "3.jpg"]


def test_held_out_coco_images_are_dropped_and_null_coco_id_is_kept(tmp_path):
    report = ReadReport()
    records = read_visual_genome(*write(tmp_path), tmp_path, exclude_coco_ids=[582, 7], report=report)
    assert [record.image_id for record in records] == ["1", "2"]
    assert report.num_excluded == 1
    assert report.lines()[-1].startswith("visual_genome: exclude_held_out_of names no file of Flickr30K, so its val")


def test_of_many_phrases_those_of_the_largest_regions_are_kept(tmp_path):
    regions, data = write(tmp_path)
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
    regions, data = write(tmp_path)
    edit_json(data, lambda content: content[0].update(flickr_id=581))
    records = read_visual_genome(regions, data, tmp_path, exclude_coco_ids=[582], exclude_flickr_ids=[581])
    assert [record.image_id for record in records] == ["2"], "581 is image 1 at Flickr, and image 2 at COCO"
