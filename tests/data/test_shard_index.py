import io
import json
import mmap
import os
import subprocess
import tarfile

import numpy as np
import pytest
from tiny_shards import jpeg, sample, write_tar

from soho_fast.common.errors import CorruptImageError
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.readers.records import ReadReport
from soho_fast.data.shards.index import read_index
from soho_fast.data.shards.indexing import _samples, build_index
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
        "broken": 0,
        "failed": {"failed_to_download": 1},
        "left_out": ["000000004: no caption", "000000005: no image", "000000006: no caption", "000000008: no image"],
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


BROKEN = {
    "a link": ([link("0.jpg")], "0.jpg: a link or a device (type '2')"),
    "a hard link": ([link("0.jpg", tarfile.LNKTYPE)], "0.jpg: a link or a device (type '1')"),
    "a device": ([link("0.jpg", tarfile.CHRTYPE)], "0.jpg: a link or a device (type '3')"),
    "two images": ([("0.jpg", jpeg()), ("0.png", jpeg())], "0.png: a second image of sample 0, beside 0.jpg"),
    "no json": ([("0.jpg", jpeg()), ("0.json", b'{"caption": ')], "0.json: not valid JSON"),
    "a json list": ([("0.jpg", jpeg()), ("0.json", b"[1]")], "0.json: a JSON list; expected an object"),
    "deep json": ([("0.jpg", jpeg()), ("0.json", b"[" * 10**5)], "0.json: nested too deeply"),
    "a caption of a number": ([("0.jpg", jpeg()), ("0.json", b'{"caption": 3}')], "0.json: field 'caption' is 3"),
    "captions in a text": ([("0.jpg", jpeg()), ("0.json", b'{"captions": "a"}')], "0.json: field 'captions' is 'a'"),
    "half a character": ([("0.jpg", jpeg()), ("0.json", b'{"caption": "\\ud800"}')], "0.json: field 'caption' is"),
    "half an id": (
        [("0.jpg", jpeg()), ("0.json", b'{"caption": "a", "image_id": "\\ud800"}')],
        "0.json: field 'image_id' is '\\ud800'",
    ),
    "a list of an id": (
        [("0.jpg", jpeg()), ("0.json", b'{"caption": "a", "image_id": [1]}')],
        "0.json: field 'image_id' is [1]",
    ),
    "latin text": ([("0.jpg", jpeg()), ("0.txt", "été".encode("latin-1"))], "0.txt: not UTF-8"),
    "a link to a text": ([("0.jpg", jpeg()), link("0.txt")], "0.txt: a link or a device"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_sample_is_one_of_a_shard(tmp_path, case):
    members, words = BROKEN[case]
    path = str(write_tar(tmp_path / "a.tar", [*sample("a"), *members, *sample("z")]))
    counts = build_index(path)
    assert counts.broken == 1 and counts.without_image == counts.without_caption == 0
    assert len(counts.left_out) == 1 and counts.left_out[0].startswith(words)
    report = ReadReport()
    assert [record.image_id for record in read_shards(path, report=report)] == ["a", "z"]
    assert f"{tmp_path.name}: 1 samples left out: broken, as {path}!{counts.left_out[0]}" in report.lines()
    # An image whose text is broken is there for another annotation file, as one without a text.
    assert ("0.jpg" in TarStore(path).existing(["0.jpg"])) == words.startswith(("0.json", "0.txt"))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_name_that_is_not_utf8_is_that_of_a_broken_sample(tmp_path, format):
    with tarfile.open(tmp_path / "a.tar", "w", format=format, encoding="latin-1") as archive:
        for name, content in [*sample("a"), *sample("é"), ("ü/README", b""), *sample("z")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if format == tarfile.PAX_FORMAT:  # which has such names as UTF-8
        content = (tmp_path / "a.tar").read_bytes().replace("path=é.".encode(), b"path=\xe9..")
        (tmp_path / "a.tar").write_bytes(content)
    counts = build_index(str(tmp_path / "a.tar"))
    assert counts.broken == 1 and counts.left_out[0].startswith("\\xe9.") and "name is not UTF-8" in counts.left_out[0]
    assert [record.image_id for record in read_shards(str(tmp_path / "a.tar"))] == ["a", "z"]


def test_a_status_and_a_name_show_no_control_characters(tmp_path):
    members = [("0.json", b'{"status": "\\ud800\\u001b[2J"}'), ("\x1b[2J.jpg", jpeg()), ("\x1b[2J.json", b"{")]
    path = str(write_tar(tmp_path / "a.tar", [*members, *sample("z")]))
    counts = build_index(path)
    assert "(\\ud800\\x1b[2J)" in str(counts) and counts.left_out[0].startswith("\\x1b[2J.json: not valid JSON")


def test_more_broken_samples_than_are_allowed_are_refused_with_the_first(tmp_path):
    members = []
    for number in range(30):
        members += [*sample(str(number)), (f"b{number}.jpg", jpeg()), (f"b{number}.json", b"{")]
    path = str(write_tar(tmp_path / "a.tar", members))
    assert build_index(path).broken == 30
    with pytest.raises(ValueError, match=r"batch\.corrupt_images: 30 of 60 samples .* 0\.01 .*a\.tar!b0\.json"):
        read_shards(path)
    assert len(read_shards(path, max_broken=0.03)) == 30


REFUSED = {
    "an absolute name": ([("/0.jpg", jpeg())], r"a\.tar!'/0\.jpg': leads out"),
    "a name above": ([("a/../../0.jpg", jpeg())], r"a\.tar!'a/\.\./\.\./0\.jpg': leads out"),
    "one name twice": ([("0.jpg", jpeg()), ("0.jpg", jpeg())], r"a\.tar!0\.jpg: comes twice in sample 0"),
    "a sample twice": ([*sample("0"), *sample("1"), *sample("0")], r"a\.tar!0\.jpg: sample 0 comes a second time"),
    "names but for case": ([*sample("dog"), *sample("Dog")], r"a\.tar!Dog\.jpg: sample Dog comes beside dog"),
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


# As webdataset 1.0.2 groups them: (key, what follows its dot), with `tariterators.tarfile_samples`.
ODD = [
    ("README", b"of no extension"),
    ("0.jpg", jpeg()),
    ("LICENSE", b"between the files of a sample"),
    ("0.txt", b"\xef\xbb\xbfa dog"),
    ("__meta__", b"{}"),
    ("__meta__/1.json", b"{}"),
    ("__info__.json", b'[{"of": "the shard"}]'),
    ("a.b/1.jpg", jpeg()),
    ("a.b/1.json", b'\xef\xbb\xbf{"caption": "a cat"}'),
    ("a.b/README", b""),
    ("2.JPG", jpeg()),
    ("2.json", '{"caption": "été"}'.encode("utf-16")),
    ("3.jpg", jpeg()),
    ("3.seg.npy", b"of another kind"),
    ("3.txt", b"three"),
]
GROUPS = [("0", "jpg txt"), ("__info__", "json"), ("a.b/1", "jpg json"), ("2", "jpg json"), ("3", "jpg seg.npy txt")]


def test_odd_members_are_read_as_webdataset_reads_them(tmp_path):
    path = str(write_tar(tmp_path / "a.tar", ODD))
    counts = build_index(path)
    assert (counts.images, counts.without_image, counts.broken) == (4, 1, 0), "__info__ is a sample without an image"
    found = [(record.image_id, record.captions) for record in read_shards(path)]
    assert found == [("0", ("a dog",)), ("a.b/1", ("a cat",)), ("2", ("été",)), ("3", ("three",))]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert [(key, " ".join(sorted(members))) for key, members in _samples(content, path)] == GROUPS


def test_webdataset_groups_odd_members_so(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    path = str(write_tar(tmp_path / "a.tar", ODD))
    groups = webdataset.tariterators.tarfile_samples([{"url": path}])
    assert [(each["__key__"], " ".join(sorted(set(each) - {"__key__", "__url__"}))) for each in groups] == GROUPS


def test_a_sparse_file_is_a_broken_sample_and_what_comes_after_it_is_read(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    os.truncate(tmp_path / "1.jpg", 2**20)
    for name in ("0.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(jpeg())
    for name in "012":
        (tmp_path / f"{name}.txt").write_text("a dog")
    names = [f"{name}.{end}" for name in "012" for end in ("jpg", "txt")]
    for kind in ("gnu", "posix"):
        path = str(tmp_path / f"{kind}.tar")
        subprocess.run(["tar", "--sparse", f"--format={kind}", "-cf", path, *names], cwd=tmp_path, check=True)
        assert os.path.getsize(path) < 2**17
        counts = build_index(path)
        assert (counts.images, counts.broken) == (2, 1) and counts.left_out[0].startswith("1.jpg: a sparse file")
        records = read_shards(path)
        assert [record.image.read() for record in records] == [jpeg()] * 2


def test_what_is_no_image_is_a_corrupt_image_when_it_is_read(tmp_path):
    bad = [("1.jpg", b""), ("1.txt", b"empty"), ("2.jpg", b"no image"), ("2.txt", b"none")]
    path = str(write_tar(tmp_path / "a.tar", [*sample("0"), *bad, *sample("3")]))
    build_index(path)
    processor = SohoImageProcessor()
    for record in read_shards(path):
        if record.image_id in "12":
            with pytest.raises(CorruptImageError, match=rf"a\.tar!{record.image_id}\.jpg: "):
                processor.load(record.image)
        else:
            assert processor.load(record.image).ndim == 3
