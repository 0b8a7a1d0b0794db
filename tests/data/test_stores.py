import multiprocessing
import pickle

import pytest
from tiny_corpus import draw, write_zip

from soho_fast.data.stores import ZipStore, open_stores


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


def test_forked_process_opens_its_own_handle(tmp_path, monkeypatch):
    draw(tmp_path / "0.jpg")
    store = ZipStore(str(write_zip(tmp_path / "images.zip", tmp_path)))
    store.read("0.jpg")
    parents = store._handle
    monkeypatch.setattr("os.getpid", lambda: -1)
    store.read("0.jpg")
    assert store._handle is not parents


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
