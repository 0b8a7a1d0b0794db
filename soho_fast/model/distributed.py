"""What the model asks of torch.distributed; all of it does nothing in one process."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def world_size() -> int:
    """Number of ranks of the default group; 1 when torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 when torch.distributed is not initialised."""
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce_sum_(tensor: Tensor) -> Tensor:
    """Sums `tensor` over all ranks in place; every rank gets the same bits."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_from_first_(tensors: list[Tensor]) -> None:
    """Gives every rank the first rank's values, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def all_gather_rows(tensor: Tensor) -> Tensor:
    """Concatenates same-shaped tensors of all ranks along dimension 0, in rank order."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _AllReduceWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_reduce_sum_(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every rank's output holds this rank's input, so all their gradients arrive here.
        return all_reduce_sum_(grad.clone())


def all_reduce_with_grad(tensor: Tensor) -> Tensor:
    """Sum over all ranks whose gradient is the sum of all ranks' gradients (as SyncBatchNorm has it)."""
    return _AllReduceWithGrad.apply(tensor) if world_size() > 1 else tensor


def gather_with_grad(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks, which may have different numbers of them, in rank order, and where this rank's begin; a
    row's gradient is the sum of all ranks' gradients."""
    if world_size() == 1:
        return rows, 0
    counts = all_gather_rows(torch.tensor([len(rows)], device=rows.device)).tolist()
    begin = sum(counts[: rank()])
    behind = sum(counts) - begin - len(rows)
    # Own rows between zeros: the sum over the ranks is their concatenation. `F.pad` counts from the last dimension.
    return all_reduce_with_grad(F.pad(rows, (0, 0) * (rows.dim() - 1) + (begin, behind))), begin
