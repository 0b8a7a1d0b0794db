"""Visual Genome region descriptions, grouped as the captions of their image.

Format: `region_descriptions.json` is a list of {"id" (or "image_id"), "regions": [{"region_id", "image_id", "x", "y",
"width", "height", "phrase"}]}; `image_data.json` is a list of {"image_id" (or "id"), "url", "width", "height",
"coco_id", "flickr_id"}. An image's folder (VG_100K or VG_100K_2) is in its url. `coco_id` may be null. About half the
images are COCO images, some of them in COCO's val and test splits: those are left out by `exclude_coco_ids`, those of
Flickr30K by `exclude_flickr_ids`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from soho_fast.data.readers.records import (
    Candidate,
    ImageTextRecord,
    MissingImages,
    ReadReport,
    field_of,
    finish_records,
    load_json,
)


def _image_id(entry: Any, where: str) -> int:
    name = "image_id" if isinstance(entry, dict) and "image_id" in entry else "id"
    return field_of(entry, name, int, where)


def _load_list(path: str | os.PathLike[str], what: str) -> list[Any]:
    content = load_json(path, what)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected {what}, got a JSON {type(content).__name__}")
    return content


def read_visual_genome(
    region_descriptions: str | os.PathLike[str],
    image_data: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    exclude_coco_ids: Collection[int] = frozenset(),
    exclude_flickr_ids: Collection[int] = frozenset(),
    max_captions: int | None = None,
    missing_images: MissingImages = "error",
    source: str | None = None,
    report: ReadReport | None = None,
) -> list[ImageTextRecord]:
    """Records of Visual Genome, in the order of the region file; an image's phrases keep their order, once each.

    Args:
        region_descriptions: `region_descriptions.json`.
        image_data: `image_data.json`, which holds the urls and the ids at COCO and Flickr.
        images: Folder or .zip (or several) in which `VG_100K/<id>.jpg` or `<id>.jpg` is found.
        exclude_coco_ids: COCO ids of images to leave out: COCO's val and test (`karpathy_coco_ids`).
        exclude_flickr_ids: Ids at Flickr of images to leave out: Flickr30K's val and test (`karpathy_flickr_ids`).
        max_captions: Keep only so many phrases of an image, those of its largest regions, the largest first: such a
            phrase comes closest to a caption of the image. None keeps all.
        missing_images: "error" refuses a set with missing files; "skip" leaves those images out and counts them.
        source: Name of the set in messages.
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A file or a record does not follow the format, or a region's image is not in `image_data`.
    """
    report = report if report is not None else ReadReport()
    excluded_ids = {"coco_id": frozenset(exclude_coco_ids), "flickr_id": frozenset(exclude_flickr_ids)}
    names_by_id: dict[int, tuple[str, ...] | None] = {}
    for position, entry in enumerate(_load_list(image_data, "Visual Genome's image_data.json, a list of images")):
        where = f"{image_data}: [{position}]"
        image_id = _image_id(entry, where)
        if image_id in names_by_id:
            raise ValueError(f"{where}: image {image_id} comes twice; expected every image once")
        held_out = [
            entry.get(name) is not None and field_of(entry, name, int, where) in ids
            for name, ids in excluded_ids.items()
        ]
        if any(held_out):
            names_by_id[image_id] = None
            continue
        url = field_of(entry, "url", str, where)
        try:
            path = PurePosixPath(urlsplit(url).path)
        except ValueError as error:
            raise ValueError(f"{where}: url {url!r:.60} is none ({error})") from None
        names_by_id[image_id] = (f"{path.parent.name}/{path.name}", path.name)

    candidates: dict[int, Candidate] = {}
    excluded: set[int] = set()
    regions_of = _load_list(region_descriptions, "Visual Genome's region_descriptions.json, a list of images")
    for position, entry in enumerate(regions_of):
        where = f"{region_descriptions}: [{position}]"
        image_id = _image_id(entry, where)
        if image_id not in names_by_id:
            raise ValueError(f"{where}: image {image_id} is not in {image_data}; the two files must be of one release")
        names = names_by_id[image_id]
        if names is None:
            excluded.add(image_id)
            continue
        area_of: dict[str, int] = {}
        for number, region in enumerate(field_of(entry, "regions", list, where)):
            here = f"{where}.regions[{number}]"
            phrase, area = field_of(region, "phrase", str, here), 0
            if max_captions is not None:
                area = field_of(region, "width", int, here) * field_of(region, "height", int, here)
            area_of[phrase] = max(area, area_of.get(phrase, 0))
        candidate = candidates.setdefault(image_id, Candidate(names, [], str(image_id)))
        candidate.captions.extend(sorted(area_of, key=lambda phrase: -area_of[phrase]))
    report.num_excluded = len(excluded)
    return finish_records(
        list(candidates.values()),
        images,
        source=source or "visual_genome",
        annotations=region_descriptions,
        missing_images=missing_images,
        max_captions=max_captions,
        report=report,
    )
