"""What ends a run early: a request to stop, or a process that fails; and how its command ends, with a line and an exit
code. Torch is not imported here: a mistake on the command line is reported before it is loaded.

A rank that ends breaks its connections, so that gloo's and NCCL's collectives fail at once on the others; one that is
suspended or hangs makes them fail after `engine.timeout_seconds`. The launcher then ends what is left on its machine.
`Peers` finds out which rank it was.

Ctrl-C, SIGTERM, a terminal that goes (SIGHUP, but for `nohup`) and a reader of the output that ends (`| head`, a dying
`tee`) end the run at the next step on all ranks, with a checkpoint. DeepSpeed's launcher answers both by
sending SIGTERM to one rank after the other, and SIGKILL to any that is still there after 30 seconds. A rank therefore
only raises a flag, and the flag is agreed on between ranks at each step (`Processes.maximum`): the first rank that
is asked stops them all at the same step. On Ctrl-C a terminal signals the ranks as well as the launcher, so SIGINT and
SIGTERM arrive together: only a second SIGINT stops at once.

Killing the `deepspeed` command itself (SIGTERM to its pid) leaves its launcher and ranks behind as orphans; the ranks
notice, and stop the same way.
"""

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from mmap import mmap
from types import FrameType

import psutil

from soho_fast.common.command_line import Stopping
from soho_fast.common.errors import (
    DISK_ERRORS,
    CorruptImageError,
    UserError,
    environment_rank,
    fail,
    last_line,
    listed,
    say_nothing_more,
)
from soho_fast.common.limits import in_words, met_limit

PROCESS_FAILED = os.EX_TEMPFAIL
"""Exit code of a rank that ends because another process failed: what went wrong may be gone at the next start."""

# What a rank tells of itself: nothing, an error that it reports itself, or that a collective of its own has failed.
_RUNS, _OWN_ERROR, _WAITED = range(3)
_PATIENCE = 5.0  # seconds for ranks of this machine to come to the collective that failed, and fail too


class Peers:
    """What has become of the other processes of a run, told where a collective fails: gloo and NCCL say that a process
    is gone or does not come, but not which.

    Args:
        rank: this process.
        ranks: by rank the machine (processes of one see each other), the process number and the host's name.
        board: a byte for each rank, in memory that the processes of a machine share: what each tells of itself.
        timeout: seconds that a collective waits, for the message.
    """

    def __init__(self, rank: int, ranks: Sequence[tuple[str, int, str]], board: mmap | list[int], timeout: float):
        self.rank, self.ranks, self.board, self.timeout = rank, ranks, board, timeout
        self._here = [each for each, (machine, _, _) in enumerate(ranks) if machine == ranks[rank][0]]

    def tell(self, error: BaseException) -> tuple[int, str | None] | None:
        """Called with the error that ends this process. None where it is its own, which the others then hear of;
        otherwise the exit code, and the line that this process prints: of each machine one prints a line."""
        from torch.distributed import DistError

        # gloo's errors are of no class of their own; they begin with a path in its sources.
        if not isinstance(error, DistError) and not (isinstance(error, RuntimeError) and "gloo/" in str(error)):
            self.board[self.rank] = _OWN_ERROR
            return None
        self.board[self.rank] = _WAITED
        until = time.monotonic() + _PATIENCE
        while True:
            # What has failed in a collective too may have ended by now.
            silent = [rank for rank in self._here if self.board[rank] == _RUNS]
            lost = {rank: why for rank in silent if (why := self._why(rank))}
            if any(self.board[rank] == _OWN_ERROR for rank in self._here):
                time.sleep(_PATIENCE)  # The launcher sees the exit code of the other one first, and ends this one.
                return 2, None
            if lost or not silent or time.monotonic() > until:
                break
            time.sleep(0.05)
        elsewhere = [rank for rank in range(len(self.ranks)) if rank not in self._here]
        if not lost and silent and ("Timed out" in str(error) or not elsewhere):
            lost = dict.fromkeys(silent, f"runs, but has not come within {self.timeout:g} s (engine.timeout_seconds)")
        if not lost:
            lost = dict.fromkeys(elsewhere, "has failed, or can no more be reached")
        if not lost:  # All have waited, for this one.
            return PROCESS_FAILED, None
        told = listed([self._name(rank) for rank in lost], between=" or ")
        speaks = self.rank == min(rank for rank in self._here if rank not in lost)
        return PROCESS_FAILED, f"{told} {next(iter(lost.values()))}" if speaks else None

    def _why(self, rank: int) -> str:
        """Of a rank of this machine: what the system says that ails it; empty where nothing does."""
        try:
            status = psutil.Process(self.ranks[rank][1]).status()
        except psutil.NoSuchProcess:
            status = psutil.STATUS_ZOMBIE
        if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return "has ended (killed, or out of memory)"
        if status == psutil.STATUS_STOPPED:
            return f"is suspended, and has not come within {self.timeout:g} s (engine.timeout_seconds)"
        return ""

    def _name(self, rank: int) -> str:
        _, process, host = self.ranks[rank]
        return f"rank {rank} (process {process} on {host})"


_peers: Peers | None = None


def watch_peers(peers: Peers) -> None:
    """Where a collective fails, tell by these which process it is."""
    global _peers
    _peers = peers


class run_command:
    """Stands around a command of several processes, which then ends with `code`.

    Args:
        again: What the same command does the next time: the end of a line about a run that did not come to its end.

    Attributes:
        code: 0 done, 2 a mistake of the user, 75 a process failed (was killed), 128 + signal when stopped.
    """

    def __init__(self, again: str) -> None:
        # A launcher ends the ranks that are left by SIGTERM, after the line of the one that failed.
        several = os.environ.get("WORLD_SIZE", "1") != "1"
        self.again, self.code, self._stopping = again, 0, Stopping(signal.SIGTERM) if several else Stopping()

    def __enter__(self) -> "run_command":
        self._stopping.__enter__()
        _launcher_and_starter()  # They are known while they are there: before training begins they may be killed.
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        try:
            return self._tell(error)
        finally:
            self._stopping.__exit__()

    def _tell(self, error: BaseException | None) -> bool:
        # Before `fail`, which may wait for 10 s: the other ranks see at once that this one reports an error.
        if error is not None and _peers is not None and (verdict := _peers.tell(error)) is not None:
            code, line = verdict
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            if line is not None:
                last_line(f"error: {line}: this run ends; {self.again}")
            # What waits on a GPU for the rank that failed would hold up an orderly end.
            os._exit(code)
        try:
            rank, _ = environment_rank()
        except UserError:  # which is what this is about
            rank = 0
        if isinstance(error, KeyboardInterrupt):
            # In training, between the first and the last step, `StopRequest` hears it.
            if rank == 0:
                last_line(f"\nstopped; {self.again}")
            self.code = 128 + (self._stopping.number or signal.SIGINT)
        elif isinstance(error, (UserError, CorruptImageError)):
            # Raised in a loader process, the text comes with that process's stack before it.
            self.code = fail(in_words(error).rpartition("CorruptImageError: ")[2], rank)
        elif isinstance(error, BrokenPipeError):
            say_nothing_more()
            self.code = 128 + signal.SIGPIPE
        elif error is not None and (limit := met_limit(error)):
            self.code = fail(f"{limit}; {self.again}", rank)
        elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
            # Logs and metrics meet a full disk too; checkpoints and the model report theirs themselves.
            self.code = fail(f"{error.filename or 'output'}: {error.strerror}; with room again {self.again}", rank)
        elif isinstance(error, RuntimeError):
            from soho_fast.common.workers import lost_worker

            lost = lost_worker(error)
            if lost is None:
                return False
            self.code = fail(f"{lost}; {self.again}", rank, PROCESS_FAILED)
        else:
            return False
        return True


@contextlib.contextmanager
def user_input() -> Iterator[None]:
    """Stands around what a user's files are read by: readers and models refuse them with ValueError and OSError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) in DISK_ERRORS or met_limit(error):
            raise
        raise UserError(str(error)) from error


class StopRequest(Stopping):
    """Context manager around the training loop: signals that ask to stop raise nothing; see `pending`."""

    def __init__(self) -> None:
        super().__init__()
        self._launcher, self._starter = _launcher_and_starter()

    def pending(self) -> int:
        """Number of the signal that asked to stop, or 0."""
        if not self.number and self._launcher is not None:
            try:
                # The parent is another one as soon as the `deepspeed` command is gone.
                orphaned = self._launcher.ppid() != self._starter
            except psutil.Error:
                orphaned = True
            if orphaned:
                self.number = signal.SIGTERM
        return self.number

    def _hear(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            # A terminal and a launcher may deliver one key press twice within moments.
            if self._heard and time.monotonic() - self._heard > 0.5:
                last_line("\nstopped at once")
                os._exit(128 + signal.SIGINT)
            self._heard = self._heard or time.monotonic()
        # `Stopping` raises KeyboardInterrupt; here the ranks first agree on the step at which they stop.
        self.number = self.number or number


@functools.cache
def _launcher_and_starter() -> tuple[psutil.Process | None, int]:
    """DeepSpeed's per-machine launcher, where it is our parent, and the pid of the command that started it."""
    try:
        launcher = psutil.Process().parent()
        if launcher is None or "deepspeed.launcher.launch" not in launcher.cmdline():
            return None, 0
        starter = launcher.parent()
        if starter is None or not any("deepspeed" in os.path.basename(part) for part in starter.cmdline()[:2]):
            return None, 0
        return launcher, starter.pid
    except psutil.Error:
        return None, 0
