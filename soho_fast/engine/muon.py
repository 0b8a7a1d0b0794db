"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): matrices step by their orthogonalised momentum.

The size of a step is AdamW's, so that one rate serves both (Liu et al. 2025, arXiv 2502.16982, eq. 4).
`torch.optim.Muon` takes one matrix after another; here those of a shape go together. Under ZeRO 1 and 2 a rank has a
flat partition of all matrices: the momentum is that of the partition, and what is orthogonalised is gathered.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

MOMENTUM = 0.95
# The quintic's, which raises small singular values fastest; torch.optim.Muon has the same.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5


def orthogonalise(matrices: list[Tensor]) -> list[Tensor]:
    """Each matrix U S V' as about U V', by Newton-Schulz: float32 on a CPU, bfloat16 elsewhere.

    Args:
        matrices: of any shapes (rows, columns).

    Returns:
        the same shapes, their type and order; singular values from 0.7 to 1.2, but for those of less than a thousandth
        of the matrix's norm. Zeros stay zeros.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for number, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(number)
    found = list(matrices)
    a, b, c = _COEFFICIENTS
    for (num_rows, num_columns), numbers in by_shape.items():
        all_NAB = torch.stack([matrices[number] for number in numbers])
        x_NAB = all_NAB.float() if all_NAB.device.type == "cpu" else all_NAB.bfloat16()
        x_NAB = x_NAB.mT if num_rows > num_columns else x_NAB
        x_NAB = x_NAB / x_NAB.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(_NUM_ITERATIONS):
            gram_NAA = x_NAB @ x_NAB.mT
            x_NAB = torch.baddbmm(x_NAB, torch.baddbmm(gram_NAA, gram_NAA, gram_NAA, beta=b, alpha=c), x_NAB, beta=a)
        x_NAB = x_NAB.mT if num_rows > num_columns else x_NAB
        for number, x_AB in zip(numbers, x_NAB.to(all_NAB.dtype), strict=True):
            found[number] = x_AB
    return found


def muon_update(momentum: list[Tensor], grads: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
    """What a rate is multiplied by; moves the momentum.

    Args:
        momentum: of each parameter, in its shape.
        grads: of each parameter.
        shapes: of the matrices. Parameters are these matrices, or this rank's partition of them in one dimension, as
            ZeRO 1 and 2 make it: all one after another, with something at the end, in equal parts.

    Returns:
        tensors as `grads`, of a root mean square of about 0.2.
    """
    torch._foreach_lerp_(momentum, grads, 1 - MOMENTUM)
    directions = list(torch._foreach_lerp(grads, momentum, MOMENTUM))  # Nesterov's
    if directions[0].dim() == 2:
        return _sized(orthogonalise(directions))
    (direction_F,) = directions
    parts, begin, end = [direction_F], 0, direction_F.numel()
    if dist.is_initialized() and dist.get_world_size() > 1:
        parts = [torch.empty_like(direction_F) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, direction_F)
        begin = dist.get_rank() * direction_F.numel()
        end = begin + direction_F.numel()
    whole_F, place, places, own = torch.cat(parts), 0, [], []
    for shape in shapes:
        if place < end and place + shape.numel() > begin:
            places.append(place)
            own.append(whole_F[place : place + shape.numel()].view(shape))
        place += shape.numel()
    for place, update in zip(places, _sized(orthogonalise(own)), strict=True):
        whole_F[place : place + update.numel()] = update.flatten()
    return [whole_F[begin:end]]


def _sized(matrices: list[Tensor]) -> list[Tensor]:
    return [0.2 * math.sqrt(max(matrix.shape)) * matrix for matrix in matrices]
