"""Compares shards with their indexes, and decodes what is in them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from soho_fast.common.errors import BrokenImageError
from soho_fast.data.images import decode_image
from soho_fast.data.shards.index import index_path, read_index
from soho_fast.data.shards.indexing import read_contents


def check_shard(shard: str, *, decode: bool) -> Iterator[str]:
    """Read a shard from end to end.

    Args:
        shard: Path of the tar.
        decode: Decode each image too.

    Yields:
        A line for each image that can't be decoded.

    Raises:
        FileNotFoundError, ValueError: The shard does not follow the format, or its index is missing, stale, damaged or
            tells something else than the shard.
    """
    index = read_index(shard)
    with open(shard, "rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
        arrays, counts = read_contents(content, shard)
        different = [name for name, array in arrays.items() if not np.array_equal(array, getattr(index, name))]
        if different or counts != index.counts:
            raise ValueError(
                f"{index_path(shard)}: does not tell what {shard} holds: {', '.join(different) or 'counts'} differ; "
                f"make it anew with: python -m soho_fast.data.shards index {shard} --again"
            )
        for row in range(len(index)) if decode else ():
            begin = int(index.offset[row])
            try:
                decode_image(content[begin : begin + int(index.size[row])])
            except BrokenImageError as error:
                yield f"{shard}!{index.name(row)}: {error}"
