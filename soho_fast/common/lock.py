"""One process writes a folder: a lock that the kernel holds, in a file that says who has it."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from soho_fast.common.errors import UserError
from soho_fast.common.processes import Processes

LOCK = "in-use.lock"
# What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def only_user(folder: Path, processes: Processes, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder (made if it is missing) against other runs, on this machine and on those that share its disk.

    The first rank holds the lock for all. The kernel drops it when the process ends, however it ends.

    Args:
        folder: What is to be written.
        processes: This run's ranks; all make the call.
        say: Called with a line where the file system has no locks.

    Raises:
        UserError: on all ranks: another process holds the folder, or the folder is not writable.
    """
    # Without the library's own way on file systems that have no locks, whose file would outlast a process.
    lock = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False, on_acquired=_sign)
    # A folder that was there before is left in the end, even an empty one.
    made = not folder.exists()
    try:
        processes.on_main(lambda: _take(lock, folder, say))
        yield
    finally:
        if lock.is_locked:
            # Deleted while it is held: who opened it before finds that it is not the folder's any more.
            with contextlib.suppress(OSError):  # A disk that has become read-only; the kernel's lock ends all the same.
                (folder / LOCK).unlink()
            lock.release()
            if made:
                with contextlib.suppress(OSError):  # It holds something.
                    folder.rmdir()


def _take(lock: FileLock, folder: Path, say: Callable[[str], None]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        holder = ""
        with contextlib.suppress(OSError):  # It has just ended.
            holder = " ".join((folder / LOCK).read_text(errors="replace").split())
        # Between taking the lock and writing its line it is nameless for a moment.
        raise UserError(
            f"{folder} is in use by {holder or 'another process'}; wait for its end, stop it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
        say(
            f"{folder}: this file system has no locks ({error.strerror}); see to it yourself that no second run writes "
            "here"
        )


def _sign(file: int) -> None:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
