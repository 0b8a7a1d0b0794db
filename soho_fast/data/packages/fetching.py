"""Packages of Debian, npm and PyPI: fetched into a cache by these registries' own clients, checked by their SHA-256,
and read without being installed."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from soho_fast.common.errors import UserError
from soho_fast.common.files import scratch_beside

# What puts version {1} of package {0} into the folder where it runs, from the index that this machine is set up for.
_CLIENTS = {
    "Debian": ("apt-get", "download", "{0}={1}"),
    "npm": ("npm", "pack", "--silent", "{0}@{1}"),
    "PyPI": (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "{0}=={1}"),
}
# What it calls the file.
_FILES = {"Debian": "{0}_{1}_all.deb", "npm": "{0}-{1}.tgz", "PyPI": "{0}-{1}-py3-none-any.whl"}
_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package: its registry ("Debian", "npm" or "PyPI"), and its file's size in bytes and SHA-256."""

    registry: str
    name: str
    version: str
    size: int
    sha256: str

    @property
    def file(self) -> str:
        """The name of its file."""
        return _FILES[self.registry].format(self.name.removeprefix("@").replace("/", "-"), self.version)

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.registry})"


def package_of(line: str) -> Package:
    """A package by a line of what it holds, between bars."""
    registry, name, version, size, sha256 = line.split("|")
    return Package(registry, name, version, int(size), sha256)


def fetch(package: Package, cache: Path, say: Callable[[str], None]) -> Path:
    """The package's file in the cache folder, fetched if it is not there yet.

    Raises UserError: the registry or its client is not there, or its file is another one.
    """
    path = cache / package.file
    if path.is_file():
        # Each time: what lies in a cache may have been cut off, or exchanged.
        _check(package, path, f"; delete {path} to fetch it again")
        return path
    say(f"fetching {package}, {package.size / 1e6:.0f} MB")
    with scratch_beside(path) as scratch:
        scratch.mkdir()
        _download(package, scratch, f"where its registry is reached, fetch {package.file} and put it into {cache}")
        _check(package, scratch / package.file)
        # Checked first: what has this name in the cache is whole.
        (scratch / package.file).replace(path)
    return path


def _check(package: Package, path: Path, advice: str = "") -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise UserError(f"{package}: its file has changed: SHA-256 {digest}; expected {package.sha256}{advice}")


def _download(package: Package, folder: Path, advice: str) -> None:
    command = [part.format(package.name, package.version) for part in _CLIENTS[package.registry]]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{package}: {command[0]} can't fetch it ({error}); {advice}") from error
    if not (folder / package.file).is_file():
        came = [file.name for file in folder.iterdir()] or (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise UserError(f"{package}: expected {package.file} of `{' '.join(command)}`, got {came}; {advice}")


def read_files(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Name -> bytes of the files whose names are wanted, in a .deb, .tgz, .tar.gz, .whl or .zip; links are left out.

    Raises UserError: it is none of these, or damaged.
    """
    try:
        content = path.read_bytes()
        if path.suffix in (".whl", ".zip"):
            return read_zip(content, wanted)
        found = {}
        with tarfile.open(fileobj=io.BytesIO(_data_of_deb(content) if path.suffix == ".deb" else content)) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isfile() and wanted(name) and (file := tar.extractfile(member)):
                    found[name] = file.read()
        return found
    except (tarfile.TarError, zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: can't be read ({error}); expected a .deb, .tgz, .tar.gz, .whl or .zip") from error


def read_zip(content: bytes, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """As `read_files`, of the bytes of a .zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if wanted(name) and not name.endswith("/")}


def _data_of_deb(content: bytes) -> bytes:
    """The tar of files in a .deb: an `ar` archive, whose 60-byte headers have a name in 16 bytes, and a size in bytes
    48 to 57, as deb(5) says."""
    at = len(b"!<arch>\n")
    while at + 60 <= len(content):
        size = int(content[at + 48 : at + 58])
        if content.startswith(b"data.tar", at):
            return content[at + 60 : at + 60 + size]
        # Parts begin at even places.
        at += 60 + size + size % 2
    raise tarfile.TarError("there is no data.tar in it")
