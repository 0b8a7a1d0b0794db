"""Loader processes: who starts them, whom they heed, and how they end. Needs torch alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset, get_worker_info

from soho_fast.common.errors import DISK_ERRORS
from soho_fast.common.limits import SHARED_MEMORY

T = TypeVar("T")
# A loader process's own: of the thread that sends tensors, and of the first of them.
_SPARE_FILES, _FILES_A_TENSOR = 16, 2
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def begin_worker(_: int = 0) -> None:
    """Begin a loader process: the terminal and DeepSpeed's launcher signal the whole process tree; the process that it
    works for decides when to stop."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process, of multiprocessing, once the one that it works for has ended, even if that was killed.

    torch's own watch over that does not end a process that holds more than a pipe does, which is no longer read.
    """

    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None, "started by multiprocessing"
        parent.join()
        # Not `sys.exit`, which would end this thread alone.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def start_workers(loader: Iterable[T]) -> Iterator[T]:
    """The iterator of a DataLoader, whose processes are born deaf to those signals: `begin_worker` comes later."""
    if workers := getattr(loader, "num_workers", 0):
        _try_to_start(workers)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _try_to_start(workers: int) -> None:
    """Open and close again what so many loader processes come to: torch's iterator, begun where files or shared memory
    run out, would complain of its own remains. Raises OSError: `met_limit` knows it."""
    try:
        _ = [(multiprocessing.Queue(), multiprocessing.Event(), multiprocessing.Pipe()) for _ in range(workers + 1)]
        _try_to_open(_SPARE_FILES)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise OSError(error.errno, os.strerror(error.errno), SHARED_MEMORY) from error
        raise


def _try_to_open(number: int) -> None:
    """Open and close so many files at once. Raises OSError: that is too many."""
    with contextlib.ExitStack() as files:
        for _ in range(number):
            files.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def share(batch: T) -> T:
    """In a loader process, move a batch's tensors to where the process that it works for reads them, and see that they
    can be sent. Otherwise its queue would, in a thread that drops what there is no room for, and leave that process
    waiting."""
    if get_worker_info() is not None:
        shared: list[torch.Tensor] = []
        tree_map_only(
            torch.Tensor, lambda tensor: shared.append(tensor.share_memory_()) if tensor.nbytes else None, batch
        )
        _try_to_open(_FILES_A_TENSOR * len(shared))
    return batch


def end_workers(batches: Any) -> None:
    """End the loader processes of a DataLoader's iterator, if it has any; they ignore SIGTERM, so those that linger are
    killed."""
    if workers := list(getattr(batches, "_workers", [])):
        # It waits some seconds for each to end, then sends SIGTERM, which they ignore.
        batches._shutdown_workers()
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)


def next_batch(batches: Iterator[T]) -> T:
    """The next of a DataLoader's iterator. Where one of its processes has died torch mostly raises the error that
    `lost_worker` knows, but not while it reads what that process had begun to send; here that error is raised then
    too."""
    try:
        return next(batches)
    except (OSError, EOFError) as error:
        workers = getattr(batches, "_workers", [])
        # The pipe breaks a moment before the process has an exit code.
        wait([worker.sentinel for worker in workers], timeout=1.0)
        for worker in workers:
            if worker.exitcode:
                raise RuntimeError(
                    f"DataLoader worker (pid {worker.pid}) is killed by signal: {signal.strsignal(-worker.exitcode)}. "
                    if worker.exitcode < 0
                    else f"DataLoader worker (pid {worker.pid}) exited with code {worker.exitcode}"
                ) from error
        raise


def lost_worker(error: RuntimeError) -> str | None:
    """What to say of an error by which torch tells that a loader process has died; None of any other error.

    torch raises it wherever the process that they work for is at that moment.
    """
    said = str(error).partition(". ")[0].rstrip(".")
    if not said.startswith("DataLoader worker (pid"):
        return None
    return f"{said}, as where memory runs out: fewer workers take less"


class _Loads(Dataset, Generic[T]):
    """What `load` gives of an item, and None; or None, and its error, which torch would wrap into another text."""

    def __init__(self, load: Callable[[T], Any]) -> None:
        self.load = load

    def __getitem__(self, item: T) -> tuple[Any, Exception | None]:
        try:
            return share(self.load(item)), None
        except Exception as error:
            return None, error


def loaded_ahead(
    load: Callable[[T], Any], items: Sequence[T], *, workers: int, pin: bool = False
) -> Generator[Any, None, None]:
    """`load(item)` of each item in order, by processes of their own that are one load each ahead.

    The processes end with the iterator; close it where it may not be read to its end (`contextlib.closing`).

    Args:
        load: reads from disk and computes on the CPU; what it gives and raises can be pickled.
        items: what is loaded.
        workers: how many processes; 0 loads in this one, when asked.
        pin: put tensors into pinned memory, for copies to a GPU.

    Raises:
        What `load` raises, where its item's turn comes.
    """
    if not workers or not items:
        yield from map(load, items)
        return
    loader = DataLoader(
        _Loads(load),
        # The items themselves are the sampler's indices: they reach `_Loads` as they are.
        sampler=items,
        batch_size=None,
        collate_fn=lambda item: item,
        num_workers=min(workers, len(items)),
        prefetch_factor=1,
        worker_init_fn=begin_worker,
        pin_memory=pin,
        # Without its own generator the loader would draw from the global one.
        generator=torch.Generator(),
        # `load` knows the model, which another start would copy.
        multiprocessing_context="fork",
    )
    results = start_workers(loader)
    try:
        for _ in items:
            result, error = next_batch(results)
            if error is not None:
                raise error
            yield result
    finally:
        end_workers(results)
