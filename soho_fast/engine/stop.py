"""Stopping on request: Ctrl-C and SIGTERM end the run at the next step on all ranks, with a checkpoint.

DeepSpeed's launcher answers Ctrl-C and SIGTERM by sending SIGTERM to one rank after the other, and SIGKILL to any that
is still there after 30 seconds. A rank therefore only raises a flag, and the flag is agreed on between ranks at each
step (`Processes.maximum`): the first rank told stops them all at the same step. On Ctrl-C a terminal signals the ranks
as well as the launcher, so SIGINT and SIGTERM arrive together: only a second SIGINT stops at once.

Killing the `deepspeed` command itself (SIGTERM to its pid) leaves its launcher and ranks behind as orphans; the ranks
notice, and stop the same way.
"""

import os
import signal
import sys
import time
from types import FrameType

import psutil


class StopRequest:
    """Context manager around the training loop; `signal_number` is 0 until someone asks to stop."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._first_interrupt = 0.0
        self._previous: dict[int, object] = {}
        self._launcher, self._starter = _launcher_and_starter()

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def pending(self) -> int:
        """Number of the signal that asked to stop, or 0."""
        if not self.signal_number and self._launcher is not None:
            try:
                orphaned = self._launcher.ppid() != self._starter
            except psutil.Error:
                orphaned = True
            if orphaned:
                self.signal_number = signal.SIGTERM
        return self.signal_number

    def _hear(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            # A terminal and a launcher may deliver one key press twice within moments.
            if self._first_interrupt and time.monotonic() - self._first_interrupt > 0.5:
                sys.stderr.write("\nstopped at once\n")
                sys.stderr.flush()
                os._exit(128 + signal.SIGINT)
            self._first_interrupt = self._first_interrupt or time.monotonic()
        self.signal_number = self.signal_number or number


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
