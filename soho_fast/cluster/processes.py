"""The processes that fit together: those of torch.distributed, or this one alone.

Every call here is made by all of them, in the same order.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


class Processes:
    """All ranks of the default process group where one is there and wanted; otherwise this process alone."""

    def __init__(self, together: bool) -> None:
        self.together = together and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.together else 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the ranks, with the same bits on each; `value` itself is overwritten."""
        if self.together:
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, by rank."""
        if not self.together:
            return [value]
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    def agree(self, make: Callable[[], Result]) -> Result:
        """`make()`, refused on every rank where it is refused on one: else the others would wait for ever."""
        error: Exception | None = None
        try:
            made = make()
        except Exception as caught:
            error = caught
        told = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        # Its own error as it is; the other ranks report it below.
        if error is not None:
            raise error
        for rank, other in enumerate(told):
            if other is not None:
                raise ValueError(f"rank {rank} refused its rows: {other}")
        return made
