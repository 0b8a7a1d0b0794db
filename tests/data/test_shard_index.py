import json
import tarfile

import numpy as np
import pytest
from tiny_shards import jpeg, sample, write_tar

from soho_fast.data import ReadReport
from soho_fast.data.shards.index import read_index
from soho_fast.data.shards.indexing import build_index
from soho_fast.data.shards.records import epoch_order, read_shards
from soho_fast.data.shards.store import TarStore


def test_what_img2dataset_writes(tmp_path):
    members = [
        *sample("000000001", "a dog on a beach", size=(64, 32)),
        ("000000002.json", json.dumps({"status": "failed_to_download", "caption": "gone"}).encode()),
        ("000000003.jpg", jpeg()),
        ("000000003.json", json.dumps({"caption": "told by the json alone"}).encode()),
        *sample("000000004", " \n"),
        ("000000005.txt", b"an image that is missing"),
        ("000000006.png", jpeg()),
        ("000000007.jpg", jpeg()),
        ("000000007.json", json.dumps({"captions": ["one", " two ", ""], "image_id": "a/7"}).encode()),
        ("._hidden.jpg", b"of a file manager"),
        ("000000008.npy", b"of no kind that is read"),
    ]
    path = str(write_tar(tmp_path / "cc" / "00000.tar", members))
    counts = build_index(path)
    assert vars(counts) == {
        "images": 5,
        "captions": 4,
        "without_caption": 2,
        "without_image": 2,
        "empty_captions": 2,
        "failed": {"failed_to_download": 1},
    }
    report = ReadReport()
    records = read_shards(path, report=report)
    assert [(record.image_id, record.captions, record.source) for record in records] == [
        ("000000001", ("a dog on a beach",), "cc"),
        ("000000003", ("told by the json alone",), "cc"),
        ("a/7", ("one", "two"), "cc"),
    ]
    assert records[0].image.read() == jpeg(size=(64, 32))
    assert records.sample_id(2) == "cc/a/7"
    said = "\n".join(report.lines())
    for line in ("3 images, 4 captions", "2 images left out: no file", "1 images left out: their download failed"):
        assert line in said
    assert [record.captions for record in read_shards(path, max_captions=1)][2] == ("one",)
    assert read_shards(path, max_captions=1).texts.counts().tolist() == [1, 1, 1]
    assert TarStore(path).existing(["000000006.png", "000000002.jpg"]) == {"000000006.png"}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", ["0.jpg", "./0.jpg", "d" * 90 + "/" + "e" * 60 + ".jpg", "été/犬.jpg"])
def test_every_kind_of_header(tmp_path, format, name):
    folder = tarfile.TarInfo("folder/")
    folder.type = tarfile.DIRTYPE
    path = str(write_tar(tmp_path / "a.tar", [folder, (name, jpeg()), ("last.jpg", jpeg(size=(9, 9)))], format=format))
    build_index(path)
    store = TarStore(path)
    assert store.read(name.removeprefix("./")) == jpeg()
    assert store.read("last.jpg") == jpeg(size=(9, 9))


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


REFUSED = {
    "a link": ([link("0.jpg")], r"a\.tar!0\.jpg: a link"),
    "a hard link": ([link("0.jpg", tarfile.LNKTYPE)], r"a\.tar!0\.jpg: a link"),
    "a device": ([link("0.jpg", tarfile.CHRTYPE)], r"a\.tar!0\.jpg: a link or a device"),
    "an absolute name": ([("/0.jpg", jpeg())], r"a\.tar!'/0\.jpg': leads out"),
    "a name above": ([("a/../../0.jpg", jpeg())], r"a\.tar!'a/\.\./\.\./0\.jpg': leads out"),
    "two images": ([("0.jpg", jpeg()), ("0.png", jpeg())], r"a\.tar!0\.png: a second image of sample 0, beside 0\.jpg"),
    "one name twice": ([("0.jpg", jpeg()), ("0.jpg", jpeg())], r"a\.tar!0\.jpg: comes twice in sample 0"),
    "a sample twice": ([*sample("0"), *sample("1"), *sample("0")], r"a\.tar!0\.jpg: sample 0 comes a second time"),
    "names but for case": ([*sample("dog"), *sample("Dog")], r"a\.tar!Dog\.jpg: sample Dog comes beside dog"),
    "no json": ([("0.jpg", jpeg()), ("0.json", b'{"caption": ')], r"a\.tar!0\.json: not valid JSON"),
    "a json list": ([("0.jpg", jpeg()), ("0.json", b"[1]")], r"a\.tar!0\.json: a JSON list; expected an object"),
    "deep json": ([("0.jpg", jpeg()), ("0.json", b"[" * 10**5)], r"a\.tar!0\.json: nested too deeply"),
    "a caption of a number": ([("0.jpg", jpeg()), ("0.json", b'{"caption": 3}')], r"0\.json: field 'caption' is 3"),
    "captions in a text": ([("0.jpg", jpeg()), ("0.json", b'{"captions": "a"}')], r"0\.json: field 'captions' is 'a'"),
    "half a character": ([("0.jpg", jpeg()), ("0.json", b'{"caption": "\\ud800"}')], r"0\.json: .*surrogate"),
    "latin text": ([("0.jpg", jpeg()), ("0.txt", "été".encode("latin-1"))], r"a\.tar!0\.txt: not UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_by_name(tmp_path, case):
    members, words = REFUSED[case]
    path = str(write_tar(tmp_path / "a.tar", members))
    with pytest.raises(ValueError, match=words):
        build_index(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


def intact(tmp_path):
    return write_tar(tmp_path / "a.tar", [*sample("first"), *sample("second"), *sample("third")])


def test_a_tar_cut_off_anywhere_is_refused(tmp_path):
    path = intact(tmp_path)
    content = path.read_bytes()
    end = content.rindex(b"third.json") + 1024  # the end mark, and what fills up the last record, come later
    for length in range(100, end, 100):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.tar(!\w+\.\w+)?: (cut off|damaged|no tar)"):
            build_index(str(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.tar: empty"):
        build_index(str(path))
    path.write_bytes(content)
    build_index(str(path))


def test_a_damaged_header_names_the_place(tmp_path):
    path = intact(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(b"second.txt")] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar: damaged: no header of a file after second\.jpg, at byte [\d,]+"):
        build_index(str(path))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\x1f\x8b", "a gzip file"),
        (b"PK\x03\x04", "a zip file"),
        (b"not a tar", "no tar file"),
        (bytes(9), "damaged: an empty block after its beginning"),
    ],
)
def test_no_tar(tmp_path, start, words):
    path = tmp_path / "a.tar"
    path.write_bytes(start + bytes(1000) + b"x" * 1000)
    with pytest.raises(ValueError, match=rf"a\.tar: {words}"):
        build_index(str(path))


def test_zeros_in_the_place_of_a_shard_are_no_empty_one(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(100_000 * 512))
    with pytest.raises(ValueError, match=r"a\.tar: holds no file, but 51,200,000 bytes of zeros; fetch the file again"):
        build_index(str(path))


def test_a_shard_without_a_sample_is_one_of_a_range(tmp_path):
    """img2dataset leaves one where no download succeeded."""
    write_tar(tmp_path / "0.tar", [])
    write_tar(tmp_path / "1.tar", [*sample("first"), *sample("second")])
    write_tar(tmp_path / "2.tar", [])
    for number in range(3):
        counts = build_index(str(tmp_path / f"{number}.tar"))
        assert counts.images == 2 * (number == 1)
    records = read_shards(str(tmp_path / "{0..2}.tar"))
    assert [record.image.name for record in records] == ["first.jpg", "second.jpg"]
    assert sorted(epoch_order([np.array([0, 0, 2, 2])], np.random.default_rng(0)).tolist()) == [0, 1]
    assert all(record.image.read() for record in records)
    with pytest.raises(ValueError, match=r"no image with a caption was found"):
        read_shards(str(tmp_path / "0.tar"))


def test_an_index_of_another_file_or_an_earlier_state(tmp_path):
    path, other = intact(tmp_path), write_tar(tmp_path / "b.tar", sample("another"))
    with pytest.raises(FileNotFoundError, match=r"a\.tar: has no index; make it with: python -m .* index .*a\.tar"):
        read_index(str(path))
    build_index(str(path)), build_index(str(other))
    assert len(read_index(str(path))) == 3
    (tmp_path / "a.tar.index").rename(tmp_path / "kept")
    (tmp_path / "b.tar.index").rename(tmp_path / "a.tar.index")
    with pytest.raises(ValueError, match=r"a\.tar\.index: stale, or of another file"):
        read_index(str(path))
    (tmp_path / "kept").rename(tmp_path / "a.tar.index")
    content = path.read_bytes()
    path.write_bytes(content)  # the same bytes at another time
    with pytest.raises(ValueError, match=r"a\.tar\.index: stale.* the time of its last change"):
        read_index(str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"No such file.*a\.tar"):
        read_index(str(path))


def test_an_index_damaged_anywhere_is_refused(tmp_path):
    path = intact(tmp_path)
    build_index(str(path))
    place = tmp_path / "a.tar.index"
    content = place.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in [*range(0, header, 11), *range(header - 1, len(content), 17)]:
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        place.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.tar\.index: (damaged|stale)"):
            read_index(str(path))
    for length in range(0, len(content), 311):
        place.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.tar\.index: damaged"):
            read_index(str(path))


def test_the_shape_is_that_of_the_file_upright(tmp_path):
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 20)).save(tmp_path / "turned.jpg", exif=turned)
    members = [
        ("a.jpg", jpeg(size=(60, 20))),
        ("b.jpg", (tmp_path / "turned.jpg").read_bytes()),
        ("c.jpg", b"no image"),
    ]
    path = str(write_tar(tmp_path / "a.tar", members))
    build_index(path)
    from math import log

    assert read_index(path).shape.tolist() == [log(3), -log(3), 0.0]
