"""What matrix products on a CPU depend on: the type they are taken in, and the number of their rows."""

import torch
from torch import Tensor


def product_dtype(like: Tensor) -> torch.dtype:
    """The type in which products with `like` are taken: autocast's where it is on."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def recurring(count: int, like: Tensor, multiple: int = 32) -> int:
    """A number of rows, rounded up where a kernel is built for each new one.

    In bfloat16 on a CPU a matrix product is oneDNN's, which compiles for every shape. Row counts that are new at each
    step cost recipe `mini` 7 % of its step. (So it is in float16, but there the LayerNorm of a row of zeros divides by
    an epsilon that is too small for the type, and its gradient is NaN.)
    """
    if like.device.type != "cpu" or product_dtype(like) != torch.bfloat16:
        return count
    return -(-count // multiple) * multiple
