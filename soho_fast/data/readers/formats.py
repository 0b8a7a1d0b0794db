"""Captions of any of the published formats, by the format's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from soho_fast.data.readers.captions import (
    karpathy_coco_ids,
    karpathy_flickr_ids,
    read_coco_captions,
    read_karpathy,
    read_visual_genome,
)
from soho_fast.data.readers.json_lines import read_json_lines
from soho_fast.data.readers.records import ImageTextRecord, ReadReport

_READERS: dict[str, Callable[..., list[ImageTextRecord]]] = {
    "karpathy": read_karpathy,
    "coco_captions": read_coco_captions,
    "visual_genome": read_visual_genome,
    "json_lines": read_json_lines,
}

FORMATS_OF = {
    "images": tuple(_READERS),
    "splits": ("karpathy", "json_lines"),
    "heldout_share": ("json_lines",),
    "image_data": ("visual_genome",),
    "exclude_coco_ids_from": ("coco_captions", "visual_genome"),
    "exclude_flickr_ids_from": ("visual_genome",),
}
"""The formats that take a setting, of those settings that not all sets have."""

_EXCLUDING = {
    "exclude_coco_ids_from": ("exclude_coco_ids", karpathy_coco_ids),
    "exclude_flickr_ids_from": ("exclude_flickr_ids", karpathy_flickr_ids),
}


def read_captions(
    format: str, settings: Mapping[str, Any], report: ReadReport, source: str | None = None
) -> Sequence[ImageTextRecord]:
    """Images with captions, in the order of their set.

    Args:
        format: One of the keys of `_READERS`.
        settings: `annotations`, `max_captions`, `missing_images`, and those of `FORMATS_OF`; what the format does not
            take is passed over.
        report: Filled with what was found and left out.
        source: Name of the set in messages; None takes it from the file.

    Raises:
        FileNotFoundError, ValueError: As the format's reader.
    """
    taken = {name: settings[name] for name, formats in FORMATS_OF.items() if format in formats and name in settings}
    for name, (keyword, ids_of) in _EXCLUDING.items():
        if annotations := taken.pop(name, None):
            taken[keyword] = ids_of(annotations)
    taken |= {name: settings[name] for name in ("max_captions", "missing_images")}
    return _READERS[format](settings["annotations"], **taken, source=source, report=report)
