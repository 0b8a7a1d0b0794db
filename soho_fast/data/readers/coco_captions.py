"""COCO captions as published by COCO: `captions_{train,val}{2014,2017}.json`.

Format: {"images": [{"id", "file_name", "height", "width"}], "annotations": [{"id", "image_id", "caption"}]}.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from soho_fast.data.readers.records import (
    Candidate,
    ImageTextRecord,
    MissingImages,
    ReadReport,
    field_of,
    finish_records,
    load_json,
)

_WHAT = 'a COCO captions file, {"images": [...], "annotations": [...]}'


def _split_folder(annotations: str | os.PathLike[str], file_name: str) -> str | None:
    """The folder COCO's archives put the file in: from the 2014 file name, else from the annotation file's name."""
    match = re.match(r"COCO_((?:train|val|test)2\d{3})_", file_name) or re.search(
        r"((?:train|val|test)2\d{3})", Path(annotations).name
    )
    return match.group(1) if match else None


def read_coco_captions(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    max_captions: int | None = None,
    exclude_coco_ids: frozenset[int] | set[int] = frozenset(),
    missing_images: MissingImages = "error",
    source: str | None = None,
    report: ReadReport | None = None,
) -> list[ImageTextRecord]:
    """Records of one COCO captions file, in the order of its images.

    Args:
        annotations: `captions_train2014.json` and its kin.
        images: Folder or .zip (or several) in which `<file_name>` or `<train2014>/<file_name>` is found.
        max_captions: Keep only the first so many captions of an image; None keeps all.
        exclude_coco_ids: Images left out, as a rule the Karpathy val and test images (`karpathy_coco_ids`).
        missing_images: "error" refuses a set with missing files; "skip" leaves those images out and counts them.
        source: Name of the set in messages; the file's name when None.
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: The file or a record does not follow the format, or a caption names an image the file lacks.
    """
    content = load_json(annotations, _WHAT)
    report = report if report is not None else ReadReport()
    candidates: dict[int, Candidate] = {}
    excluded: set[int] = set()
    for position, entry in enumerate(field_of(content, "images", list, str(annotations))):
        where = f"{annotations}: images[{position}]"
        image_id = field_of(entry, "id", int, where)
        file_name = field_of(entry, "file_name", str, where)
        if image_id in exclude_coco_ids:
            excluded.add(image_id)
            continue
        if image_id in candidates:
            raise ValueError(f"{where}: image {image_id} comes twice; expected every image once")
        folder = _split_folder(annotations, file_name)
        names = (file_name, f"{folder}/{file_name}") if folder else (file_name,)
        candidates[image_id] = Candidate(names, [], str(image_id))
    for position, entry in enumerate(field_of(content, "annotations", list, str(annotations))):
        where = f"{annotations}: annotations[{position}]"
        image_id = field_of(entry, "image_id", int, where)
        caption = field_of(entry, "caption", str, where)
        if image_id in excluded:
            continue
        if image_id not in candidates:
            raise ValueError(f"{where}: caption of image_id {image_id}, but 'images' holds no image of that id")
        candidates[image_id].captions.append(caption)
    report.num_excluded = len(excluded)
    return finish_records(
        list(candidates.values()),
        images,
        source=source or Path(annotations).stem,
        annotations=annotations,
        missing_images=missing_images,
        max_captions=max_captions,
        report=report,
    )
