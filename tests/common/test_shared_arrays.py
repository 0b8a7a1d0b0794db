"""What is read once on a machine: by whom, in whose memory, and what becomes of an error."""

import mmap
import threading

import numpy as np
import pytest

from soho_fast.common import shared_arrays as sharing
from soho_fast.common.processes import Processes
from soho_fast.common.shared_arrays import read_once_a_machine


class _Rank:
    """A process, played by a thread."""

    def __init__(self, rank, world, items, barrier):
        self.rank, self.world, self._items, self._barrier = rank, world, items, barrier

    def wait(self):
        self._barrier.wait()

    def gather(self, item):
        self._items[self.rank] = item
        self.wait()
        items = list(self._items)
        self.wait()
        return items


def on_ranks(world, work):
    """What `work(processes)` gave or raised, of each rank."""
    items, barrier, results = [None] * world, threading.Barrier(world, timeout=60), [None] * world

    def one(rank):
        try:
            results[rank] = work(_Rank(rank, world, items, barrier))
        except ValueError as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def base_of(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def test_one_reads_and_all_have_its_arrays_in_shared_memory():
    readers = []

    def read():
        readers.append(threading.get_ident())
        return {"words": ["a", "b"], "ends": np.arange(7), "odd": np.frombuffer(b"abc", np.uint8), "none": np.empty(0)}

    results = on_ranks(3, lambda processes: read_once_a_machine(read, processes))
    assert len(readers) == 1
    for found in results:
        assert found["words"] == ["a", "b"] and found["none"].size == 0
        assert found["ends"].tolist() == list(range(7)) and found["odd"].tobytes() == b"abc"
        assert isinstance(base_of(found["ends"]), mmap.mmap), "not a copy"
        assert found["ends"].ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            found["ends"][0] = 1


def test_each_machine_has_a_reader_of_its_own(monkeypatch):
    places, readers = threading.local(), []
    monkeypatch.setattr(sharing, "machine_name", lambda: places.name)

    def work(processes):
        places.name = "left" if processes.rank in (0, 2) else "right"

        def read():
            readers.append(processes.rank)
            return np.array([processes.rank])

        return int(read_once_a_machine(read, processes)[0])

    assert on_ranks(4, work) == [0, 1, 0, 1] and sorted(readers) == [0, 1]


def test_an_error_is_everyones():
    def read():
        raise ValueError("captions.json: not valid JSON")

    results = on_ranks(3, lambda processes: read_once_a_machine(read, processes))
    assert [str(error) for error in results] == ["captions.json: not valid JSON"] * 3


def test_one_process_reads_for_itself():
    item = object()
    assert read_once_a_machine(lambda: item, Processes()) is item
