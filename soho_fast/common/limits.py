"""Limits of a machine that a process meets: which one an error tells of, in whatever words, and what gives more."""

import errno
import os
import resource

from soho_fast.common.errors import DISK_ERRORS, CorruptImageError, UserError

SHARED_MEMORY = "/dev/shm"
"""Where loader processes hand over their batches, and what semaphores of processes are made of."""

_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
_NO_THREADS = ("can't start new thread", "Resource temporarily unavailable")
# Said for other reasons too: of memory only where that is limited.
_OF_LIMITED_MEMORY = ("failed to map segment", "could not create a primitive", *_NO_THREADS)


def met_limit(error: BaseException) -> str | None:
    """What to say of an error by which python, torch, gloo or the loader of libraries tells that open files, shared
    memory, memory or threads ran out; None of any other. What reads a file raises it again: the file is not damaged."""
    if isinstance(error, (UserError, CorruptImageError)):  # They name a file themselves.
        return None
    said, number = str(error), getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in said or "items of ancdata" in said:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"open files: {most:,} are too few for this process; `ulimit -n 4096` before the command allows more"
    of_disk = number in DISK_ERRORS and getattr(error, "filename", None) == SHARED_MEMORY
    if of_disk or "shared memory(shm)" in said:
        cure = "a container has more with --shm-size 2g, and workers 0 need none"
        return f"{SHARED_MEMORY}: {_room()}, and loader processes hand over what they load there: {cure}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        cure = "smaller batches take less, in training more batch.gradient_accumulation_steps too"
        return f"memory of the GPU: {' '.join(said.split('. ')[:2])}; {cure}"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    is_limited = limit != resource.RLIM_INFINITY
    texts = _NO_MEMORY + _OF_LIMITED_MEMORY * is_limited
    if not is_limited and any(text in said for text in _NO_THREADS):
        cure = "`ulimit -u`, or a container's --pids-limit, allows more, and fewer workers take less"
        return f"threads and processes: no more could be started; {cure}"
    # Where memory ends within a module of C, that may forget to say so: a SystemError.
    kinds = (MemoryError, SystemError) if is_limited else MemoryError
    if not (isinstance(error, kinds) or number == errno.ENOMEM or any(text in said for text in texts)):
        return None
    if is_limited:
        cure = "`ulimit -v unlimited` before the command lifts it"
        return f"memory: `ulimit -v` leaves this process {limit >> 20:,} MiB, which are too few; {cure}"
    return f"memory: no more could be had{f' ({said})' if said else ''}; smaller batches and fewer workers take less"


def in_words(error: BaseException) -> str:
    """What an error says, and what gives more where open files or memory ran out below it."""
    below: BaseException | None = error
    while below is not None:
        below = below.__cause__ or below.__context__
        if isinstance(below, OSError) and (limit := met_limit(below)):
            return f"{error}; {limit}"
    return str(error)


def _room() -> str:
    """What is left in shared memory."""
    try:
        system = os.statvfs(SHARED_MEMORY)
    except OSError as error:
        return error.strerror or "unknown"
    if system.f_flag & os.ST_RDONLY:
        return "read-only"
    free, size = (blocks * system.f_frsize >> 10 for blocks in (system.f_bavail, system.f_blocks))
    return f"{free:,} of {size:,} KiB are free"
