"""What every process of a machine needs: read by one of them, in memory that all of them map.

Needs torch and numpy alone.
"""

from __future__ import annotations

import mmap
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from soho_fast.common.processes import Processes

T = TypeVar("T")
# Arrays begin at multiples of this, for products on whole cache lines.
_ALIGNMENT = 64
HAS_MEMORY_FILES = hasattr(os, "memfd_create")
"""Whether this system has files without a name in memory."""


def read_once_a_machine(read: Callable[[], T], processes: Processes) -> T:
    """What `read()` gives, which the first process of each machine calls; all make the call.

    What others get is as pickled, but arrays of numpy lie in one memory that the processes of the machine, and the
    loader processes of these, share and none can write to. It goes with the last process that has an array of it.

    Raises:
        What `read` raises, on every process.
    """
    if processes.world == 1 or not HAS_MEMORY_FILES:
        return read()
    machines = processes.gather(machine_name())
    leader = machines.index(machines[processes.rank])
    file: BinaryIO | None = None
    path, places, error = "", [], None
    if processes.rank == leader:
        try:
            file = memory_file()
            places = _write(file, read())
            path = path_for_others(file)
        except Exception as found:  # every process ends with it
            error = found
    # Gathered with the rest: were it raised here, the others would wait.
    told = processes.gather((path, places, error))
    for _, _, error in told:
        if error is not None:
            raise error
    path, places, _ = told[leader]
    result = _mapped(path, places)
    # Not closed before all have opened it.
    processes.wait()
    if file is not None:
        file.close()
    return result


def memory_file() -> BinaryIO:
    """A file without a name, in memory: gone with the last process that has it open or mapped."""
    return os.fdopen(os.memfd_create("soho_fast"), "w+b")


def path_for_others(file: BinaryIO) -> str:
    """Where other processes of this machine open a file without a name, as long as it is open here."""
    # Opened by this path it is another descriptor, with a position of its own.
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def machine_name() -> str:
    """The same in processes that can open each other's files."""
    try:
        # One boot and one numbering of processes: then /proc/PID/fd means the same to both.
        return Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"process {os.getpid()} of {os.uname().nodename}"


def _write(file: BinaryIO, item: Any) -> list[tuple[int, int]]:
    """An object as pickled, then the arrays in it: where each part begins, and its bytes."""
    arrays: list[pickle.PickleBuffer] = []
    # Arrays are left out of the stream: loaded, they point into the map, which is read-only.
    stream = pickle.dumps(item, protocol=5, buffer_callback=arrays.append)
    places = []
    for part in (memoryview(stream), *(array.raw() for array in arrays)):
        # What is passed over is a hole of zeros.
        file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
        places.append((file.tell(), part.nbytes))
        file.write(part)
    file.flush()
    return places


def _mapped(path: str, places: Sequence[tuple[int, int]]) -> Any:
    with open(path, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    stream, *arrays = (memory[begin : begin + size] for begin, size in places)
    return pickle.loads(stream, buffers=arrays)
