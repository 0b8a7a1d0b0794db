"""Numbered files in one path: `cc3m/{00000..00331}.tar`."""

from __future__ import annotations

import os
import re

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 1_000_000


def expand_range(path: str | os.PathLike[str]) -> list[str]:
    """The paths that a path with ranges names, in order; the path itself if it has no range.

    `{00000..00331}` counts from the first number to the last, both included, with the first one's digits.

    Raises:
        ValueError: a range counts down, or names more than a million paths.
    """
    path = os.fspath(path)
    found = _RANGE.search(path)
    if found is None:
        return [path]
    first, last = found[1], found[2]
    count = int(last) - int(first) + 1
    if count < 1:
        raise ValueError(
            f"{path}: the range {found[0]} counts down; expected {{FIRST..LAST}}, such as {{00000..00331}}"
        )
    rest = expand_range(path[found.end() :])
    if count * len(rest) > _MOST:
        raise ValueError(f"{path}: names {count * len(rest):,} shards; expected at most {_MOST:,}")
    digits = len(first)
    return [
        f"{path[: found.start()]}{number:0{digits}d}{tail}"
        for number in range(int(first), int(last) + 1)
        for tail in rest
    ]


def is_shards(path: str | os.PathLike[str]) -> bool:
    """Whether a path names one tar shard or a range of them."""
    return os.fspath(path).lower().endswith(".tar")
