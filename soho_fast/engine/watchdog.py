"""What ends a run early: a request to stop, or a process that fails; and how its command ends, with a line and an exit
code. Torch is not imported here: a mistake on the command line is reported before it is loaded.

A collective waits for a rank that is gone, NCCL's and gloo's for many minutes where its machine was cut off or it
is suspended. Here a thread of each rank has a connection to the first rank's. That breaks at once where a process ends,
however it ends, and half a minute after a machine can no more be reached; what is sent over it every few seconds shows
that a process runs. Long work (compiling, building a corpus, saving) goes on in other threads and is no failure.

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
import hmac
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import psutil

from soho_fast.common.command_line import Stopping
from soho_fast.common.errors import (
    DISK_ERRORS,
    CorruptImageError,
    UserError,
    environment_rank,
    fail,
    last_line,
    say_nothing_more,
)

PROCESS_FAILED = os.EX_TEMPFAIL
"""Exit code of a rank that ends because another process failed: what went wrong may be gone at the next start."""

LOOPBACK = "127.0.0.1"

_UNREACHABLE = 30  # seconds
# How long who connects may take to say who it is, of how many at a time that is awaited, and how long it may be.
_PATIENCE, _MOST_STRANGERS, _LONGEST_GREETING = 10.0, 16, 1024
# A rank that met an error reports it after 10 s, where the first rank met none (`errors.fail`).
_REPORTED = 20.0
_BEAT, _LEFT, _ERROR, _PROCESS_FAILED, _TAKEN = b".", b"l", b"f", b"x", b"t"


class Heartbeat:
    """This rank's connection: of the first rank to each other one, of the others to the first.

    Args:
        rank: this process.
        world: how many there are.
        host: where the first rank is reached; a loopback address where all ranks are of one machine, so that no other
            machine reaches it.
        publish: gives others the first rank's port and the run's secret, without which no rank is heard.
        look_up: waits for these.
        timeout: seconds without a sign of life after which a rank counts as failed; 0: none do.
        speaks: whether this rank reports that the first one failed.

    Raises:
        UserError: the first rank cannot be reached.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        host: str,
        *,
        publish: Callable[[str], None],
        look_up: Callable[[], str],
        timeout: float,
        speaks: bool,
    ) -> None:
        self.rank, self.timeout, self.speaks = rank, timeout, speaks
        self.ending = threading.Event()
        self._left: set[int] = set()
        self._error_at: float | None = None
        self._heard: dict[socket.socket, float] = {}
        self._names: dict[socket.socket, tuple[int, str]] = {}
        # Who has connected and not yet said who it is: what it said so far, and when it will have taken too long.
        self._strangers: dict[socket.socket, tuple[bytes, float]] = {}
        self._world, self._secret = world, ""
        self._selector = selectors.DefaultSelector()
        # A fork (of a loader process) would keep the connections of a process that was killed.
        os.register_at_fork(after_in_child=self._close)
        if rank == 0:
            self._secret = secrets.token_hex()
            self._server = _listen(host, world)
            # A client that gives up between `select` and `accept` would hold up the beat.
            self._server.setblocking(False)
            publish(f"{self._server.getsockname()[1]} {self._secret}")
            self._selector.register(self._server, selectors.EVENT_READ)
        else:
            port, self._secret = look_up().split()
            try:
                first = socket.create_connection((host, int(port)), timeout=_UNREACHABLE)
                first.sendall(f"{self._secret} {rank} {os.getpid()} {socket.gethostname()}\n".encode())
                # Waits until rank 0 has read the line: b'.' where it takes this rank, nothing where it turns it away.
                if (answer := first.recv(1)) == _TAKEN:
                    raise UserError(
                        f"rank {rank}'s place is taken: another process has come as this rank; end that one, or give "
                        "each process a RANK of its own"
                    )
                if not answer:
                    raise ConnectionError("it ended")
            except OSError as error:
                raise UserError(f"rank 0 cannot be reached at {host}:{port}: {error.strerror or error}") from error
            self._add(first, 0, f"rank 0 (on {host})")
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def leave(self, *, failed: bool) -> None:
        """Tell the others that this rank ends by itself, after its work or after an error that it reports."""
        # First: from here on a rank that ends no longer ends this process (`_end`).
        self.ending.set()
        self._thread.join(5)
        # After the join: the thread uses the sockets as long as it runs.
        self._send(_ERROR if failed else _LEFT)
        self._close()

    def await_verdict(self) -> None:
        """Called where a collective failed: when a rank has failed, the thread ends this process within moments."""
        # The thread does not return by itself: this waits so long unless it ends the process.
        self._thread.join(10)
        if self._error_at is not None:
            self._thread.join(_REPORTED)

    def _watch(self) -> None:
        # At least four beats in a timeout; 0, no timeout, gives 5 s.
        pause = min(5.0, self.timeout / 4 or 5.0)
        beat_at, looked_at = 0.0, time.monotonic()
        while not self.ending.is_set():
            # So often, too, is `ending` looked at.
            for key, _ in self._selector.select(0.2):
                self._read(key.fileobj)
            now = time.monotonic()
            for stranger in [each for each, (_, until) in self._strangers.items() if until < now]:
                self._turn_away(stranger)
            if now - looked_at > pause:
                # This process was suspended, perhaps the whole run (Ctrl-Z, a scheduler): it has not listened either.
                self._heard = dict.fromkeys(self._heard, now)
            looked_at = now
            if now >= beat_at:
                self._send(_BEAT)
                beat_at = now + pause
            if self._error_at is not None and now - self._error_at > _REPORTED:
                self._end(2, None)
            # A copy, since `_fail` removes from it.
            for connection, heard in list(self._heard.items()):
                if self.timeout and now - heard > self.timeout:
                    self._fail(
                        connection,
                        f"has given no sign of life for {self.timeout:g} s (engine.timeout_seconds); it is stopped, or "
                        "its machine hangs",
                    )

    def _read(self, connection: Any) -> None:
        if self.rank == 0 and connection is self._server:
            with contextlib.suppress(OSError):
                accepted, _ = self._server.accept()
                accepted.setblocking(False)
                if len(self._strangers) >= _MOST_STRANGERS + self._world:
                    # The one that came first: a dict keeps the order. It may be among those just selected; `_read`
                    # looks.
                    self._turn_away(next(iter(self._strangers)))
                self._strangers[accepted] = b"", time.monotonic() + _PATIENCE
                self._selector.register(accepted, selectors.EVENT_READ)
            return
        if connection in self._strangers:
            self._greet(connection)
        if connection not in self._heard:  # Turned away since it spoke, or greeted just now.
            return
        try:
            said = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(connection, f"can no more be reached ({error.strerror})")
            return
        self._heard[connection] = time.monotonic()
        rank, _ = self._names[connection]
        if _PROCESS_FAILED in said:
            self._end(PROCESS_FAILED, None)
        if _ERROR in said:
            self._error_at = self._error_at or time.monotonic()
            # Passed on: rank 0 alone is connected to all.
            self._send(_ERROR)
        if _LEFT in said or _ERROR in said:
            self._left.add(rank)
        # Nothing read means that the other end is closed.
        if not said or rank in self._left:
            self._remove(connection)
            if rank not in self._left:
                self._fail(connection, "has ended (killed, or out of memory)")

    def _greet(self, stranger: socket.socket) -> None:
        """Hear who connected: a rank that is not there yet and knows the secret, or none."""
        said, until = self._strangers[stranger]
        try:
            more = stranger.recv(_LONGEST_GREETING)
        except OSError:
            more = b""
        said += more
        self._strangers[stranger] = said, until
        if more and b"\n" not in said and len(said) < _LONGEST_GREETING:
            return
        # Nothing follows the line: a rank sends no more before it has its answer.
        line, end, _ = said.partition(b"\n")
        try:
            secret, number, process, host = line.decode().split() if end else ("", "", "", "")
            # Those that have left too, since nothing is taken out of `_names`: no rank comes twice.
            known = {rank for rank, _ in self._names.values()}
            if not hmac.compare_digest(secret, self._secret) or int(number) not in range(1, self._world):
                raise ValueError("no rank of ours")
            if int(number) in known:
                stranger.send(_TAKEN)
                raise ValueError("another process is this rank")
        # ValueError: no UTF-8, or not four words; TypeError: of `compare_digest`, for text that is not ASCII.
        except (ValueError, TypeError, OSError):
            self._turn_away(stranger)
            return
        del self._strangers[stranger]
        self._selector.unregister(stranger)
        self._add(stranger, int(number), f"rank {number} (process {process} on {host})")
        with contextlib.suppress(OSError):
            stranger.send(_BEAT)

    def _turn_away(self, stranger: socket.socket) -> None:
        del self._strangers[stranger]
        self._selector.unregister(stranger)
        stranger.close()

    def _fail(self, connection: socket.socket, why: str) -> None:
        # Taken out first, so that `_send` leaves it out.
        self._remove(connection)
        self._send(_PROCESS_FAILED)
        _, name = self._names[connection]
        line = f"error: {name} {why}: this run ends; the same command goes on from the newest checkpoint"
        self._end(PROCESS_FAILED, line if self.rank == 0 or self.speaks else None)

    def _end(self, code: int, line: str | None) -> None:
        if self.ending.is_set():
            return
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            if line is not None:
                sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        # The main thread waits in a collective, which nothing interrupts.
        os._exit(code)

    def _send(self, what: bytes) -> None:
        for connection in list(self._heard):
            # What is wrong with a connection is found when it is read.
            with contextlib.suppress(OSError):
                # Never waits: a full buffer is an OSError too, and one rank that reads nothing holds up no other.
                connection.send(what)

    def _add(self, connection: socket.socket, rank: int, name: str) -> None:
        connection.setblocking(False)
        # A beat is one byte, which would be kept back to be sent with more.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # So long unacknowledged, data break the connection; by default Linux tries again for some 15 minutes.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _UNREACHABLE)
        self._names[connection], self._heard[connection] = (rank, name), time.monotonic()
        self._selector.register(connection, selectors.EVENT_READ)

    def _remove(self, connection: socket.socket) -> None:
        if self._heard.pop(connection, None) is not None:
            self._selector.unregister(connection)

    def _close(self) -> None:
        for connection in (*self._names, *self._strangers):
            connection.close()
        if self.rank == 0:
            self._server.close()


def _listen(host: str, world: int) -> socket.socket:
    if host == LOOPBACK:
        return socket.create_server((host, 0), backlog=world)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=world)


_own: Heartbeat | None = None


def start_heartbeat(*arguments: Any, **options: Any) -> None:
    """Begin this process's `Heartbeat`."""
    global _own
    _own = Heartbeat(*arguments, **options)


def leave_heartbeat(error: BaseException | None) -> None:
    """Called at the end of a command, with the error that it ends with: tells the other ranks how this one ends.

    A collective whose partner is gone raises a RuntimeError, about as soon as that is noticed here; this process then
    ends by what is noticed here, with one line.
    """
    global _own
    if _own is None:
        return
    if isinstance(error, RuntimeError):
        _own.await_verdict()
    _own.leave(failed=error is not None)
    _own = None


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
        # Before `fail`, which may wait for 10 s: the other ranks hear at once that this one reports an error.
        leave_heartbeat(error)
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
            self.code = fail(str(error).rpartition("CorruptImageError: ")[2], rank)
        elif isinstance(error, BrokenPipeError):
            say_nothing_more()
            self.code = 128 + signal.SIGPIPE
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
        if getattr(error, "errno", None) in DISK_ERRORS:
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
