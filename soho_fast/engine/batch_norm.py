"""BatchNorm's running statistics, which the ranks share."""

import torch
import torch.distributed as dist
from torch import nn

from soho_fast.common.processes import Processes


@torch.no_grad()
def average_batch_norm(model: nn.Module, processes: Processes) -> None:
    """Average BatchNorm's running statistics over the ranks, in one buffer.

    They are exponential means of each rank's own batches, hence linear in them: averaging now and then gives the same
    as averaging at each step, to rounding. The training losses read them only where the backbone or its BatchNorm is
    frozen.
    """
    if processes.world == 1:
        return
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if statistics:
        flat = torch.cat([buffer.reshape(-1).double() for buffer in statistics])
        dist.all_reduce(flat)
        flat /= processes.world
        for buffer, part in zip(statistics, flat.split([buffer.numel() for buffer in statistics]), strict=True):
            buffer.copy_(part.view_as(buffer))
