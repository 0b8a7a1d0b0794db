"""COCO and Flickr30K captions in the Karpathy split, `dataset_coco.json` and `dataset_flickr30k.json`.

Format: {"images": [{"filepath", "filename", "imgid", "cocoid", "split", "sentids", "sentences": [{"tokens", "raw",
"imgid", "sentid"}]}], "dataset"}. The Flickr30K file has neither `filepath` nor `cocoid`, and no `restval` split. Some
images have more than five sentences; retrieval takes the first five (`max_captions=5`).

COCO captions as published by COCO: `captions_{train,val}{2014,2017}.json`.

Format: {"images": [{"id", "file_name", "height", "width"}], "annotations": [{"id", "image_id", "caption"}]}.

Visual Genome region descriptions, grouped as the captions of their image.

Format: `region_descriptions.json` is a list of {"id" (or "image_id"), "regions": [{"region_id", "image_id", "x", "y",
"width", "height", "phrase"}]}; `image_data.json` is a list of {"image_id" (or "id"), "url", "width", "height",
"coco_id", "flickr_id"}. An image's folder (VG_100K or VG_100K_2) is in its url. `coco_id` may be null. About half the
images are COCO images, some of them in COCO's val and test splits: those are left out by `exclude_coco_ids`, those of
Flickr30K by `exclude_flickr_ids`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
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

_KARPATHY = 'a Karpathy split file, {"images": [...], "dataset": ...}'


def _load_images(annotations: str | os.PathLike[str]) -> tuple[list[Any], str]:
    content = load_json(annotations, _KARPATHY)
    images = field_of(content, "images", list, str(annotations))
    named = content.get("dataset") is not None
    return images, (field_of(content, "dataset", str, str(annotations)) if named else "") or "karpathy"


def read_karpathy(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    splits: Sequence[str],
    *,
    max_captions: int | None = None,
    missing_images: MissingImages = "error",
    source: str | None = None,
    report: ReadReport | None = None,
) -> list[ImageTextRecord]:
    """Records of the named splits, in file order.

    Args:
        annotations: `dataset_coco.json` or `dataset_flickr30k.json`.
        images: Folder or .zip (or several) in which `<filepath>/<filename>`, or `<filename>` alone, is found.
        splits: Any of the file's splits, as a rule train, restval, val, test.
        max_captions: Keep only the first so many sentences of an image; None keeps all.
        missing_images: "error" refuses a set with missing files; "skip" leaves those images out and counts them.
        source: Name of the set in messages; the file's own `dataset` field when None.
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: The file or a record does not follow the format, a split is unknown or empty.
    """
    if isinstance(splits, str) or not splits:
        raise ValueError(f"splits: expected a list of split names such as ['train', 'restval'], got {splits!r}")
    entries, dataset = _load_images(annotations)
    wanted = dict.fromkeys(splits, 0)
    present: set[str] = set()
    candidates = []
    for position, entry in enumerate(entries):
        where = f"{annotations}: images[{position}]"
        split = field_of(entry, "split", str, where)
        present.add(split)
        if split not in wanted:
            continue
        wanted[split] += 1
        filename = field_of(entry, "filename", str, where)
        filepath = field_of(entry, "filepath", str, where) if entry.get("filepath") is not None else ""
        names = (f"{filepath}/{filename}", filename) if filepath else (filename, f"flickr30k-images/{filename}")
        captions = [
            field_of(sentence, "raw", str, f"{where}.sentences[{number}]")
            for number, sentence in enumerate(field_of(entry, "sentences", list, where))
        ]
        candidates.append(Candidate(names, captions, str(field_of(entry, "imgid", (int, str), where)), split))
    for split, count in wanted.items():
        if not count:
            known = ", ".join(sorted(f"{name:.60}" for name in present)) or "no split"
            raise ValueError(f"{annotations}: split '{split}' holds no image; the file has: {known}")
    return finish_records(
        candidates,
        images,
        source=source or dataset,
        annotations=annotations,
        missing_images=missing_images,
        max_captions=max_captions,
        report=report,
    )


def karpathy_coco_ids(annotations: str | os.PathLike[str], splits: Collection[str] = ("val", "test")) -> frozenset[int]:
    """COCO ids of the images in the named splits: what must not be trained on when these splits are the measure.

    Raises ValueError when the file has no `cocoid` fields or the splits hold no image.
    """
    entries, _ = _load_images(annotations)
    ids = frozenset(
        field_of(entry, "cocoid", int, f"{annotations}: images[{position}]")
        for position, entry in enumerate(entries)
        if field_of(entry, "split", str, f"{annotations}: images[{position}]") in splits
    )
    if not ids:
        raise ValueError(
            f"{annotations}: no image in the splits {', '.join(splits)}; expected the held-out COCO images"
        )
    return ids


def karpathy_flickr_ids(
    annotations: str | os.PathLike[str], splits: Collection[str] = ("val", "test")
) -> frozenset[int]:
    """Ids at Flickr of the images in the named splits of `dataset_flickr30k.json`, whose files are named by them.

    Raises ValueError when the file is another, or the splits hold no image.
    """
    entries, _ = _load_images(annotations)
    ids = set()
    for position, entry in enumerate(entries):
        where = f"{annotations}: images[{position}]"
        if field_of(entry, "split", str, where) not in splits:
            continue
        filename = field_of(entry, "filename", str, where)
        number = filename.partition(".")[0]
        if not (number.isascii() and number.isdecimal()) or "cocoid" in entry:
            raise ValueError(
                f"{where}: the file {filename!r:.60} is not named by a Flickr id; expected Flickr30K's file"
            )
        ids.add(int(number))
    if not ids:
        raise ValueError(
            f"{annotations}: no image in the splits {', '.join(splits)}; expected the held-out Flickr30K images"
        )
    return frozenset(ids)


_COCO = 'a COCO captions file, {"images": [...], "annotations": [...]}'


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
    content = load_json(annotations, _COCO)
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
