"""The dictionary explorer: what each code of a codebook means, from a model or from arrays, as pages to look at.

From a model: `soho explore build RUN`. From arrays of any codebook: `build_from_arrays`, or
`build_from_batches` where they do not fit into memory. `Bundle` reads an explorer. All of these need the extra
`explore` alone.
"""

from importlib import import_module
from typing import Any

from soho_fast.common.extras import from_extra

with from_extra("explore"):
    import numpy  # noqa: F401 - what all of these need

_HOMES = {
    "Bundle": "bundle",
    "build_from_arrays": "from_arrays",
    "build_from_batches": "from_arrays",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imported where it is asked for: the command line is read before torch is loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
