"""For the batching rules of the ops: slices of a map become more rows, or more codebooks, of one call.

Letters: V slices, G codebooks, K codes, C channels; `lead` are the dimensions of an index.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def padded_dims(in_dims: Sequence, count: int) -> list[int | None]:
    """The mapped dimension of `count` arguments: torch leaves out those that have their default."""
    return [*in_dims, *[None] * (count - len(in_dims))]


def in_front(size: int, tensor: Tensor, dim: int | None) -> Tensor:
    """The tensor with the mapped dimension first; what is not mapped over is the same in each slice."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class Slices(NamedTuple):
    """How slices of rows (V, lead..., C) go into one lookup, and what comes out of it."""

    codebook: Tensor
    first: int  # the dimensions of what goes in that become one: from here
    shape: tuple[int, ...]  # with these sizes
    out_dim: int  # of the results

    def merge(self, tensor: Tensor) -> Tensor:
        """(V, lead...) or (V, lead..., C) as the lookup takes it."""
        return tensor.movedim(0, self.out_dim).flatten(self.first, self.first + len(self.shape) - 1)

    def split(self, tensor: Tensor) -> Tensor:
        """What it gives, with the slices at `out_dim`."""
        return tensor.unflatten(self.first, self.shape)


def slices_of(size: int, lead: Sequence[int], codebook: Tensor, of_codebook: int | None) -> Slices:
    """For a codebook (K, C) or (G..., K, C) of each slice or, where `of_codebook` is None, of all."""
    if of_codebook is None:  # rows of all slices are rows of one lookup, next to each other within a codebook
        place = codebook.dim() - 2
        if place == 0:
            return Slices(codebook, 0, (size,), 0)
        # (G..., V, N, C): slices beside the rows of their codebook.
        return Slices(codebook, place, (size, lead[-1]), place)
    codebook = codebook.movedim(of_codebook, 0)
    # (V, K, C) is a batch of V codebooks, so all of `lead` are rows; with (V, G..., K, C) the batch fits as it is.
    return Slices(codebook, 1, tuple(lead) if codebook.dim() == 3 else (lead[0],), 0)


def index_apart(index: Tensor, num_codes: int) -> Tensor:
    """Of slices (V, ...): code k of slice v as v * num_codes + k. What is no code stays none: negative, or too high."""
    size = index.shape[0]
    first = torch.arange(0, size * num_codes, num_codes, device=index.device).reshape(size, *[1] * (index.dim() - 1))
    beyond = torch.where(index < num_codes, index + first, size * num_codes)
    return torch.where(index < 0, index, beyond)


def write_through(written: Tensor, target: Tensor) -> None:
    """Writes what an op wrote into `written`, which `target` was reshaped to, where that took a copy."""
    if written.untyped_storage().data_ptr() != target.untyped_storage().data_ptr():
        target.copy_(written.reshape(target.shape))
