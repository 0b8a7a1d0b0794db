"""Folders of drawings, one a concept, named by its code point: what a style other than the demo's is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from .concepts import CONCEPTS, Concept

LICENCE_FILE = "licence.json"


def check_style(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder without a drawing of every concept: a concept is drawn in all styles of a corpus, or in none.

    Raises:
        FileNotFoundError: the folder or drawings are missing; the message names them and how they are made.
    """
    path = Path(folder)
    how = f"python -m soho_fast.data.mini.styles {path.parent}"
    if not path.is_dir():
        raise FileNotFoundError(f"style {folder}: there is no such folder of drawings; `{how}` makes some there")
    missing = [f"{concept.code}.png ({concept.name})" for concept in CONCEPTS.values() if not _drawn(path, concept)]
    if missing:
        raise FileNotFoundError(
            f"style {folder}: expected a drawing of each of the {len(CONCEPTS)} concepts; {len(missing)} are missing, "
            f"first {', '.join(missing[:3])}"
        )


def _drawn(folder: Path, concept: Concept) -> bool:
    return (folder / f"{concept.code}.png").is_file()


def copy_style(style: str | os.PathLike[str], folder: Path) -> None:
    """Copy the drawing of every concept and the licence, where there is one, into a new folder."""
    folder.mkdir(parents=True)
    for name in [f"{concept.code}.png" for concept in CONCEPTS.values()] + [LICENCE_FILE]:
        if (Path(style) / name).is_file():
            shutil.copyfile(Path(style) / name, folder / name)


def read_licence(folder: str | os.PathLike[str]) -> dict[str, str]:
    """What a style's folder says of its licence, with its name; that of a folder that says nothing is unknown."""
    entry = {"what": f"cut-outs: drawings in {Path(folder).name}", "package": Path(folder).name}
    path = Path(folder) / LICENCE_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = {"credit": "unknown", "licence": "unknown"}
    except ValueError as error:
        raise ValueError(f"{path}: expected the style's licence as JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("credit", "licence")):
        raise ValueError(f"{path}: expected texts by the names credit and licence, got {found!r:.80}")
    return {**entry, **{name: found[name] for name in ("what", "package", "credit", "licence") if name in found}}
