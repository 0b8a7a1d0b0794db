"""Which program this is. Its version alone does not tell a change that was made since."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import soho_fast


@functools.cache
def program() -> dict[str, str]:
    """Versions of this package and of torch, and the commit where the package lies in its repository."""
    import torch

    return {"soho_fast": soho_fast.__version__, "torch": str(torch.__version__), "commit": commit()}


def commit() -> str:
    """The commit of the program, with a plus sign where files of it have changed since; empty of an installed one,
    which another's repository may lie around."""
    here = Path(soho_fast.__file__).resolve()
    asked = ["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"], ["status", "--porcelain", "-uno", "."]
    try:
        _, head, changes = (
            subprocess.run(["git", *words], cwd=here.parent, capture_output=True, text=True, check=True).stdout.strip()
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}+" if changes else head
