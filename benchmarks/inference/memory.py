"""The peak of a process's memory in one pass of a method, without what built it (weights in float32, calibration)."""

import torch

from benchmarks.inference.baselines import Sizes, make_methods
from benchmarks.inference.clock import Clock
from benchmarks.memory import in_a_process, peak_bytes, restart_peak


def pass_bytes(name: str, sizes: Sizes, num_images: int, device: str) -> int | None:
    """Of a pass of this batch size, weights, libraries and all; `None` where a peak can't be started afresh."""
    return in_a_process(_bytes_here, name, sizes, num_images, device)


def _bytes_here(name: str, sizes: Sizes, num_images: int, device: str) -> int | None:
    (method,) = make_methods([name], sizes, device)
    inputs = [tuple(x.to(device) for x in sizes.inputs(number)) for number in (1, num_images)]
    with torch.inference_mode():
        method.run(*inputs[0], Clock(device))  # Code is compiled and weights are packed in a first pass.
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif not restart_peak():
            return None
        method.run(*inputs[1], Clock(device))
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()
