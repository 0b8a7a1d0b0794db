"""Memory of a call in a process of its own: freed memory stays with a process and would hide what the next one needs.

Linux only: the peak is VmHWM of /proc/self/status, started afresh through /proc/self/clear_refs.
"""

import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives there, with as many threads as here."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.apply(function, arguments)


def restart_peak() -> bool:
    """False: this system does not let a process do so."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    return _bytes("VmHWM")


def resident_bytes() -> int:
    return _bytes("VmRSS")


def _bytes(name: str) -> int:
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), flags=re.MULTILINE)[1])
