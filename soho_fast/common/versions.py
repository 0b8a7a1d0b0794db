"""Which program this is (its version alone does not tell a change that was made since), and of which run a model is."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soho_fast
from soho_fast.common.files import read_json

RUN_OF = "run.json"
"""In a model's folder: `step`, `identity` (the digest of what it was trained with) and `program`."""


@functools.cache
def program() -> dict[str, str]:
    """Versions of this package and of torch, the commit where the package lies in its repository, and digests of its
    sources and of its compiled ops, which tell what no version and no commit does."""
    import torch

    return {
        "soho_fast": soho_fast.__version__,
        "torch": str(torch.__version__),
        "commit": commit(),
        "sources": _digest_of_files("*.py"),
        "compiled ops": _digest_of_files("_C*.so"),
    }


def _digest_of_files(pattern: str) -> str:
    """A digest of files of this package, whatever folder it lies in; empty if no file matches."""
    here, digest = Path(soho_fast.__file__).parent, hashlib.sha256()
    files = sorted(here.rglob(pattern))
    for path in files:
        digest.update(f"{path.relative_to(here)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12] if files else ""


def in_words(program: Mapping[str, str]) -> str:
    """As messages have it."""
    return ", ".join(f"{name} {version}" for name, version in program.items() if version) or "an unknown one"


def commit() -> str:
    """The commit of the program, with a plus sign where files of it have changed since; empty of an installed one,
    which another's repository may lie around."""
    here = Path(soho_fast.__file__).resolve()
    asked = ["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"], ["status", "--porcelain", "-uno", "."]
    try:
        # The first asks whether the file is one of the repository's at all, and fails if not.
        _, head, changes = (
            subprocess.run(["git", *words], cwd=here.parent, capture_output=True, text=True, check=True).stdout.strip()
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}+" if changes else head


def write_run_of(folder: Path, step: int, identity: str) -> None:
    """Write into a model's folder of which step of which run it is."""
    about = {"step": step, "identity": identity, "program": program()}
    (folder / RUN_OF).write_text(json.dumps(about, indent=1) + "\n")


def read_run_of(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `write_run_of` wrote there; None where nothing says it, as of a model of others."""
    try:
        about = read_json(Path(folder) / RUN_OF)
        return about if isinstance(about["step"], int) and about["identity"] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def cautions(folder: str | os.PathLike[str]) -> list[str]:
    """Lines about a model whose folder lies in its run's: the run has gone on since, or ended no better than chance."""
    about, run = read_run_of(folder), Path(folder).resolve().parent
    if about is None or not (run / "recipe.yaml").is_file():
        return []
    try:
        ended = dict(read_json(run / "metrics.json"))
    except (OSError, ValueError, TypeError):
        ended = {}
    best, at_chance = ended.get("best"), ended.get("at_chance")
    saved = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    last = max([int(step) for step in saved if step.isdecimal()], default=0)
    # That a run has newer steps than the best one, which it ended with, is no news.
    has_gone_on = last > about["step"] and not (isinstance(best, dict) and best.get("step") == about["step"])
    lines = [f"{folder} is of step {about['step']:,}; its run has gone on to step {last:,}"] * has_gone_on
    return lines + [f"{run}: {at_chance}"] * bool(isinstance(at_chance, str) and at_chance)
