"""Scenes of garments, of a small package in the place of Fashion-MNIST: what is shown, named, held out and refused."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from soho_fast.data.mini import garments
from soho_fast.data.tokenizer import words_of

PER_GARMENT = {"train": 12, "t10k": 5}


@pytest.fixture()
def package(tmp_path, monkeypatch):
    """Each picture a bright square with one pixel of its own in the black around it: part, label, number."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, number in PER_GARMENT.items():
        labels = np.tile(np.arange(10, dtype=np.uint8), number)
        pictures = np.zeros((len(labels), 28, 28), np.uint8)
        pictures[:, 4:24, 4:24] = 200
        for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            picture[0, :3] = 1 + (part == "train"), 1 + label, 1 + place // 10
        for kind, header, content in (("images-idx3", 16, pictures), ("labels-idx1", 8, labels)):
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + content.tobytes()))
    monkeypatch.setattr(garments, "FOLDER", folder)
    return folder


@pytest.fixture()
def drawn(monkeypatch):
    """By rendering: (is a training picture, label, number) of each garment that is drawn."""
    found, inner = defaultdict(list), garments._cutout

    def spied(picture, rendering, *rest):
        is_train, label, number = picture[0, :3].astype(int) - 1
        found[rendering].append((bool(is_train), label, number))
        return inner(picture, rendering, *rest)

    monkeypatch.setattr(garments, "_cutout", spied)
    return found


def _lines(folder):
    return [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]


def _said(caption):
    """How many of each garment a caption names."""
    words = {"a": 1, "two": 2, "three": 3, "four": 4}
    names = {form: one for one, many in garments.NAMES for form in (one, many)}
    longest = "|".join(sorted(names, key=len, reverse=True))
    found = re.findall(rf"\b({'|'.join(words)}) ({longest})\b", caption)
    return Counter({names[name]: words[number] for number, name in found})


def test_scenes_show_what_their_captions_name(package, drawn, tmp_path, capsys):
    folder = garments.make_garments(tmp_path / "made", num_train=20, num_heldout=6)
    lines = _lines(folder)
    assert Counter(line["split"] for line in lines) == {"train": 20, **dict.fromkeys(garments.RENDERINGS, 6)}
    for split, rendering in (("train", "train"), ("inverted", "inverted")):
        # In the order in which they are drawn; the first three captions name all that is there.
        shown = iter(drawn[rendering])
        for line in (line for line in lines if line["split"] == split):
            said = _said(line["captions"][0])
            assert said == _said(line["captions"][1]) == _said(line["captions"][2])
            assert said == Counter(garments.NAMES[next(shown)[1]][0] for _ in range(said.total()))
            assert len(line["captions"]) == 5
        assert next(shown, None) is None
    # Pictures of one part only; in training none comes again before all others were shown.
    assert {is_train for is_train, *_ in drawn["train"]} == {True}
    for label in range(10):
        numbers = [number for _, each, number in drawn["train"] if each == label]
        assert len(set(numbers[: PER_GARMENT["train"]])) == len(numbers[: PER_GARMENT["train"]])
    # The held-out scenes are the same in every rendering, but for how they are drawn.
    by_split = {split: [line for line in lines if line["split"] == split] for split in garments.RENDERINGS}
    first, *others = by_split.values()
    assert all([line["captions"] for line in other] == [line["captions"] for line in first] for other in others)
    assert drawn["test"] == drawn["inverted"] == drawn["edges"] and not any(part for part, *_ in drawn["test"])
    means = {split: np.mean(Image.open(folder / of[0]["file"])) for split, of in by_split.items()}
    assert len(set(means.values())) == 4
    known = set((folder / "tokenizer" / "vocab.txt").read_text().split())
    assert known.issuperset(word for line in lines for text in line["captions"] for word in words_of(text))
    assert "Zalando" in capsys.readouterr().out


def test_where_garments_stand_is_said_of_those_that_are_there_once(package, tmp_path):
    lines = _lines(garments.make_garments(tmp_path / "made", num_train=60, num_heldout=2))
    related = [
        (line, caption)
        for line in lines
        for caption in line["captions"]
        if re.search("left|right|above|below", caption)
    ]
    assert len(related) > 20
    for line, caption in related:
        counts = _said(line["captions"][0])
        assert len(_said(caption)) == 2 and all(counts[name] == 1 for name in _said(caption))


def test_the_same_seed_makes_the_same_bytes_and_what_is_there_is_kept(package, tmp_path):
    one, two, other = (
        garments.make_garments(tmp_path / name, num_train=4, num_heldout=2, seed=seed)
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for folder in (one, two, other)
    ]
    assert contents[0] == contents[1] != contents[2]
    (one / "images.jsonl").write_text("")
    assert garments.make_garments(one, num_train=4, num_heldout=2) == one and not (one / "images.jsonl").read_text()
    with pytest.raises(ValueError, match=re.escape(f"{one} is there and does not hold these scenes")):
        garments.make_garments(one, num_train=5, num_heldout=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    with pytest.raises(ValueError, match="mine is there and does not hold these scenes"):
        garments.make_garments(tmp_path / "mine")


def test_a_package_that_is_absent_or_damaged_is_named_and_leaves_nothing(package, tmp_path, capsys):
    labels = package / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(bytes(8) + bytes(3)))
    assert garments.main([str(tmp_path / "made")]) == 2
    assert "3 labels up to 0; expected 28 x 28 pixels a label" in capsys.readouterr().err
    labels.unlink()
    assert garments.main([str(tmp_path / "made")]) == 2
    error = capsys.readouterr().err
    assert str(labels) in error and garments.INSTALL in error and len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fashion-mnist"]
