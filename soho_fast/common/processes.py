"""The processes that share a run: who this one is, and how they exchange small things. Needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist

from soho_fast.common.errors import UserError, print_line

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The ranks of this run; `Processes()` is one by itself, on the CPU.

    `group` carries small CPU tensors (gloo), also where gradients go over nccl.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def say(self, line: str) -> None:
        """Print a line, once for all ranks."""
        if self.is_main:
            print_line(line)

    def maximum(self, values: Sequence[float]) -> list[float]:
        """Elementwise maximum over all ranks, the same floats on each."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def total(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over all ranks, the same floats on each."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def gather(self, item: object) -> list:
        """Every rank's `item`, in rank order, on every rank."""
        if self.world == 1:
            return [item]
        items: list[object] = [None] * self.world
        dist.all_gather_object(items, item, group=self.group)
        return items

    def on_main(self, call: Callable[[], T]) -> T | None:
        """What `call` gives on rank 0, None on the others; a UserError that it raises there is raised on all."""
        result = error = None
        if self.is_main:
            try:
                result = call()
            except UserError as found:
                error = str(found)
        # All wait here for rank 0. Where an error of another kind ends it, this fails on the others.
        error = self.gather(error)[0]
        if error is not None:
            raise UserError(error)
        return result

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.world > 1:
            dist.barrier(group=self.group)

    def _reduce(self, values: Sequence[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world == 1:
            return [float(value) for value in values]
        # Float64 keeps whole numbers to 2^53: bytes and counts come through as they are.
        buffer = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(buffer, op=op, group=self.group)
        return buffer.tolist()
