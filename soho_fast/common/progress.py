"""Says now and then how far a long piece of work is, and how long the rest will take."""

import time
from collections.abc import Callable

_LINE_SECONDS = 15.0


class ProgressLines:
    """Called with what is done and of how much; the estimate begins again where that falls back: with the next stage.

    Args:
        say: Called with each line.
        what: What is being done.
    """

    def __init__(self, say: Callable[[str], None], what: str) -> None:
        self._say, self._what = say, what
        self._began = self._last = time.monotonic()
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < self._done:
            self._began = now
        self._done = done
        if now - self._last >= _LINE_SECONDS:
            self._last = now
            left = int((now - self._began) / max(done, 1) * (total - done))
            self._say(f"{self._what}: {done} of {total}, {left // 60}:{left % 60:02d} left")
