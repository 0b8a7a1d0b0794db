"""The processes that share a run: who this one is, and how they exchange small things. Needs torch alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist


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
            print(line)

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
        items = [None] * self.world
        dist.all_gather_object(items, item, group=self.group)
        return items

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.world > 1:
            dist.barrier(group=self.group)

    def _reduce(self, values: Sequence[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world == 1:
            return [float(value) for value in values]
        buffer = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(buffer, op=op, group=self.group)
        return buffer.tolist()
