"""The error that is the user's to mend: shown as one line, without a stack trace."""

import contextlib
import errno
import os
import select
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TextIO

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Numbers of the OSErrors that a full or read-only disk gives, wherever something is written."""

GONE_ERRORS = (errno.EPIPE, errno.EIO)
"""Those of an output whose reader has ended: a closed pipe, a terminal that has gone."""


def environment_rank() -> tuple[int, int]:
    """(rank, local rank) as the launcher's environment tells; (0, 0) without a launcher. Raises UserError: as
    `environment_number`."""
    return environment_number("RANK", 0), environment_number("LOCAL_RANK", 0)


def environment_number(name: str, default: int) -> int:
    """What a launcher says by a variable of the environment. Raises UserError: it is no number."""
    value = os.environ.get(name, str(default))
    if not (value.isascii() and value.isdigit()):
        raise UserError(
            f"{name}: expected a number from the launcher in this variable of the environment, got {value!r}"
        )
    return int(value)


class UserError(ValueError):
    """A wrong path, recipe, checkpoint or device: the message says what was expected, what came and what to do."""


class CorruptImageError(ValueError):
    """An image file that can't be read or decoded; the message names the file and what went wrong."""


MIN_SEEN = 1000
"""One corrupt image in the first batch is no verdict on a data set: shares are of so many images at least."""


def too_many_corrupt(count: int, seen: int, share: float) -> bool:
    """Whether so many corrupt images of those seen are more than a share of them."""
    return count > share * max(seen, MIN_SEEN)


def printable(text: str) -> str:
    """The text without what a terminal would obey: names of files may hold control characters, which are shown as
    Python writes them. Line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text)


def as_line(text: str) -> str:
    """`printable`, and one line: a name with a line break could pass for a line of ours."""
    return printable(text).replace("\n", "\\n")


def print_line(line: str, file: TextIO | None = None) -> None:
    """Print a line at once, as every command does: one (`as_line`), whatever file or name its words come from."""
    print(as_line(line), file=file, flush=True)


def listed(names: Sequence[object], most: int = 3, between: str = ", ") -> str:
    """The first names, and how many more there are, for messages."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return between.join(map(str, names[:most])) + more


def fail(message: str, rank: int = 0, code: int = 2) -> int:
    """Print one line, whatever lines the message has, and give the exit code: 2, a mistake, or another. With
    SOHO_FAST_TRACEBACK=1 the stack trace of the error that is being handled goes before it.

    Most mistakes meet all ranks; the first one prints, and DeepSpeed's launcher ends the others within a second or two
    of its exit. Only a mistake that the first rank did not make is left for another to print. What has another code met
    this rank alone.
    """
    if rank and code == 2:
        time.sleep(10)
    is_gone(sys.stdout)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if os.environ.get("SOHO_FAST_TRACEBACK") == "1":
        traceback.print_exc()
    message = " ".join(printable(message).split())
    last_line(f"error: {message}" if rank == 0 else f"error on rank {rank}: {message}")
    return code


def last_line(line: str) -> None:
    """Print a line where errors go, if anybody reads there; a signal's handler may call it."""
    with contextlib.suppress(OSError):
        try:
            for each in line.split("\n"):  # One that begins with a line break ends what a Ctrl-C has cut off.
                print_line(each, sys.stderr)
        except RuntimeError:  # The signal came while another line was being printed there.
            os.write(sys.stderr.fileno(), f"{printable(line)}\n".encode())


def is_gone(stream: TextIO) -> bool:
    """Whether what reads this output has ended; from then on it goes nowhere, and no error comes of it."""
    poll = select.poll()
    try:
        # Nothing is asked for: that the reader has gone (POLLERR, POLLHUP) is reported in any case.
        poll.register(stream.fileno(), 0)
    except OSError:  # It is no file: of a test, a notebook.
        return False
    if not poll.poll(0):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    # In the stream's place, for all that writes there, also what Python still holds in its buffer.
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return True


def say_nothing_more() -> None:
    """Called where whoever reads the output has ended: from here on it goes nowhere, which one line tells."""
    is_gone(sys.stdout)
    last_line("stopped: what read this command's output has ended")
