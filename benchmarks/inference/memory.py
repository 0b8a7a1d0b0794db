"""The peak of a process's memory in one pass of a method.

A process of its own for each: freed memory stays with a process and would hide what the next method needs. What
built it (weights in float32, calibration) is left out by starting the peak afresh, through /proc/self/clear_refs.
"""

import multiprocessing
import re
from pathlib import Path

import torch

from benchmarks.inference.baselines import Sizes, make_methods
from benchmarks.inference.clock import Clock

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(name: str, sizes: Sizes, num_images: int, num_threads: int, device: str) -> int | None:
    """Of a pass of this batch size, weights, libraries and all; `None` where a peak can't be started afresh."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (name, sizes, num_images, num_threads, device))


def _peak_here(name: str, sizes: Sizes, num_images: int, num_threads: int, device: str) -> int | None:
    torch.set_num_threads(num_threads)
    (method,) = make_methods([name], sizes, device)
    inputs = [tuple(x.to(device) for x in sizes.inputs(number)) for number in (1, num_images)]
    with torch.inference_mode():
        method.run(*inputs[0], Clock(device))  # Code is compiled and weights are packed in a first pass.
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            try:
                _CLEAR.write_text("5")
            except OSError:
                return None
        method.run(*inputs[1], Clock(device))
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), flags=re.MULTILINE)[1])
