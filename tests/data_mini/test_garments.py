"""Scenes of garments, of a small package in the place of Fashion-MNIST: what is shown, named, held out and refused."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from soho_fast.data.mini import garments
from soho_fast.data.tokenizer import words_of

PER_GARMENT = {"train": 12, "t10k": 5}
_SHOWN = (200, 100)
"""Shades of a picture's left and right halves."""


def _write(path, dims, content):
    head = bytes([0, 0, 8, len(dims)]) + np.array(dims, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + content.tobytes()))


@pytest.fixture()
def package(tmp_path, monkeypatch):
    """Each picture a square of two shades, with pixels of its own in the black around it: part, label, number."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, number in PER_GARMENT.items():
        labels = np.tile(np.arange(10, dtype=np.uint8), number)
        pictures = np.zeros((len(labels), 28, 28), np.uint8)
        pictures[:, 4:24, 4:14], pictures[:, 4:24, 14:24] = _SHOWN
        for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            picture[0, :3] = 1 + (part == "train"), 1 + label, 1 + place // 10
        _write(folder / f"{part}-images-idx3-ubyte.gz", pictures.shape, pictures)
        _write(folder / f"{part}-labels-idx1-ubyte.gz", labels.shape, labels)
    monkeypatch.setattr(garments, "FOLDER", folder)
    return folder


@pytest.fixture()
def drawn(monkeypatch):
    """Of each scene the objects and, by rendering, (is a training picture, label, number, tint) of each."""
    scenes, draw, cut = [], garments.draw_objects, garments._cutout

    def objects(*arguments):
        scenes.append((draw(*arguments), {}))
        return scenes[-1][0]

    def cutout(picture, rendering, tint, pixels):
        is_train, label, number = picture[0, :3].astype(int) - 1
        scenes[-1][1].setdefault(rendering, []).append((bool(is_train), label, number, tuple(tint)))
        return cut(picture, rendering, tint, pixels)

    monkeypatch.setattr(garments, "draw_objects", objects)
    monkeypatch.setattr(garments, "_cutout", cutout)
    return scenes


def _lines(folder, *splits):
    lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    return [line for line in lines if not splits or line["split"] in splits]


def _said(caption):
    """How many of each garment a caption names, in its order."""
    words = {"a": 1, "two": 2, "three": 3, "four": 4}
    names = {form: one for one, many in garments.NAMES for form in (one, many)}
    longest = "|".join(sorted(names, key=len, reverse=True))
    found = re.findall(rf"\b({'|'.join(words)}) ({longest})\b", caption)
    return Counter({names[name]: words[number] for number, name in found})


def _halves(image, item):
    """The colours in the middle of an object's left and right halves, [2, 3], its picture as in the package."""
    side, pixels = image.size[0], np.asarray(image).astype(int)
    reach = 5 / 28 * item.size * (-1 if item.mirrored else 1)
    return np.array([pixels[int(item.y * side), int((item.x + way * reach) * side)] for way in (-1, 1)])


def test_captions_name_what_is_there_and_where(package, drawn, tmp_path, capsys):
    folder = garments.make_garments(tmp_path / "made", num_train=60, num_heldout=6)
    assert Counter(line["split"] for line in _lines(folder)) == {"train": 60, **dict.fromkeys(garments.RENDERINGS, 6)}
    related = 0
    for line, (objects, pictures) in zip(_lines(folder, "train", "test"), drawn, strict=True):
        names = Counter(item.name for item in objects)
        assert names == Counter(
            garments.NAMES[label][0] for _, label, *_ in pictures.get("train", pictures.get("test"))
        )
        assert len(set(line["captions"])) == 5
        place = {item.name: item for item in objects}
        for caption in line["captions"]:
            where = re.search("left|right|above|below", caption)
            if where is None:
                assert _said(caption) == names
                continue
            related += 1
            (one, other), word = (place[name] for name in _said(caption)), where.group()
            assert names[one.name] == names[other.name] == 1
            apart = one.x - other.x if word in ("left", "right") else one.y - other.y
            assert apart < -0.1 if word in ("left", "above") else apart > 0.1
    assert related > 20
    known = set((folder / "tokenizer" / "vocab.txt").read_text().split())
    assert known.issuperset(word for line in _lines(folder) for text in line["captions"] for word in words_of(text))
    assert "Zalando" in capsys.readouterr().out


def test_pictures_are_of_one_part_and_come_once_before_all_others_were_shown(package, drawn, tmp_path):
    garments.make_garments(tmp_path / "made", num_train=160, num_heldout=6)
    train = [each for _, pictures in drawn for each in pictures.get("train", [])]
    assert {is_train for is_train, *_ in train} == {True}
    for label in range(10):
        numbers = [number for _, each, number, _ in train if each == label]
        number = PER_GARMENT["train"]
        rounds = [numbers[first : first + number] for first in range(0, len(numbers), number)]
        assert len(rounds) > 1 and all(len(set(one)) == len(one) for one in rounds)
        assert rounds[1] != rounds[0][: len(rounds[1])]
    for _, pictures in drawn[160:]:
        assert set(pictures) == set(garments.RENDERINGS) and len({str(each) for each in pictures.values()}) == 1
        assert not any(is_train for is_train, *_ in pictures["test"])


def test_each_rendering_shows_the_same_garments_in_its_own_way(package, drawn, tmp_path):
    folder = garments.make_garments(tmp_path / "made", num_train=1, num_heldout=8)
    shades = {"test": _SHOWN, "inverted": (255 - _SHOWN[0], 255 - _SHOWN[1]), "edges": (0, 0)}
    mirrored = set()
    for scene, (objects, pictures) in enumerate(drawn[1:]):
        images = {split: Image.open(folder / split / f"{scene:05d}.jpg") for split in garments.RENDERINGS}
        captions = [_lines(folder, split)[scene]["captions"] for split in garments.RENDERINGS]
        assert all(each == captions[0] for each in captions)
        for item, (*_, tint) in zip(objects, pictures["test"], strict=True):
            mirrored.add(item.mirrored)
            assert len(set(tint)) == 3
            for split, halves in shades.items():
                expected = np.array(halves)[:, None] * tint
                assert abs(_halves(images[split], item) - expected).max() < 24, (split, item)
        # Half of an edge's width from the left end of a garment that is not turned much.
        edges = np.asarray(images["edges"]).astype(int)
        item = objects[-1]
        row = edges[int(item.y * 128), int((item.x - item.size / 2) * 128) : int((item.x + item.size / 2) * 128)]
        assert row.max() > 80
        noise = np.asarray(images["noisy"]).astype(int) - np.asarray(images["test"])
        assert 0.09 < noise.std() / 255 < 0.17 and abs(noise.mean()) < 12
    assert mirrored == {True, False}


def test_the_same_seed_makes_the_same_bytes_and_what_is_there_is_kept(package, tmp_path):
    one, two, other = (
        garments.make_garments(tmp_path / name, num_train=4, num_heldout=2, seed=seed)
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for folder in (one, two, other)
    ]
    assert contents[0] == contents[1]
    assert [line["captions"] for line in _lines(one)] != [line["captions"] for line in _lines(other)]
    (one / "images.jsonl").write_text("")
    assert garments.make_garments(one, num_train=4, num_heldout=2) == one and not (one / "images.jsonl").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    (two / "garments.json").write_bytes(b"\xff{")
    for folder, number in ((one, 5), (tmp_path / "mine", 4), (two, 4)):
        with pytest.raises(ValueError, match=re.escape(f"{folder} is there and does not hold these scenes")):
            garments.make_garments(folder, num_train=number, num_heldout=2)
    with pytest.raises(ValueError, match="num_train, num_heldout: expected 1 or more of each, got 0 and 2"):
        garments.make_garments(tmp_path / "none", num_train=0, num_heldout=2)


def test_a_package_that_is_absent_or_damaged_is_named_and_leaves_nothing(package, tmp_path, capsys):
    images, labels = package / "t10k-images-idx3-ubyte.gz", package / "t10k-labels-idx1-ubyte.gz"
    whole = images.read_bytes()
    head = gzip.compress(gzip.decompress(whole)[:-1])
    for path, content, expected in (
        (images, whole[:-20], "can't be read"),
        (images, whole[:40] + bytes([whole[40] ^ 255]) + whole[41:], "can't be read"),
        (images, b"he", "can't be read"),
        (images, b"", "got 0 bytes"),
        (images, head, f"got {16 + 50 * 784 - 1} bytes that begin with 0000080300000032"),
        (labels, gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 2])), "got 3 labels: 0, 1, 2"),
        (labels, None, garments.INSTALL),
    ):
        images.write_bytes(whole)
        path.write_bytes(content) if content is not None else path.unlink()
        assert garments.main([str(tmp_path / "made")]) == 2
        error = capsys.readouterr().err
        assert str(path) in error and expected in error and len(error.splitlines()) == 1, error
        assert sorted(path.name for path in tmp_path.iterdir()) == ["fashion-mnist"]
