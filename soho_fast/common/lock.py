"""One process writes a folder: a lock that the kernel holds, and a file that says who has it."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from soho_fast.common.errors import UserError
from soho_fast.common.processes import Processes

LOCK = "in-use.lock"
_WRITES_WITHIN = 2.0  # seconds from taking the lock to having written who holds it
# What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def only_user(folder: Path, processes: Processes, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder (made if it is missing) against other runs, on this machine and on those that share its disk.

    The first rank holds the lock for all. It is a POSIX lock: the kernel drops it when the process ends, however it
    ends, and forked loader processes do not inherit it. The file beside it tells people who that is and is deleted at
    the end; one that a killed process left behind is taken over.

    Args:
        folder: What is to be written.
        processes: This run's ranks; all make the call.
        say: Called with a line where a lock was left behind, or where the file system has no locks.

    Raises:
        UserError: on all ranks: another process holds the folder, or the folder is not writable.
    """
    taken: list[int] = []
    # A folder that was there before is left in the end, even an empty one.
    made = not folder.exists()
    try:
        processes.on_main(lambda: taken.append(_take(folder, say)))
        yield
    finally:
        for file in taken:
            # Deleted while it is held: who opened it before finds that it is not the folder's any more.
            with contextlib.suppress(OSError):  # A disk that has become read-only; the kernel's lock ends all the same.
                (folder / LOCK).unlink()
            os.close(file)
            if made:
                with contextlib.suppress(OSError):  # It holds something.
                    folder.rmdir()


def _take(folder: Path, say: Callable[[str], None]) -> int:
    """The open, locked file."""
    try:
        return _locked(folder, say)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


def lock_file(file: int, say: Callable[[str], None]) -> bool:
    """Lock an open file for this process: POSIX's, which its end drops and forked processes do not have. False: another
    process has it. `say` is called with the reason where the file system has no locks, and each process may have it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # POSIX leaves open which of the two says that another process has it.
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in _NO_LOCKS:
            raise
        say(str(error.strerror))
    return True


def _locked(folder: Path, say: Callable[[str], None]) -> int:
    path, without = folder / LOCK, "see to it yourself that no second run writes here"
    # Its last holder may delete the file between our opening and locking it: the lock is then of a file without a name,
    # and the next turn makes another.
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        # Nothing else in this process may open and close this file: POSIX would drop the lock with that.
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not lock_file(file, lambda why: say(f"{folder}: this file system has no locks ({why}); {without}")):
                holder = _holder(file, _WRITES_WITHIN)
                raise UserError(f"{folder} is in use by {holder}; wait for its end, stop it, or choose another folder")
            if _is_at(file, path):
                # Locked, with a text in it: who wrote that ended without deleting it.
                if os.fstat(file).st_size:
                    say(f"{folder}: taken over from {_holder(file)}, which ended without leaving it")
                since = datetime.now().astimezone().isoformat(" ", "seconds")
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: int, patience: float = 0) -> str:
    """What the holder wrote; one that has only just taken the lock is given `patience` seconds to write it."""
    until = time.monotonic() + patience
    while not (text := os.pread(file, 200, 0).decode(errors="replace").strip()) and time.monotonic() < until:
        time.sleep(0.01)
    return " ".join(text.split()) or "another process"
