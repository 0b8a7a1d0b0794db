"""Real photographs with names, from Debian's package gcompris-qt-data: read where it is installed, never copied.

GCompris is GPL-3.0-or-later; /usr/share/doc/gcompris-qt-data/copyright names every author.
"""

import functools
from pathlib import Path

from soho_fast.data.packages.rcc import read_rcc

FOLDER = Path("/usr/share/gcompris-qt/rcc")
INSTALL = "apt-get install --no-install-recommends gcompris-qt-data"


@functools.cache
def read_photographs(activity: str) -> dict[str, bytes]:
    """Name below the activity's resources ("usa/navajo.webp") -> the photograph's file, of one activity of GCompris.

    Raises:
        FileNotFoundError: the package is not installed, or holds no such activity; the message says how it is.
        ValueError: its file is damaged.
    """
    path = FOLDER / f"{activity}.rcc"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; Debian's package of photographs brings it: `{INSTALL}`")
    inner = f"gcompris/src/activities/{activity}/resource/"
    return {name.removeprefix(inner): data for name, data in read_rcc(path).items() if name.endswith(".webp")}
