import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from tiny_shards import jpeg, sample, write_set, write_tar

from soho_fast.common.errors import CorruptImageError
from soho_fast.common.path_ranges import expand_range
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.readers.json_lines import read_json_lines
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.shards.indexing import build_index
from soho_fast.data.shards.records import read_shards
from soho_fast.data.shards.store import TarStore
from soho_fast.data.stores import open_stores


def test_ranges_in_paths():
    assert expand_range("cc/{00009..00011}.tar") == ["cc/00009.tar", "cc/00010.tar", "cc/00011.tar"]
    assert expand_range("{0..1}/{1..2}.tar") == ["0/1.tar", "0/2.tar", "1/1.tar", "1/2.tar"]
    assert expand_range("cc/00000.tar") == ["cc/00000.tar"]
    with pytest.raises(ValueError, match=r"\{3\.\.1\} counts down"):
        expand_range("{3..1}.tar")
    with pytest.raises(ValueError, match="names 1,000,001 shards"):
        expand_range("{0..1000000}.tar")


def test_a_missing_shard_of_a_range_is_named(tmp_path):
    path = write_set(tmp_path)
    assert len(TarStore(path)) == 12
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*00001\.tar; expected 3 shards"):
        open_stores([path])


def test_images_by_name_from_any_shard(tmp_path):
    store = TarStore(write_set(tmp_path))
    names = [f"{shard:05d}{number:04d}.jpg" for shard in range(3) for number in range(4)]
    assert store.existing([*names, "000000004.jpg", "000000000.JPG", ""]) == set(names)
    for place, name in enumerate(names):
        assert store.read(name) == jpeg((place * 37 % 256, place * 11 % 256, place * 5 % 256), (40 + place, 40))
    assert store.locate("000010002.jpg") == f"{tmp_path}/00001.tar!000010002.jpg"
    with pytest.raises(FileNotFoundError, match=r"00000\.\.00002\}\.tar!9\.jpg: no such image"):
        store.read("9.jpg")


def test_a_name_in_two_shards_is_refused(tmp_path):
    path = write_set(tmp_path)
    build_index(str(write_tar(tmp_path / "00002.tar", sample("000000003"))))
    with pytest.raises(ValueError, match=r"00002\.tar!000000003\.jpg: also in .*00000\.tar"):
        TarStore(path)
    build_index(str(write_tar(tmp_path / "00000.tar", sample("A"))))
    build_index(str(write_tar(tmp_path / "00002.tar", sample("a"))))
    with pytest.raises(ValueError, match=r"00002\.tar!a\.jpg: also in .*00000\.tar as A\.jpg"):
        TarStore(path)


def test_a_shard_changed_behind_its_index_gives_no_other_image(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*sample("first"), *sample("second")])
    build_index(str(path))
    store, stamp = TarStore(str(path)), path.stat().st_mtime_ns
    write_tar(path, [*sample("first"), *sample("secont")])
    os.utime(path, ns=(stamp, stamp))
    assert TarStore(str(path)).read("first.jpg")  # size, time and this header are the same
    for each in (store, TarStore(str(path))):
        with pytest.raises(OSError, match=r"a\.tar!second\.jpg: not where the index has it"):
            each.read("second.jpg")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(OSError, match=r"a\.tar!second\.jpg: not where"):
        store.read("second.jpg")


def test_what_is_no_image_is_a_corrupt_one_by_name(tmp_path):
    path = str(write_tar(tmp_path / "a.tar", [("0.jpg", b"not an image")]))
    build_index(path)
    with pytest.raises(CorruptImageError, match=r"a\.tar!0\.jpg: can't be decoded"):
        SohoImageProcessor().load(ImageRef(TarStore(path), "0.jpg"))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_read_at_once(tmp_path, start):
    store = TarStore(write_set(tmp_path))
    names = [store.name(row) for row in range(len(store))] * 20
    expected = [store.read(name) for name in names]
    with ProcessPoolExecutor(2, multiprocessing.get_context(start)) as pool:
        assert list(pool.map(store.read, names, chunksize=12)) == expected


def test_a_forked_process_opens_its_own_files_and_a_pickle_holds_none(tmp_path, monkeypatch):
    store = TarStore(write_set(tmp_path))
    store.read("000000000.jpg")
    parents = list(store._files.values())
    monkeypatch.setattr("os.getpid", lambda: -1)
    store.read("000000000.jpg")
    assert not set(parents) & set(store._files.values())
    assert len(pickle.dumps(store)) < 300
    assert pickle.loads(pickle.dumps(store)).read("000010000.jpg") == store.read("000010000.jpg")


def test_files_stay_few(tmp_path, monkeypatch):
    monkeypatch.setattr("soho_fast.data.shards.store._MOST_OPEN", 2)
    store = TarStore(write_set(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    for row in (*range(12), *range(12)):
        store.read(store.name(row))
    assert len(os.listdir("/proc/self/fd")) == before + 2


def test_no_array_of_an_index_is_copied(tmp_path):
    records = read_shards(write_set(tmp_path))
    mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".tar.index" in line]
    assert {f"{tmp_path}/{shard:05d}.tar.index" for shard in range(3)} <= set(mapped)
    assert not records.store.shards[0].captions.flags.owndata


def test_readers_of_annotations_find_their_images_in_shards(tmp_path):
    path = write_set(tmp_path / "shards")
    lines = tmp_path / "images.jsonl"
    lines.write_text('{"file": "000010001.jpg", "captions": ["a dog"]}\n')
    (record,) = read_json_lines(lines, [path])
    assert str(record.image) == f"{tmp_path}/shards/00001.tar!000010001.jpg"
    assert SohoImageProcessor().load(record.image).shape[0] == 3
