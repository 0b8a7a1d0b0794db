"""examples/real_images on packages that are planted in its cache."""

import hashlib
import importlib.util
import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soho_fast.data.readers.json_lines import read_json_lines

SCRIPT = Path(__file__).resolve().parents[2] / "examples/real_images/real_images.py"
COPYRIGHT = b"""Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2002 Ada Example
License: GPL-2

Files: animals/*.jpg src/activities/erase/*.jpg
  fruit/pear.jpg
Copyright: Bob Example
 and others
License: CC-BY-3.0

License: GPL-2
 Its text.
"""


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def photo(seed):
    return np.random.default_rng(seed).integers(0, 256, (48, 48, 3))


def deb(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = b"!<arch>\n"
    for name, part in (("debian-binary", b"2.0"), ("data.tar.xz", buffer.getvalue())):
        content += (
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
        )
    return content


def rcc(folder, files, version):
    """As Qt's rcc writes it: a folder with files, every second one compressed."""
    names, offsets = b"", {}
    for name in (folder, *files):
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    stamp = struct.pack(">Q", 7) if version > 1 else b""
    tree = struct.pack(">IHII", 0, 2, 1, 1) + stamp + struct.pack(">IHII", offsets[folder], 2, len(files), 2) + stamp
    blocks = b""
    for number, (name, content) in enumerate(files.items()):
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if number % 2 else content
        tree += struct.pack(">IHHHI", offsets[name], number % 2, 0, 1, len(blocks)) + stamp
        blocks += struct.pack(">I", len(packed)) + packed
    head = 20 if version < 3 else 24
    places = (head + len(names) + len(blocks), head + len(names), head)
    return b"qres" + struct.pack(">4I", version, *places) + b"\0" * (head - 20) + names + blocks + tree


def stamps():
    drawing = np.full((48, 48, 3), 250)
    drawing[10:30, 10:30] = (200, 10, 10)
    large, dog = np.zeros((400, 900, 4)), photo(2)
    large[50:350, 100:700] = [*np.array([9, 8, 7]), 255]
    large[50:350, 100:700, :3] = np.random.default_rng(1).integers(0, 256, (300, 600, 3))
    found = {
        "animals/redFox2": (encoded(large), "A fox.\nde.utf8=Ein Fuchs."),
        "animals/dog": (encoded(dog), "A dog."),
        "animals/dog_mirror": (encoded(dog[:, ::-1]), "A mirrored dog."),
        "animals/wolf": (encoded(np.clip(dog + 12, 0, 255)), "A wolf."),
        "fruit/pear": (encoded(photo(3)), "A pear."),
        "fruit/two_pears": (encoded(photo(4)), "Pears!"),
        "town/tower": (encoded(photo(10)), "Eiffel Tower."),
        "town/tower_at_night": (encoded(photo(11)), "The Eiffel Tower, Paris."),
        "fruit/drawn": (encoded(drawing), "A drawn fruit."),
        "fruit/cartoon/apple": (encoded(photo(5)), "An apple."),
        "symbols/euro": (encoded(photo(6)), "A coin."),
        "fruit/silent": (encoded(photo(8)), ""),
        "fruit/cyrillic": (encoded(photo(9)), "Груша."),
    }
    for name, (image, text) in found.items():
        yield f"usr/share/tuxpaint/stamps/{name}.png", image
        yield f"usr/share/tuxpaint/stamps/{name}.txt", text.encode()


def scenes(activities):
    """A file of resources for each activity, in which the paths have no folders but the first."""
    hill = (
        b'"title": qsTr("Mount Rushmore"),\n "text": qsTr("Mt. Rushmore is a hill. It is high."),\n "image2": "qrc:/%s"'
    )
    inner = "gcompris/src/activities/{}/resource/"
    contents = {
        "erase": {"red_panda.webp": encoded(photo(21), "WEBP")},
        "explore_monuments": {
            "hill.webp": encoded(photo(22), "WEBP"),
            "board.qml": hill % (inner.format("explore_monuments") + "hill.webp").encode(),
        },
        "details": {
            "board.qml": b'instruction: qsTr("A castle")\n "pixmapfile" : "castle_b.webp"',
            "castle_b.webp": encoded(photo(23), "WEBP"),
            "castle_0.webp": encoded(photo(24), "WEBP"),
        },
    }
    for version, name in enumerate(activities):
        yield f"usr/share/rcc/{name}.rcc", rcc(inner.format(name)[:-1], contents.get(name, {}), 1 + version % 3)


def furniture():
    properties = (
        b"name=Catalogue\nname#1=Caf\\u00e9 table \ncategory#1=Office\ntags#1=Blend Swap, Seat\nicon#1=/a/table.png\n"
        b"creator#1=Hermes\nname#2=Bed\ncategory#2=Bedroom\ntags#2=\nicon#2=/a/bed.png\n"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/table.png", encoded(photo(31)))
        archive.writestr("a/bed.png", encoded(photo(32)))
        archive.writestr("PluginFurnitureCatalog.properties", properties)
    yield "usr/share/x/Shop.sh3f", buffer.getvalue()


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script, whose cache has a package of each kind, made here."""
    spec = importlib.util.spec_from_file_location("real_images", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (tmp_path / "cache").mkdir()
    packages = []
    made = (stamps(), scenes(script.ACTIVITIES), furniture())
    for (name, version, _, *rest), files in zip(script.PACKAGES, made, strict=True):
        content = deb({"usr/share/doc/x/copyright": COPYRIGHT, **dict(files)})
        (tmp_path / "cache" / f"{name}_{version}_all.deb").write_bytes(content)
        packages.append((name, version, hashlib.sha256(content).hexdigest(), *rest))
    monkeypatch.setattr(script, "PACKAGES", packages)
    monkeypatch.setattr(script, "HELD_OUT_SHARE", 1.0)
    return script


def test_images_and_words_of_packages_become_a_corpus(script, tmp_path, capsys):
    folder = tmp_path / "corpus"
    script.build(folder, tmp_path / "cache")
    found = {
        split: {
            each.image.name[7:-4]: each.captions for each in read_json_lines(folder / "images.jsonl", folder, [split])
        }
        for split in ("train", "val")
    }
    stamp, scene, shop = "tuxpaint-stamps-default_", "gcompris-qt-data_", "sweethome3d-furniture_Shop_a_"
    # Not held out: what looks alike, what has one name, and whose name is a part of another's.
    assert found == {
        "val": {
            f"{stamp}animals_redFox2": ("A fox.", "red fox", "red fox, animals"),
            f"{stamp}fruit_cyrillic": ("cyrillic", "cyrillic, fruit"),
            f"{scene}erase_red_panda": ("red panda", "red panda, animals"),
            f"{scene}explore_monuments_hill": ("Mount Rushmore", "Mt. Rushmore is a hill", "hill, monuments"),
            f"{scene}details_castle_b": ("A castle",),
            f"{shop}table": ("Café table", "café table, office, seat"),
            f"{shop}bed": ("Bed", "bed, bedroom"),
        },
        "train": {
            f"{stamp}animals_dog": ("A dog.", "dog", "dog, animals"),
            f"{stamp}animals_wolf": ("A wolf.", "wolf", "wolf, animals"),
            f"{stamp}fruit_pear": ("A pear.", "pear", "pear, fruit"),
            f"{stamp}fruit_two_pears": ("Pears!", "two pears", "two pears, fruit"),
            f"{stamp}town_tower": ("Eiffel Tower.", "tower", "tower, town"),
            f"{stamp}town_tower_at_night": ("The Eiffel Tower, Paris.", "tower at night", "tower at night, town"),
        },
    }
    assert "13 images (8 of tuxpaint-stamps-default, 3 of gcompris-qt-data, 2 of" in capsys.readouterr().out
    with Image.open(folder / f"images/{stamp}animals_redFox2.jpg") as fox:
        assert fox.size == (256, 128), "cut to what shows"
    whose = {name: entry for entry in json.loads((folder / "licences.json").read_text()) for name in entry["images"]}
    told = {
        name: (whose[f"images/{name}.jpg"]["licence"], whose[f"images/{name}.jpg"]["credit"])
        for name in (f"{stamp}fruit_pear", f"{stamp}fruit_two_pears", f"{scene}erase_red_panda", f"{shop}table")
    }
    assert list(told.values()) == [
        ("CC-BY-3.0", "Bob Example and others"),
        ("GPL-2", "2002 Ada Example"),
        ("CC-BY-3.0", "Bob Example and others"),
        ("GPL-2", "Hermes"),
    ]
    assert sorted(each.name for each in folder.iterdir()) == ["images", "images.jsonl", "licences.json"]


def test_what_is_missing_changed_or_there_is_named_and_nothing_is_written(script, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(SystemExit, match="there is there; expected the name of a new folder"):
        script.build(tmp_path / "there", tmp_path / "cache")
    file = tmp_path / "cache" / "gcompris-qt-data_25.0.12-1_all.deb"
    file.write_bytes(b"another")
    with pytest.raises(
        SystemExit, match=rf"{file}: expected a file of SHA-256 .*, got {hashlib.sha256(b'another').hexdigest()}"
    ):
        script.build(tmp_path / "corpus", tmp_path / "cache")
    file.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SystemExit, match=r"can't fetch version 25.0.12-1 .*fetch gcompris-qt-data_25.*snapshot.debian.org"
    ):
        script.build(tmp_path / "corpus", tmp_path / "cache")
    assert not (tmp_path / "corpus").exists()
