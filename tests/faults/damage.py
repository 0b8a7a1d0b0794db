"""Damage to a file, as disks, copies and editors do it."""

import random
import shutil
from pathlib import Path

KINDS = ("flipped", "truncated", "zeroed", "emptied", "deleted", "swapped", "lengthened")


def damage(path: Path, kind: str, draw: random.Random, other: Path | None = None) -> None:
    """Damage a file in one of `KINDS`; `swapped` puts another file in its place."""
    if kind == "deleted":
        path.unlink()
        return
    if kind == "swapped" and other is not None:
        shutil.copyfile(other, path)
        return
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content)) if content else 0
    if kind == "flipped" and content:
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "truncated":
        del content[at:]
    elif kind == "zeroed":
        size = min(draw.choice((16, 512, 4096)), len(content) - at)
        content[at : at + size] = bytes(size)
    elif kind == "emptied":
        content.clear()
    else:
        content += draw.randbytes(draw.choice((1, 100, 5000)))
    path.write_bytes(content)
