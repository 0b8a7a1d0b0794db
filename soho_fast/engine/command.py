"""How the commands that train and evaluate end: whatever happens is told in one line, with an exit code.

Nothing heavy is imported here: a mistake on the command line is told before torch is loaded.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from soho_fast.common.errors import DISK_ERRORS, CorruptImageError, UserError, environment_rank, fail
from soho_fast.engine.watchdog import PROCESS_FAILED, leave_heartbeat


class run_command:
    """Stands around such a command, which then ends with `code`.

    Args:
        again: What the same command does the next time: the end of a line about a run that did not come to its end.

    Attributes:
        code: 0 done, 2 a mistake of the user, 75 a process failed (was killed), 130 stopped by Ctrl-C.
    """

    def __init__(self, again: str) -> None:
        self.again, self.code = again, 0

    def __enter__(self) -> "run_command":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        leave_heartbeat(kind, error, trace)
        rank, _ = environment_rank()
        if isinstance(error, KeyboardInterrupt):
            # In training, between the first and the last step, `StopRequest` hears it.
            if rank == 0:
                print(f"\nstopped; {self.again}", file=sys.stderr)
            self.code = 128 + signal.SIGINT
        elif isinstance(error, CorruptImageError):
            # Raised in a loader process, its text comes with that process's stack before it.
            self.code = fail(str(error).rpartition("CorruptImageError: ")[2], rank)
        elif isinstance(error, UserError):
            self.code = fail(str(error), rank)
        elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
            # Logs, curves and tables meet a full disk too; checkpoints and the model report theirs themselves.
            self.code = fail(f"{error.filename or 'output'}: {error.strerror}; with room again {self.again}", rank)
        elif isinstance(error, RuntimeError) and (lost := _lost_worker(error)):
            self.code = fail(f"{lost}; {self.again}", rank, PROCESS_FAILED)
        else:
            return False
        return True


def _lost_worker(error: RuntimeError) -> str | None:
    from soho_fast.common.workers import lost_worker

    return lost_worker(error)


@contextmanager
def user_input() -> Iterator[None]:
    """Stands around what a user's files are read by: readers and models refuse them with ValueError and OSError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) in DISK_ERRORS:
            raise
        raise UserError(str(error)) from error
