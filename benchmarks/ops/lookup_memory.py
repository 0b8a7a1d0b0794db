"""Prints how much the peak of this process's memory grows during one codebook lookup, in bytes.

Arguments: "soho_fast" or "torch", N, K, C, number of threads. A process of its own for each measurement: freed memory
stays with the process and would hide what the next call needs. Linux only: the peak is VmHWM of /proc/self/status,
started afresh through /proc/self/clear_refs.
"""

import re
import sys
from pathlib import Path

import torch

from soho_fast import ops

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kilobytes(name: str) -> int:
    return int(re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), flags=re.MULTILINE)[1])


def extra_bytes(method: str, num_rows: int, num_codes: int, num_channels: int) -> int:
    """Growth of the peak over what is resident before the call."""
    lookup = {"soho_fast": ops.codebook_lookup, "torch": lambda x, d: torch.cdist(x, d).argmin(-1)}[method]
    features, codebook = torch.randn(num_rows, num_channels), torch.randn(num_codes, num_channels)
    lookup(features[:64].clone(), codebook[:16].clone())  # libraries, threads
    CLEAR.write_text("5")
    before = _kilobytes("VmRSS")
    lookup(features, codebook)
    return 1024 * (_kilobytes("VmHWM") - before)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    print(extra_bytes(sys.argv[1], *map(int, sys.argv[2:5])))
