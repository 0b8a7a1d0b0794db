import multiprocessing
import pickle
import random
import struct
import tracemalloc
import zipfile

import pytest
from tiny_corpus import draw, write_zip

from soho_fast.common.errors import CorruptImageError
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.stores import FolderStore, ZipStore, check_name, open_stores


def _read_all(store, names, queue):
    queue.put([store.read(name) for name in names * 20])


def test_zip_is_safe_to_read_in_forked_processes_at_once(tmp_path):
    names = [draw(tmp_path / f"{n}.jpg", colour).name for n, colour in enumerate(["red", "green", "blue"])]
    store = ZipStore(str(write_zip(tmp_path / "images.zip", tmp_path)))
    expected = [store.read(name) for name in names]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_read_all, args=(store, names, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert all(result == expected * 20 for result in results)


def test_an_image_of_a_zip_file_is_known_again(tmp_path):
    draw(tmp_path / "0.jpg")
    path = str(write_zip(tmp_path / "images.zip", tmp_path))
    (one,), (two,) = (open_stores(path) for _ in range(2))
    assert one is not two and {ImageRef(one, "0.jpg"): "seen"}[ImageRef(two, "0.jpg")] == "seen"


def test_store_pickles_without_its_handle(tmp_path):
    draw(tmp_path / "0.jpg")
    store = ZipStore(str(write_zip(tmp_path / "images.zip", tmp_path)))
    expected = store.read("0.jpg")
    assert pickle.loads(pickle.dumps(store)).read("0.jpg") == expected


def test_damaged_archive_and_member(tmp_path):
    draw(tmp_path / "0.jpg")
    path = write_zip(tmp_path / "images.zip", tmp_path)
    data = bytearray(path.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"images\.zip!1\.jpg: no such member"):
        ZipStore(str(path)).read("1.jpg")
    data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"images\.zip!0\.jpg: .*CRC"):
        ZipStore(str(path)).read("0.jpg")
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"images\.zip: expected a zip archive"):
        open_stores(path)


def test_existing_names(tmp_path):
    draw(tmp_path / "a/0.jpg")
    write_zip(tmp_path / "images.zip", tmp_path)
    names = ["a/0.jpg", "a/1.jpg", "b/0.jpg", "0.jpg"]
    for store in open_stores([tmp_path, tmp_path / "images.zip"]):
        assert store.existing(names) == {"a/0.jpg"}
    with pytest.raises(ValueError, match="got an empty list"):
        open_stores([])


def write_member(path, data, *, packing=zipfile.ZIP_DEFLATED, **patches):
    """An archive with the member 0.jpg; `patches` are written over its two headers: fields of zip's format."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("0.jpg", data)
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    places = {"flags": (6, 8, "<H"), "method": (8, 10, "<H"), "size": (22, 24, "<I")}
    for name, value in patches.items():
        local, central, kind = places[name]
        struct.pack_into(kind, content, local, value)
        struct.pack_into(kind, content, directory + central, value)
    path.write_bytes(content)
    return ZipStore(str(path))


@pytest.mark.parametrize(
    ("patches", "reason"),
    [
        ({"flags": 1}, "RuntimeError: .*encrypted"),
        ({"method": 99}, "its compression is not read"),
        ({"method": 9}, "its compression is not read"),
        ({"size": 10}, "CRC"),
        ({"size": 2**31}, "2,147,483,648 bytes; expected an image of at most 536,870,912"),
        ({"flags": 0x20}, "NotImplementedError: .*patched"),
    ],
)
def test_a_member_that_cannot_be_read_is_one_corrupt_image(tmp_path, patches, reason):
    store = write_member(tmp_path / "images.zip", b"x" * 5000, **patches)
    with pytest.raises(OSError, match=rf"images\.zip!0\.jpg: .*{reason}"):
        store.read("0.jpg")
    with pytest.raises(CorruptImageError, match=r"images\.zip!0\.jpg"):
        SohoImageProcessor().load(ImageRef(store, "0.jpg"))


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_is_unpacked_without_a_limit_is_refused(tmp_path, packing):
    with pytest.raises(OSError, match="expected a member stored or deflated"):
        write_member(tmp_path / "images.zip", bytes(2**20), packing=packing).read("0.jpg")


@pytest.mark.parametrize("size", [1000, 2**29 + 1])
def test_a_bomb_is_refused_before_its_memory_is_taken(tmp_path, size):
    """It says that it is small, or that it is large."""
    store = write_member(tmp_path / "images.zip", bytes(2**27), size=size)
    store.existing(())
    tracemalloc.start()
    with pytest.raises(OSError, match=r"images\.zip!0\.jpg"):
        store.read("0.jpg")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    with (tmp_path / "0.jpg").open("wb") as file:
        file.truncate(2**29 + 1)
    with pytest.raises(OSError, match="536,870,913 bytes; expected an image of at most"):
        FolderStore(str(tmp_path)).read("0.jpg")


def test_archives_damaged_anywhere_are_read_or_refused(tmp_path):
    draw(tmp_path / "a.jpg"), draw(tmp_path / "b.jpg")
    path = write_zip(tmp_path / "images.zip", tmp_path)
    intact = path.read_bytes()
    read = refused = 0
    for seed in range(700):
        chance = random.Random(seed)
        data = bytearray(intact)
        for _ in range(chance.choice((1, 2, 8))):
            # The directory is at the end.
            place = chance.randrange(len(data) - 300 if chance.random() < 0.7 else 0, len(data))
            data[place] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        path.write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.1 else data)
        try:
            (store,) = open_stores(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: expected a zip archive")
            refused += 1
            continue
        for name in store.existing(["a.jpg", "b.jpg"]):
            try:
                read += store.read(name) == (tmp_path / name).read_bytes()
            except OSError as error:
                assert str(error).startswith(f"{path}!{name}: ")
                refused += 1
    assert min(read, refused) > 50


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "{tmp}/secret.jpg"])
def test_a_folder_gives_nothing_from_outside(tmp_path, name):
    name = name.format(tmp=tmp_path)
    draw(tmp_path / "secret.jpg"), draw(tmp_path / "images/a/0.jpg")
    store = FolderStore(str(tmp_path / "images"))
    assert store.existing([name, "a/0.jpg"]) == {"a/0.jpg"}
    with pytest.raises(OSError, match="leads out of"):
        store.read(name)
    inside = str(tmp_path / "images/a/0.jpg")
    assert store.existing([inside]) == {inside} and store.read(inside)


@pytest.mark.parametrize("name", ["", "./", "a\0.jpg", "\udcff.jpg"], ids=["empty", "folder", "zero", "surrogate"])
def test_a_name_that_no_file_has_is_refused_for_what_it_is(tmp_path, name):
    reason = "names no file" if name in ("", "./") else "holds a character that no file name can hold"
    with pytest.raises(ValueError, match=f"^image name .* {reason}$"):
        check_name(name, [FolderStore(str(tmp_path))])
