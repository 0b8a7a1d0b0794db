"""How much the peak of a process's memory grows during one codebook lookup."""

import torch

from benchmarks.memory import peak_bytes, resident_bytes, restart_peak
from soho_fast import ops

METHODS = {"soho_fast": ops.codebook_lookup, "torch cdist+argmin": lambda x, d: torch.cdist(x, d).argmin(-1)}


def extra_bytes(method: str, shape: tuple[int, int, int]) -> int | None:
    """Growth of the peak over what is resident before the call; None where a peak can't be started afresh.

    In a process of its own: see `benchmarks.memory.in_a_process`.
    """
    num_rows, num_codes, num_channels = shape
    features, codebook = torch.randn(num_rows, num_channels), torch.randn(num_codes, num_channels)
    METHODS[method](features[:64].clone(), codebook[:16].clone())  # libraries, threads
    if not restart_peak():
        return None
    before = resident_bytes()
    METHODS[method](features, codebook)
    return peak_bytes() - before
