"""Seconds of consecutive stages, on a CPU or on a GPU."""

import time

import torch


class Clock:
    """Starts when it is made; `ends(stage)` gives the time since the last end to that stage.

    On a GPU times are those between events in its stream, read when all are through.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        if self.on_gpu:
            torch.cuda.synchronize()
        self._marks = [("", self._now())]

    def _now(self) -> "float | torch.cuda.Event":
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ends(self, stage: str) -> None:
        self._marks.append((stage, self._now()))

    def seconds(self) -> dict[str, float]:
        """Of each stage, in the order they ended."""
        if self.on_gpu:
            torch.cuda.synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return {
            stage: begin.elapsed_time(end) / 1e3 if self.on_gpu else end - begin for (_, begin), (stage, end) in pairs
        }
