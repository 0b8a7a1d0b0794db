"""Which program this is (its version alone does not tell a change that was made since), and of which run a model is."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import soho_fast
from soho_fast.common.checksums import digest_of_files
from soho_fast.common.errors import UserError
from soho_fast.common.files import read_json
from soho_fast.common.import_path import own_code

RUN_OF = "run.json"
"""In a model's folder: `step`, `identity` (the digest of what it was trained with), `program` and `metrics`, those of
held-out data where this step was evaluated."""
LIBRARIES = (
    "torch", "torchvision", "pillow", "pillow-heif", "transformers", "tokenizers", "numpy", "timm", "deepspeed",
)  # fmt: skip
"""Those that decide on what tokens, pixels and steps are."""

CODE = "code."
"""How the names of a user's own modules begin in `program`."""


def program(known: Iterable[str] = ()) -> dict[str, str]:
    """All that computes: versions of this package and of `LIBRARIES`, the commit where the package lies in its
    repository, digests of its sources and of its compiled ops, which tell what no version and no commit does, and those
    of a user's own modules; `known`: see `own_code`."""
    return _installed_program() | {f"{CODE}{name}": digest for name, digest in own_code(known).items()}


@functools.cache
def _installed_program() -> dict[str, str]:
    here = Path(soho_fast.__file__).parent
    return {
        "soho_fast": soho_fast.__version__,
        **installed(LIBRARIES),
        "commit": commit(),
        "sources": digest_of_files(here, "*.py"),
        "compiled ops": digest_of_files(here, "_C*.so"),
    }


def installed(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of those that are there."""
    return {name: found.version for name in libraries for found in [*distributions(name=name)][:1]}


def is_told(name: str, before: Any, now: Any) -> bool:
    """Whether a difference of `program` is a line: not of own code, nor of a library but in its patch level."""
    both = name in LIBRARIES and before and now
    return not name.startswith(CODE) and not (both and before.split(".")[:2] != now.split(".")[:2])


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


def write_run_of(folder: Path, step: int, identity: str, metrics: Mapping[str, float] | None = None) -> None:
    """Write into a model's folder of which step of which run it is, and its metrics."""
    numbers = {name: value for name, value in (metrics or {}).items() if math.isfinite(value)}  # JSON has no others
    about = {"step": step, "identity": identity, "program": program(), "metrics": numbers}
    (folder / RUN_OF).write_text(json.dumps(about, indent=1) + "\n")


def read_run_of(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `write_run_of` wrote there; None where nothing says it, as of a model of others."""
    try:
        about = read_json(Path(folder) / RUN_OF)
        return about if isinstance(about["step"], int) and about["identity"] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def cautions(folder: str | os.PathLike[str], accept_changes: bool = False) -> list[str]:
    """Lines about a run's model: it was trained with other libraries or, where that is accepted, with own code that was
    another; and, where its folder lies in its run's: the run has gone on since, or ended no better than chance.

    Raises:
        UserError: it was trained with own code that was another.
    """
    about, run = read_run_of(folder), Path(folder).resolve().parent
    if about is None:
        return []
    before = about.get("program")
    before = before if isinstance(before, dict) else {}
    now = program([name.removeprefix(CODE) for name in before if name.startswith(CODE)])
    differ = [name for name in before if now.get(name, before[name]) != before[name]]
    told = {name: f"{name} {before[name]}, here {now[name]}" for name in differ}
    if code := "; ".join(told[name] for name in differ if name.startswith(CODE) and not accept_changes):
        raise UserError(f"{folder} was trained with {code}: bring that code back, or give --accept-changes")
    others = "; ".join(told[name] for name in differ if name in LIBRARIES or name.startswith(CODE))
    lines = [f"{folder} was trained with {others}"] * bool(others)
    if not (run / "recipe.yaml").is_file():
        return lines
    try:
        ended = dict(read_json(run / "metrics.json"))
    except (OSError, ValueError, TypeError):
        ended = {}
    best, at_chance = ended.get("best"), ended.get("at_chance")
    saved = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    last = max([int(step) for step in saved if step.isdecimal()], default=0)
    # That a run has newer steps than the best one, which it ended with, is no news.
    has_gone_on = last > about["step"] and not (isinstance(best, dict) and best.get("step") == about["step"])
    lines += [f"{folder} is of step {about['step']:,}; its run has gone on to step {last:,}"] * has_gone_on
    return lines + [f"{run}: {at_chance}"] * bool(isinstance(at_chance, str) and at_chance)
