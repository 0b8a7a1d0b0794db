"""`soho import packages`: planted packages instead of the registries', with the registries' clients or stand-ins."""

import hashlib
import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from soho_fast.data import importing
from soho_fast.data.packages import building, reading, sources
from soho_fast.data.packages.fetching import Package, fetch, read_files
from soho_fast.data.readers.json_lines import read_json_lines

STAMPS = "tuxpaint-stamps-default"


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def photo(seed, edge=48):
    return np.random.default_rng(seed).integers(0, 256, (edge, edge, 3))


def tar(files, compression):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("./link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def deb(files):
    content = b"!<arch>\n"
    for name, part in (("debian-binary", b"2.0"), ("data.tar.xz", tar(files, "xz"))):
        content += (
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
        )
    return content


def wheel(files):
    buffer = io.BytesIO()
    about = {
        "planted-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n",
        "planted-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "planted-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, each in {**files, **about}.items():
            archive.writestr(name, each)
    return buffer.getvalue()


def package(content, registry="Debian"):
    return Package(registry, "planted", "1.0", len(content), hashlib.sha256(content).hexdigest())


COPYRIGHT = b"""Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2002 Ada Example
License: GPL-2

Files: animals/*.jpg
  fruit/pear.jpg
Copyright: Bob Example
 and others
License: CC-BY-3.0

License: GPL-2
 Its text.
"""

ROOT = "usr/share/tuxpaint/stamps/"


def stamps():
    """Name of a stamp -> (what its .png holds, what its .txt holds)."""
    drawing = np.full((48, 48, 3), 250)
    drawing[10:30, 10:30] = (200, 10, 10)
    dog = photo(2)
    return {
        "animals/redFox2": (encoded(photo(1)), "A fox.\nde.utf8=Ein Fuchs."),
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
        "fruit/broken": (encoded(photo(7))[:500], "A broken fruit."),
        "fruit/silent": (encoded(photo(8)), ""),
        "fruit/cyrillic": (encoded(photo(9)), "Груша."),
    }


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A package of stamps that lies in the cache, in the place of Debian's."""
    files = {"usr/share/doc/planted/copyright": COPYRIGHT}
    for name, (image, text) in stamps().items():
        files |= {f"{ROOT}{name}.png": image} | ({f"{ROOT}{name}.txt": text.encode()} if text else {})
    content = deb(files)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "planted_1.0_all.deb").write_bytes(content)
    source = sources.Source((package(content),), reading.read_stamps, has_drawings=True)
    monkeypatch.setitem(sources.SOURCES, STAMPS, source)
    monkeypatch.setattr(building, "_HELD_OUT_SHARE", 1.0)
    return tmp_path


def run(capsys, folder, *arguments, code=0):
    command = ["packages", folder, "--cache", folder.parent / "cache", "--packages", STAMPS, *arguments]
    assert importing.main(list(map(str, command))) == code
    said = capsys.readouterr()
    assert not code or (said.err.count("\n") == 1 and said.err.startswith("error: ")), said.err
    return said.err if code else said.out


def test_photographs_become_a_corpus(planted, capsys):
    folder = planted / "corpus"
    said = run(capsys, folder)
    found = {
        split: {each.image.name: each.captions for each in read_json_lines(folder / "images.jsonl", folder, [split])}
        for split in ("train", "val")
    }
    name = f"images/{STAMPS}"
    # Not held out: what looks alike, what has one name, and whose name is a part of another's.
    assert found == {
        "val": {
            f"{name}_animals_redFox2.jpg": ("A fox.", "red fox", "red fox, animals"),
            f"{name}_fruit_cyrillic.jpg": ("cyrillic", "cyrillic, fruit"),
        },
        "train": {
            f"{name}_animals_dog.jpg": ("A dog.", "dog", "dog, animals"),
            f"{name}_animals_wolf.jpg": ("A wolf.", "wolf", "wolf, animals"),
            f"{name}_fruit_pear.jpg": ("A pear.", "pear", "pear, fruit"),
            f"{name}_fruit_two_pears.jpg": ("Pears!", "two pears", "two pears, fruit"),
            f"{name}_town_tower.jpg": ("Eiffel Tower.", "tower", "tower, town"),
            f"{name}_town_tower_at_night.jpg": ("The Eiffel Tower, Paris.", "tower at night", "tower at night, town"),
        },
    }
    assert "left out: 1 images: its file can't be read\n" in said
    assert "left out: 1 images: a drawing, or too small\n" in said
    assert "left out: 1 images: no text in Latin letters\n" in said
    assert "left out: 1 images: nearly the same as another image\n" in said
    assert f"wrote {folder}; next: soho tokenizer {folder}/images.jsonl" in said
    licences = {entry["licence"]: entry for entry in json.loads((folder / "licences.json").read_text())}
    assert licences["CC-BY-3.0"]["credit"] == "Bob Example and others"
    assert f"{name}_fruit_pear.jpg" in licences["CC-BY-3.0"]["images"]
    assert f"{name}_fruit_two_pears.jpg" in licences["GPL-2"]["images"]
    assert sorted(each.name for each in folder.iterdir()) == ["images", "images.jsonl", "licences.json"]


def test_a_large_image_is_cut_to_what_shows_and_made_small():
    pixels = np.zeros((400, 900, 4))
    pixels[50:350, 100:700] = 255
    small = building._small(encoded(pixels))
    assert small.size == (256, 128) and small.getchannel("A").getextrema() == (255, 255)


def test_a_share_is_held_out_by_name():
    images = [
        building._Kept(f"{number}.jpg", STAMPS, None, [f"the {chr(97 + number % 26)}{'x' * (number // 26 + 1)}"], None)
        for number in range(500)
    ]
    held_out = building._held_out(images, [1] * 500)
    assert 0.28 < np.mean(held_out) < 0.42
    assert held_out[:50] == building._held_out(images[:50], [1] * 50)


def test_a_changed_package_is_named_and_nothing_is_written(planted, capsys):
    file = planted / "cache" / "planted_1.0_all.deb"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(b"another")
    said = run(capsys, planted / "corpus", code=2)
    came = hashlib.sha256(b"another").hexdigest()
    assert f"planted 1.0 (Debian): its file has changed: SHA-256 {came}; expected {expected}; delete {file}" in said
    assert os.listdir(planted) == ["cache"]


def test_a_folder_that_is_there_is_kept(planted, capsys):
    folder = planted / "corpus"
    (folder / "mine").mkdir(parents=True)
    for arguments in ((), ("--overwrite",)):
        assert f"folder: {folder} is there; name a new one" in run(capsys, folder, *arguments, code=2)
    (folder / "mine").rmdir()
    folder.rmdir()
    run(capsys, folder)
    assert "is there" in run(capsys, folder, code=2)
    (folder / "images.jsonl").write_text("")
    run(capsys, folder, "--overwrite")
    assert (folder / "images.jsonl").read_text()


def test_a_cache_that_is_a_file_is_named(planted, capsys):
    file = planted / "cache/planted_1.0_all.deb"
    assert f"cache: {file} is a file; expected a folder" in run(capsys, planted / "corpus", "--cache", file, code=2)
    assert os.listdir(planted) == ["cache"]


def test_without_a_usable_image_nothing_is_written(planted, capsys, monkeypatch):
    monkeypatch.setattr(building, "_is_drawing", lambda image: True)
    said = run(capsys, planted / "corpus", code=2)
    assert f"no image of {STAMPS} can be used" in said and "'a drawing, or too small': 10" in said
    assert os.listdir(planted) == ["cache"]


def client(folder, monkeypatch, name, script):
    """A command of that name, and no other one, on the path."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}")


CLIENTS = {
    "Debian": ("apt-get", "download planted=1.0", "planted_1.0_all.deb", deb),
    "npm": ("npm", "pack --silent planted@1.0", "planted-1.0.tgz", lambda files: tar(files, "gz")),
}


@pytest.mark.parametrize("registry", CLIENTS)
def test_a_package_is_fetched_once_and_read(tmp_path, monkeypatch, registry):
    name, arguments, file, pack = CLIENTS[registry]
    content = pack({"a/b.png": b"image", "a/c.txt": b"text"})
    (tmp_path / "there").write_bytes(content)
    client(tmp_path, monkeypatch, name, f'[ "$*" = "{arguments}" ] && /bin/cp {tmp_path}/there {file}')
    said = []
    path = fetch(package(content, registry), tmp_path / "cache", said.append)
    assert read_files(path, lambda name: name.endswith(".png")) == {"a/b.png": b"image"}
    assert len(said) == 1 and "fetching planted 1.0" in said[0]
    (tmp_path / "bin" / name).unlink()
    assert fetch(package(content, registry), tmp_path / "cache", said.append) == path and len(said) == 1


def test_pip_fetches_from_the_index_that_is_set(tmp_path, monkeypatch):
    content = wheel({"planted/a.png": b"image"})
    file = "planted-1.0-py3-none-any.whl"
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / file).write_bytes(content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    path = fetch(package(content, "PyPI"), tmp_path / "cache", lambda line: None)
    assert read_files(path, lambda name: name.endswith(".png")) == {"planted/a.png": b"image"}


def test_where_no_registry_is_reached_one_line_says_what_to_do(tmp_path, monkeypatch):
    content = deb({})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"planted 1.0 \(Debian\): apt-get can't fetch it .*put it into .*cache"):
        fetch(package(content), tmp_path / "cache", lambda line: None)
    client(tmp_path, monkeypatch, "apt-get", "echo E: Version 1.0 of planted was not found >&2; exit 100")
    with pytest.raises(
        ValueError, match=r"expected planted_1.0_all.deb of `apt-get .*E: Version 1.0 of planted was not"
    ):
        fetch(package(content), tmp_path / "cache", lambda line: None)
    client(tmp_path, monkeypatch, "apt-get", "echo > planted_1.1_all.deb")
    with pytest.raises(ValueError, match=r"got \['planted_1.1_all.deb'\]"):
        fetch(package(content), tmp_path / "cache", lambda line: None)
    client(tmp_path, monkeypatch, "apt-get", "echo > planted_1.0_all.deb")
    with pytest.raises(ValueError, match="its file has changed"):
        fetch(package(content), tmp_path / "cache", lambda line: None)
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.deb", b"!<arch>\n"), ("a.deb", deb({"a.png": b"b" * 999})[:-200]), ("a.tgz", b"no"), ("a.whl", b"no")],
)
def test_a_damaged_package_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s){name}: can't be read \(.*expected a .deb, .tgz"):
        read_files(tmp_path / name, lambda name: True)


def planted_deb(folder, files):
    (folder / "planted.deb").write_bytes(deb(files))
    return folder / "planted.deb"


def test_scenes_have_what_their_activities_say(tmp_path, monkeypatch):
    qml = (
        '"title": qsTr("Mount Rushmore"),\n "text": qsTr("Mt. Rushmore is a hill. It is high."),\n "image2": "qrc:/%s"'
    )
    inner = "gcompris/src/activities/%s/resource/%s"
    hill = inner % ("explore_monuments", "usa/hill.webp")
    contents = {name: {} for name in reading._ACTIVITIES} | {
        "erase": {inner % ("erase", "red_panda.webp"): b"panda"},
        "categorization": {inner % ("categorization", "images/others/cup2.webp"): b"cup"},
        "explore_monuments": {hill: b"hill", inner % ("explore_monuments", "board/board1.qml"): (qml % hill).encode()},
        "details": {
            inner % ("details", "board/b.qml"): b'instruction: qsTr("A castle")\n "pixmapfile" : "image/castle_b.webp"',
            inner % ("details", "image/castle_b.webp"): b"castle",
            inner % ("details", "image/castle_0.webp"): b"a part of it",
        },
    }
    monkeypatch.setattr(reading, "files_in_rcc", lambda content, where: contents[content.decode()])
    copyright = COPYRIGHT.replace(b"animals/*.jpg", b"src/activities/erase/*.jpg")
    files = {"usr/share/doc/planted/copyright": copyright, "usr/share/rcc/lang.rcc": b"lang"}
    files |= {f"usr/share/rcc/{name}.rcc": name.encode() for name in reading._ACTIVITIES}
    found = list(reading.read_scenes(planted_deb(tmp_path, files)))
    assert {each.content: each.captions for each in found} == {
        b"panda": ("red panda", "red panda, animals"),
        b"cup": ("cup", "cup"),
        b"hill": ("Mount Rushmore", "Mt. Rushmore is a hill", "hill, usa, monuments"),
        b"castle": ("A castle", ""),
    }
    assert {each.content: each.licence for each in found}[b"panda"] == "CC-BY-3.0"
    assert {each.content: each.licence for each in found}[b"castle"] == "GPL-2"


def test_furniture_has_names_categories_and_tags(tmp_path):
    properties = (
        b"name=Catalogue\nid#1=A#arm\nname#1=Caf\\u00e9 table \ncategory#1=Office\ntags#1=Blend Swap, Seat\n"
        b"icon#1=/a/table.png\n"
        b"model#1=/a/table.obj\ncreator#1=Hermes\nname#2=Bed\ncategory#2=Bedroom\ntags#2=\nicon#2=/a/bed.png\n"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("a/table.png", "a/bed.png", "a/texture.png"):
            archive.writestr(name, name)
        archive.writestr("PluginFurnitureCatalog.properties", properties)
    files = {
        "usr/share/doc/x/copyright": COPYRIGHT.replace(b"animals", b"Shop"),
        "usr/share/x/Shop.sh3f": buffer.getvalue(),
    }
    table, bed = reading.read_furniture(planted_deb(tmp_path, files))
    assert (table.captions, table.content) == (("Café table", "café table, office, seat"), b"a/table.png")
    assert (table.licence, table.credit) == ("CC-BY-3.0", "Hermes")
    assert (bed.captions, bed.credit) == (("Bed", "bed, bedroom"), "Bob Example and others")


def test_nebulae_foods_and_alphabets_have_their_names(tmp_path):
    root = "usr/share/stellarium/nebulae/default/"
    tiles = [
        f'{{"imageUrl": "{name}", "imageCredits": {{"Short": "Ada"}}, "worldCoords": [-.9, .5]}}'
        for name in ("n2244-ada.png", "m8.png", "lmc.png")
    ]
    names = '# prefix\nNGC  2244      _("Rosette Nebula") # WK\nNGC  2244      _("Harp Cluster")\n'
    texts = {"textures.json": f'{{"subTiles": [{", ".join(tiles)}]}}', "names.dat": names, "n2244-ada.png": "rose"}
    files = {f"{root}{name}": content.encode() for name, content in texts.items()}
    (nebula,) = reading.read_nebulae(planted_deb(tmp_path, files))
    assert nebula == reading.Found("n2244-ada.png", b"rose", ("Rosette Nebula", "Harp Cluster"), credit="Ada")
    (tmp_path / "p.tgz").write_bytes(tar({"package/assets/A001.jpeg": b"seed", "package/assets/Z9.jpeg": b""}, "gz"))
    table = b'"Food Code; code","Food Name; name","Food Group; grup"\n"A001","Amaranth seed, black","Cereals"\n'
    (tmp_path / "c.tgz").write_bytes(tar({"package/index.csv": table}, "gz"))
    (food,) = reading.read_foods(tmp_path / "p.tgz", tmp_path / "c.tgz")
    assert food.captions == ("Amaranth seed, black", "amaranth seed, black, cereals") and food.content == b"seed"
    (letter,) = reading.read_alphabet(
        planted_deb(tmp_path, {"usr/share/qabcs/abcs/all/pics/toys/bigBall.png": b"ball"})
    )
    assert letter.captions == ("big ball", "big ball, toys")


def test_only_sources_whose_licence_allows_it_are_in_the_default(capsys):
    assert sources.DEFAULT == [STAMPS, "gcompris-qt-data", "sweethome3d-furniture"]
    with pytest.raises(SystemExit):
        importing.main(["packages", "--help"])
    said = capsys.readouterr().out
    assert (
        f"{STAMPS}: by default" in said and "qabcs-data: only where it is named, since some images show brands" in said
    )
    assert importing.main(["packages", "x", "--packages", "qabc"]) == 2
    assert "packages: invalid choice: 'qabc'" in capsys.readouterr().err
