"""Further drawing styles of the concepts: ``python -m soho_fast.data.mini.styles data/styles``.

Three sets of emoji from npm packages, each of which draws all concepts, are fetched, checked and rendered by
resvg into ``data/styles/NAME/CODE.png``. Such a folder, or any other with a drawing of every concept, is a style of
`CorpusOptions`. Nothing of it is committed or comes with this package.
"""

import argparse
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import print_line
from soho_fast.common.extras import from_extra
from soho_fast.common.files import scratch_beside
from soho_fast.data.packages.fetching import fetch, package_of, read_files

from .concepts import CONCEPTS, Concept
from .drawing import LICENCE_FILE, check_style

# Twice a large object of the demo (0.55 of 128 pixels), so that it is not enlarged in images of 256 pixels either.
_SIDE = 144
# Iconify's files give no size where it is 16.
_ICON_SIDE = 16


#: Style -> where it comes from, whose work it is, and its licence. Each draws all concepts, and none is a relative of
#: another or of Twemoji.
PACKAGES: dict[str, tuple[str, str, str]] = {
    "noto": (
        "npm|@iconify-json/noto|1.2.9|3102958|3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Noto Emoji, Google Inc, https://github.com/googlefonts/noto-emoji",
        "Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0",
    ),
    "fluent-emoji-flat": (
        "npm|@iconify-json/fluent-emoji-flat|1.2.6|1172438|"
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "Fluent Emoji Flat, Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
        "MIT, https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE",
    ),
    "openmoji": (
        "npm|@iconify-json/openmoji|1.2.29|1264633|03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
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
        UserError: npm is not installed, could not fetch a package, or gave another one.
        ValueError: a package lacks a concept, or a style's folder is there and holds something else.
    """
    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise ValueError(f"folder: {root} is a file; expected a folder for the styles")
    root.mkdir(parents=True, exist_ok=True)
    say = print_line if progress else lambda line: None
    for name, (line, credit, licence) in PACKAGES.items():
        out, package = root / name, package_of(line)
        about = {
            "what": f"cut-outs: {credit.split(',')[0]} drawings, rendered, scaled, rotated, mirrored and composed",
            "package": f"{package.name} {package.version}",
            "credit": credit,
            "licence": licence,
        }
        if not _is_made(out, about):
            with scratch_beside(out) as building:
                building.mkdir()
                _render_all(fetch(package, building, say), building / "drawings")
                (building / "drawings" / LICENCE_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
                os.rename(building / "drawings", out)
        say(f"style {out}: {len(CONCEPTS)} drawings. {credit}; {licence}")
    return [root / name for name in PACKAGES]


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


def _render_all(archive: Path, folder: Path) -> None:
    """Write the drawing of every concept in an Iconify package as PNG."""
    with from_extra("styles"):
        import resvg_py
    from PIL import Image

    names = "package/chars.json", "package/icons.json"
    files = read_files(archive, lambda name: name in names)
    chars, icons = (json.loads(files[name]) for name in names)
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
