"""Further drawing styles of the concepts: ``python -m soho_fast.data.mini.styles data/styles``.

Three sets of emoji from npm packages, each of which draws all concepts, are fetched by ``npm pack``, checked against
the SHA-512 that stands here, and rendered by resvg into ``data/styles/NAME/CODE.png``. Such a folder, or any other with
a drawing of every concept, is a style of `SceneOptions`. Nothing of it is committed or comes with this package.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import print_line
from soho_fast.common.extras import from_extra
from soho_fast.common.files import scratch_beside

from .concepts import CONCEPTS, Concept
from .drawing import LICENCE_FILE, check_style

# Twice a large object of the demo (0.55 of 128 pixels), so that it is not enlarged in images of 256 pixels either.
_SIDE = 144
# Iconify's files give no size where it is 16.
_ICON_SIDE = 16


@dataclass(frozen=True)
class StylePackage:
    """An npm package of Iconify icons and whose work it is."""

    package: str
    version: str
    sha512: str
    credit: str
    licence: str


#: Style -> where it comes from. Each draws all concepts, and none is a relative of another or of Twemoji.
PACKAGES: dict[str, StylePackage] = {
    "noto": StylePackage(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Noto Emoji, Google Inc, https://github.com/googlefonts/noto-emoji",
        "Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0",
    ),
    "fluent-emoji-flat": StylePackage(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "Fluent Emoji Flat, Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
        "MIT, https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE",
    ),
    "openmoji": StylePackage(
        "@iconify-json/openmoji",
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "OpenMoji, https://github.com/hfg-gmuend/openmoji",
        "CC-BY-SA-4.0, https://creativecommons.org/licenses/by-sa/4.0/",
    ),
}


def make_styles(folder: str | os.PathLike[str], progress: bool = True) -> list[Path]:
    """Fetch and render every style of `PACKAGES` that is not there yet.

    Args:
        folder: where the styles' folders go, each put in place when it is whole.
        progress: say what is made or kept.

    Returns:
        The styles' folders.

    Raises:
        FileNotFoundError: npm is not installed.
        OSError: npm could not fetch a package.
        ValueError: a package is not the one whose SHA-512 stands here, or lacks a concept.
    """
    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise ValueError(f"folder: {root} is a file; expected a folder for the styles")
    root.mkdir(parents=True, exist_ok=True)
    made = []
    for name, package in PACKAGES.items():
        out = root / name
        about = _about(package)
        if not _is_made(out, about):
            with scratch_beside(out) as building:
                building.mkdir()
                _render_all(_fetch(package, building), building / "drawings")
                (building / "drawings" / LICENCE_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
                os.rename(building / "drawings", out)
        if progress:
            print_line(f"style {out}: {len(CONCEPTS)} drawings. {package.credit}; {package.licence}")
        made.append(out)
    return made


def _about(package: StylePackage) -> dict[str, str]:
    what = f"cut-outs: {package.credit.split(',')[0]} drawings, rendered, scaled, rotated, mirrored and composed"
    name = f"{package.package} {package.version}"
    return {"what": what, "package": name, "credit": package.credit, "licence": package.licence}


def _is_made(folder: Path, about: dict[str, str]) -> bool:
    """Whether a folder holds all drawings of this package; one that holds anything else is not ours to replace."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / LICENCE_FILE).read_text(encoding="utf-8"))
        check_style(folder)
    except (OSError, ValueError):
        found = None
    if found == about:
        return True
    raise ValueError(
        f"{folder} is there and is not {about['package']} as this release draws it; remove it, or rename it"
    )


def _fetch(package: StylePackage, folder: Path) -> Path:
    """Fetch the package's .tgz into a folder and check it."""
    name = f"{package.package}@{package.version}"
    if shutil.which("npm") is None:
        raise FileNotFoundError(f"npm is not installed; it fetches {name} (Debian: apt-get install npm)")
    done = subprocess.run(
        ["npm", "pack", "--silent", name], cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    found = list(folder.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        raise OSError(f"npm pack {name} failed: {' '.join((done.stderr or done.stdout).split())[-300:]}")
    digest = base64.b64encode(hashlib.sha512(found[0].read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise ValueError(f"{name}: expected the file of SHA-512 {package.sha512}, got one of {digest}")
    return found[0]


def _json_in(archive: tarfile.TarFile, name: str) -> Any:
    file = archive.extractfile(name)
    assert file is not None  # the archive is known by its checksum
    return json.load(file)


def _render_all(archive: Path, folder: Path) -> None:
    """Write the drawing of every concept in an Iconify package as PNG."""
    with from_extra("styles"):
        import resvg_py
    from PIL import Image

    with tarfile.open(archive) as tar:
        # Read in place: nothing of the archive is written by a name that stands in it.
        chars, icons = (_json_in(tar, f"package/{name}.json") for name in ("chars", "icons"))
    folder.mkdir()
    for concept in CONCEPTS.values():
        svg = _svg(icons, chars, concept, archive.name)
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=_SIDE, height=_SIDE, skip_system_fonts=True))
        Image.open(io.BytesIO(png)).convert("RGBA").save(folder / f"{concept.code}.png")


def _svg(icons: dict[str, Any], chars: dict[str, str], concept: Concept, where: str) -> str:
    """An icon as SVG, from Iconify's JSON; the file says which icon draws which code point."""
    # U+FE0F asks for an image where a character is also text; some sets keep it in the name.
    name = chars.get(concept.code) or chars.get(f"{concept.code}-fe0f")
    icon = icons["icons"].get(name)
    if icon is None:
        raise ValueError(f"{where}: expected an icon of {concept.name} ({concept.code}), got {name!r}")
    width, height = (icon.get(side, icons.get(side, _ICON_SIDE)) for side in ("width", "height"))
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m soho_fast.data.mini.styles",
        description="Fetch further drawing styles from npm and render them; keep those that are there.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", help="folder of the styles, such as data/styles")
    make_styles(parser.parse_args(arguments).folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
