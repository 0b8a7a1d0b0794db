"""Where the bytes of images live: a folder or a zip file (or several of them).

A store is small, picklable and safe to hand to worker processes: a zip file is opened on the first read of each
process, because a file handle shared through fork has one common position and gives interleaved garbage.
"""

import os
import re
import stat
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Protocol

from soho_fast.common.images import check_size, one_line

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif",
)  # fmt: skip
"""Of files that are taken for images where nothing names them."""

# Those of which no more is unpacked than is asked for: a bomb stays small.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What no file name can hold: zeros, and halves of characters.
_NO_FILE_NAME = re.compile("[\0\ud800-\udfff]")


class ImageStore(Protocol):
    """Something that holds images under names."""

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises OSError (FileNotFoundError when it is not there)."""

    def open(self, name: str) -> IO[bytes]:
        """The file, to read no more of it than is needed. Raises OSError or what its archive raises."""

    def size(self, name: str) -> int:
        """The file's size in bytes, without reading it. Raises OSError."""

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

    def holds(self, name: str) -> bool:
        """Whether a name leads nowhere but into this folder (or to where a link in it leads)."""
        inside = not name.startswith("/") or PurePosixPath(name).is_relative_to(os.path.abspath(self.root))
        return inside and ".." not in name.split("/")

    def existing(self, names: Iterable[str]) -> set[str]:
        """The subset of `names` that exists; each folder is listed once, so a million names cost a few listings."""
        names_by_parent: dict[str, list[str]] = {}
        for name in filter(self.holds, names):
            # A name without a folder has the parent ".", which is listed as the root.
            names_by_parent.setdefault(str(PurePosixPath(name).parent), []).append(name)
        found: set[str] = set()
        for parent, members in names_by_parent.items():
            try:
                present = set(os.listdir(os.path.join(self.root, parent)))
            # Raised, though it is an OSError: the images may be there, and are not to count as missing.
            except PermissionError:
                raise
            except OSError:  # no such folder, none at all, or a name too long to be one
                continue
            found.update(name for name in members if PurePosixPath(name).name in present)
        return found

    def read(self, name: str) -> bytes:
        """The file's bytes; a link is followed. Raises OSError, also for what is no file, or larger than any image."""
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> BinaryIO:
        """The file. Raises OSError, as `read`."""
        if not self.holds(name):
            raise OSError(f"{name} leads out of {self.root}")
        path = Path(self.root, name)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise OSError(f"{path} is no regular file")
        check_size(status.st_size)
        return path.open("rb")

    def size(self, name: str) -> int:
        """The file's size; a link is followed. Raises OSError."""
        return os.stat(os.path.join(self.root, name)).st_size

    def locate(self, name: str) -> str:
        """Path of the file."""
        return os.path.join(self.root, name)


@dataclass(unsafe_hash=True)  # by its path
class ZipStore:
    """Image files inside a zip archive, opened once per process at the first read."""

    path: str
    _handle: zipfile.ZipFile | None = field(default=None, repr=False, compare=False)
    _owner: int = field(default=0, repr=False, compare=False)

    def __str__(self) -> str:
        return self.path

    def _open(self) -> zipfile.ZipFile:
        # After a fork the handle is the parent's: this process opens its own.
        if self._handle is None or self._owner != os.getpid():
            try:
                self._handle = zipfile.ZipFile(self.path)
            except Exception as error:  # a damaged directory fails in many ways
                raise ValueError(
                    f"{self.path}: expected a zip archive of images, but it can't be read: {one_line(error)}"
                ) from error
            self._owner = os.getpid()
        return self._handle

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_handle": None, "_owner": 0}

    def existing(self, names: Iterable[str]) -> set[str]:
        """The subset of `names` in the archive's directory."""
        members = self._open().NameToInfo
        return {name for name in names if name in members}

    def read(self, name: str) -> bytes:
        """The member's bytes. Raises OSError, also for a member that is damaged, encrypted or larger than any image."""
        try:
            archive = self._open()
            member = archive.NameToInfo.get(name)
            if member is None:
                raise FileNotFoundError("no such member in the archive")
            if member.compress_type not in _COMPRESSIONS:
                raise OSError("its compression is not read; expected a member stored or deflated (zip's -0 or -6)")
            check_size(member.file_size)
            with archive.open(member) as file:
                # Not read(): that unpacks up to 2 GB before it looks at the size in the archive's directory.
                return file.read(member.file_size + 1)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.locate(name)}: {error}") from None
        except (
            Exception
        ) as error:  # wrong checksum, truncated, encrypted: zipfile's, zlib's, RuntimeError, EOFError, ...
            raise OSError(f"{self.locate(name)}: {one_line(error)}") from error

    def open(self, name: str) -> IO[bytes]:
        """The member. Raises OSError, KeyError or what zipfile raises."""
        return self._open().open(name)

    def size(self, name: str) -> int:
        """The unpacked member's size. Raises FileNotFoundError."""
        member = self._open().NameToInfo.get(name)
        if member is None:
            raise FileNotFoundError(f"{self.locate(name)}: no such member in the archive")
        return member.file_size

    def locate(self, name: str) -> str:
        """Archive and member."""
        return f"{self.path}!{name}"


def check_name(name: str, stores: Sequence[ImageStore]) -> None:
    """Raises ValueError: the name of an image file leads out of the folders, or can't be one.

    A path from the root is taken where it leads into one of the folders.
    """
    folders = [store for store in stores if isinstance(store, FolderStore)]
    if ".." in name.split("/") or (name.startswith("/") and not any(folder.holds(name) for folder in folders)):
        listed = ", ".join(map(str, stores))
        reason = f"leads out of {listed}; expected a path below; else give a folder that holds all images"
    elif _NO_FILE_NAME.search(name):
        reason = "holds a character that no file name can hold"
    elif len(name) > 4096:
        reason = "is longer than a path can be"
    elif not name.strip("./"):
        reason = "names no file"
    else:
        return
    raise ValueError(f"image name {name!r:.100} {reason}")


def open_stores(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[FolderStore | ZipStore]:
    """Stores for one path or several: a folder, or a file ending in .zip.

    Raises FileNotFoundError when a path does not exist and ValueError when it is neither or nothing was given.
    """
    paths = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not paths:
        raise ValueError("images: expected at least one folder or .zip file, got an empty list")
    stores: list[FolderStore | ZipStore] = []
    for path in map(str, paths):
        if os.path.isdir(path):
            stores.append(FolderStore(path))
        elif not os.path.exists(path):
            raise FileNotFoundError(f"images: {path} does not exist; expected a folder or a .zip file of images")
        elif path.lower().endswith(".zip") and os.path.isfile(path):
            store = ZipStore(path)
            # Opens it: a damaged archive is refused here, and not by a loader process in the middle of training.
            store.existing(())
            stores.append(store)
        else:
            raise ValueError(f"images: {path} is neither a folder nor a .zip file")
    return stores


def images_below(folder: Path) -> list[str]:
    """The image files in a folder and in those below it or linked there, by their suffix: sorted paths relative to it.

    Each folder once, by its own name where a link to it lies beside it. Raises OSError: a folder can't be listed.
    """
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        # A link to a folder above would lead round and round.
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        links = {name for name in folders if os.path.islink(os.path.join(parent, name))}
        folders[:] = [*sorted(set(folders) - links), *sorted(links)]
        found += [os.path.join(parent, name) for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(Path(path).relative_to(folder).as_posix() for path in found)


def _refuse(error: OSError) -> None:
    raise error
