"""Where the bytes of images live: a folder or a zip file (or several of them).

A store is small, picklable and safe to hand to worker processes: a zip file is opened on the first read of each
process, because a file handle shared through fork has one common position and gives interleaved garbage.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol


class ImageStore(Protocol):
    """Something that holds image files under relative names with forward slashes."""

    def existing(self, names: Iterable[str]) -> set[str]:
        """The subset of `names` that this store holds, without reading any of the files."""

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises OSError (FileNotFoundError when it is not there)."""

    def locate(self, name: str) -> str:
        """The name as a user would look for it, for messages."""

    def __str__(self) -> str:
        """Path of the store."""


@dataclass(frozen=True)
class FolderStore:
    """Image files below a folder."""

    root: str

    def __str__(self) -> str:
        return self.root

    def existing(self, names: Iterable[str]) -> set[str]:
        """The subset of `names` that exists; each folder is listed once, so a million names cost a few listings."""
        names_by_parent: dict[str, list[str]] = {}
        for name in names:
            names_by_parent.setdefault(str(PurePosixPath(name).parent), []).append(name)
        found = set()
        for parent, members in names_by_parent.items():
            try:
                present = set(os.listdir(os.path.join(self.root, parent)))
            except (FileNotFoundError, NotADirectoryError):
                continue
            found.update(name for name in members if PurePosixPath(name).name in present)
        return found

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises OSError."""
        return Path(self.root, name).read_bytes()

    def locate(self, name: str) -> str:
        """Path of the file."""
        return os.path.join(self.root, name)


@dataclass
class ZipStore:
    """Image files inside a zip archive, opened once per process at the first read."""

    path: str
    _handle: zipfile.ZipFile | None = field(default=None, repr=False, compare=False)
    _owner: int = field(default=0, repr=False, compare=False)

    def __str__(self) -> str:
        return self.path

    def _open(self) -> zipfile.ZipFile:
        if self._handle is None or self._owner != os.getpid():
            try:
                self._handle = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as error:
                raise ValueError(
                    f"{self.path}: expected a zip archive of images, but it can't be read: {error}"
                ) from error
            self._owner = os.getpid()
        return self._handle

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_handle": None, "_owner": 0}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)

    def existing(self, names: Iterable[str]) -> set[str]:
        """The subset of `names` in the archive's directory."""
        members = self._open().NameToInfo
        return {name for name in names if name in members}

    def read(self, name: str) -> bytes:
        """The member's bytes. Raises OSError, also for a member with a wrong checksum."""
        try:
            return self._open().read(name)
        except KeyError:
            raise FileNotFoundError(f"{self.locate(name)}: no such member in the archive") from None
        except zipfile.BadZipFile as error:
            raise OSError(f"{self.locate(name)}: {error}") from error

    def locate(self, name: str) -> str:
        """Archive and member."""
        return f"{self.path}!{name}"


def open_stores(images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[ImageStore]:
    """Stores for one path or several: a folder, or a file ending in .zip.

    Raises FileNotFoundError when a path does not exist and ValueError when it is neither or nothing was given.
    """
    paths = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not paths:
        raise ValueError("images: expected at least one folder or .zip file, got an empty list")
    stores: list[ImageStore] = []
    for path in map(str, paths):
        if os.path.isdir(path):
            stores.append(FolderStore(path))
        elif not os.path.exists(path):
            raise FileNotFoundError(f"images: {path} does not exist; expected a folder or a .zip file of images")
        elif path.lower().endswith(".zip"):
            store = ZipStore(path)
            store.existing(())
            stores.append(store)
        else:
            raise ValueError(f"images: {path} is neither a folder nor a .zip file")
    return stores
