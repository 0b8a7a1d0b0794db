"""Images with captions: Karpathy's splits of COCO and Flickr30K, COCO's own files, Visual Genome's regions.

Karpathy, `dataset_coco.json` and `dataset_flickr30k.json`: {"images": [{"filepath", "filename", "imgid", "cocoid",
"split", "sentids", "sentences": [{"tokens", "raw", "imgid", "sentid"}]}], "dataset"}. The Flickr30K file has neither
`filepath` nor `cocoid`, and no `restval` split. Some images have more than five sentences; retrieval takes the first
five (`max_captions=5`).

COCO, `captions_{train,val}{2014,2017}.json`: {"images": [{"id", "file_name", "height", "width"}], "annotations":
[{"id", "image_id", "caption"}]}.

Visual Genome, whose region descriptions are the captions of their image: `region_descriptions.json` is a list of {"id"
(or "image_id"), "regions": [{"region_id", "image_id", "x", "y", "width", "height", "phrase"}]}; `image_data.json` is a
list of {"image_id" (or "id"), "url", "width", "height", "coco_id", "flickr_id"}. An image's folder (VG_100K or
VG_100K_2) is in its url. `coco_id` may be null. About half the images are COCO images, some of them in COCO's val and
test splits: those are left out by `exclude_coco_ids`, those of Flickr30K by `exclude_flickr_ids`.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Unpack
from urllib.parse import urlsplit

from soho_fast.data.readers.records import (
    AnyPath,
    Candidate,
    CaptionReading,
    Entry,
    Format,
    ImageTextRecord,
    Paths,
    ReadReport,
    find_captioned,
    load,
    load_each,
)

_KARPATHY = Format(
    'a Karpathy split file, {"images": [...], "dataset": ...}',
    {
        "dataset": str | None,
        "images": {
            "split": str,
            "filename": str,
            "filepath": str | None,
            "imgid": int | str,
            "cocoid": int,
            "sentences": {"raw": str},
        },
    },
)
_COCO = Format(
    'a COCO captions file, {"images": [...], "annotations": [...]}',
    {"images": {"id": int, "file_name": str}, "annotations": {"image_id": int, "caption": str}},
)
_IMAGE_DATA = Format(
    "Visual Genome's image_data.json, a list of images",
    {"image_id": int, "id": int, "url": str, "coco_id": int | None, "flickr_id": int | None},
)
_REGIONS = Format(
    "Visual Genome's region_descriptions.json, a list of images",
    {"image_id": int, "id": int, "regions": {"phrase": str, "width": int, "height": int}},
)


def read_karpathy(
    annotations: AnyPath, images: Paths, splits: Sequence[str], **reading: Unpack[CaptionReading]
) -> list[ImageTextRecord]:
    """Records of the named splits, in file order.

    Args:
        annotations: `dataset_coco.json` or `dataset_flickr30k.json`.
        images: Folder or .zip (or several) in which `<filepath>/<filename>`, or `<filename>` alone, is found.
        splits: Any of the file's splits, as a rule train, restval, val, test.
        reading: See `CaptionReading`; the set's name is the file's own `dataset` field.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: The file or a record does not follow the format, a split is unknown or empty.
    """
    if isinstance(splits, str) or not splits:
        raise ValueError(f"splits: expected a list of split names such as ['train', 'restval'], got {splits!r}")
    entries, dataset = _karpathy_images(annotations)
    candidates = []
    present: set[str] = set()
    for entry in entries:
        split = entry["split"]
        present.add(split)
        if split not in splits:
            continue
        filename, filepath = entry["filename"], entry["filepath"]
        # Flickr30K's file has no folders.
        names = (f"{filepath}/{filename}", filename) if filepath else (filename, f"flickr30k-images/{filename}")
        captions = [sentence["raw"] for sentence in entry.each("sentences")]
        candidates.append(Candidate(names, captions, str(entry["imgid"]), split))
    for split in splits:
        if split not in present:
            known = ", ".join(sorted(f"{name:.60}" for name in present)) or "no split"
            raise ValueError(f"{annotations}: split '{split}' holds no image; the file has: {known}")
    return find_captioned(candidates, images, annotations, dataset, **reading)


def _karpathy_images(annotations: AnyPath) -> tuple[Iterator[Entry], str]:
    file = load(annotations, _KARPATHY)
    return file.each("images"), file["dataset"] or "karpathy"


def held_out_ids(annotations: AnyPath) -> tuple[str, frozenset[int]]:
    """What must not be trained on where a Karpathy file's val and test splits are evaluated: "COCO" and the ids of
    their images there, or "Flickr30K" and their ids at Flickr, by which its image files are named.

    Raises ValueError when these splits hold no image, or its files are named otherwise.
    """
    entries = [entry for entry in _karpathy_images(annotations)[0] if entry["split"] in ("val", "test")]
    if not entries:
        raise ValueError(f"{annotations}: no image in the splits val, test; expected the held-out images")
    if "cocoid" in entries[0]:
        return "COCO", frozenset(entry["cocoid"] for entry in entries)
    ids = set()
    for entry in entries:
        filename = entry["filename"]
        number = filename.partition(".")[0]
        if not (number.isascii() and number.isdecimal()):
            raise ValueError(
                f"{entry}: no cocoid, and the file {filename!r:.60} is not named by a Flickr id; expected the file of "
                "COCO or of Flickr30K"
            )
        ids.add(int(number))
    return "Flickr30K", frozenset(ids)


def read_coco_captions(
    annotations: AnyPath,
    images: Paths,
    *,
    exclude_coco_ids: Collection[int] = frozenset(),
    **reading: Unpack[CaptionReading],
) -> list[ImageTextRecord]:
    """Records of one COCO captions file, in the order of its images.

    Args:
        annotations: `captions_train2014.json` and its kin.
        images: Folder or .zip (or several) in which `<file_name>` or `<train2014>/<file_name>` is found.
        exclude_coco_ids: Images left out, as a rule the Karpathy val and test images (`held_out_ids`).
        reading: See `CaptionReading`; the set has the file's name.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: The file or a record does not follow the format, or a caption names an image the file lacks.
    """
    file = load(annotations, _COCO)
    candidates: dict[int, Candidate] = {}
    excluded: set[int] = set()
    for entry in file.each("images"):
        image_id, file_name = entry["id"], entry["file_name"]
        if image_id in exclude_coco_ids:
            excluded.add(image_id)
            continue
        entry.once(candidates, "id")
        folder = _coco_folder(annotations, file_name)
        names = (file_name, f"{folder}/{file_name}") if folder else (file_name,)
        candidates[image_id] = Candidate(names, [], str(image_id))
    for entry in file.each("annotations"):
        image_id, caption = entry["image_id"], entry["caption"]
        if image_id in excluded:
            continue
        if image_id not in candidates:
            raise ValueError(f"{entry}: caption of image_id {image_id}, but 'images' holds no image of that id")
        candidates[image_id].captions.append(caption)
    name, num_excluded = Path(annotations).stem, len(excluded)
    return find_captioned(candidates.values(), images, annotations, name, num_excluded=num_excluded, **reading)


def _coco_folder(annotations: AnyPath, file_name: str) -> str | None:
    """The folder COCO's archives put the file in: from the 2014 file name, else from the annotation file's name."""
    match = re.match(r"COCO_((?:train|val|test)2\d{3})_", file_name) or re.search(
        r"((?:train|val|test)2\d{3})", Path(annotations).name
    )
    return match.group(1) if match else None


def read_visual_genome(
    region_descriptions: AnyPath,
    image_data: AnyPath,
    images: Paths,
    *,
    exclude_coco_ids: Collection[int] = frozenset(),
    exclude_flickr_ids: Collection[int] = frozenset(),
    **reading: Unpack[CaptionReading],
) -> list[ImageTextRecord]:
    """Records of Visual Genome, in the order of the region file; an image's phrases keep their order, once each.

    Args:
        region_descriptions: `region_descriptions.json`.
        image_data: `image_data.json`, which holds the urls and the ids at COCO and Flickr.
        images: Folder or .zip (or several) in which `VG_100K/<id>.jpg` or `<id>.jpg` is found.
        exclude_coco_ids: COCO ids of images to leave out: COCO's val and test (`held_out_ids`).
        exclude_flickr_ids: Ids at Flickr of images to leave out: Flickr30K's val and test (`held_out_ids`).
        reading: See `CaptionReading`. With `max_captions` so many phrases of an image are kept, those of its largest
            regions, the largest first: such a phrase comes closest to a caption of the image.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A file or a record does not follow the format, or a region's image is not in `image_data`.
    """
    coco_ids, flickr_ids = frozenset(exclude_coco_ids), frozenset(exclude_flickr_ids)
    report = reading["report"] = reading.get("report") or ReadReport()
    report.not_excluded = [name for name, ids in (("COCO", coco_ids), ("Flickr30K", flickr_ids)) if not ids]
    names_by_id: dict[int, tuple[str, ...] | None] = {}
    for entry in load_each(image_data, _IMAGE_DATA):
        image_id = entry.once(names_by_id, "image_id", "id")
        coco_id, flickr_id = entry["coco_id"], entry["flickr_id"]
        if coco_id in coco_ids or flickr_id in flickr_ids:
            # Known, but left out: its regions are no error.
            names_by_id[image_id] = None
            continue
        url = entry["url"]
        try:
            path = PurePosixPath(urlsplit(url).path)
        except ValueError as error:
            raise ValueError(f"{entry}: url {url!r:.60} is invalid ({error})") from None
        names_by_id[image_id] = (f"{path.parent.name}/{path.name}", path.name)

    candidates: dict[int, Candidate] = {}
    excluded: set[int] = set()
    for entry in load_each(region_descriptions, _REGIONS):
        image_id = entry.first("image_id", "id")
        if image_id not in names_by_id:
            raise ValueError(f"{entry}: image {image_id} is not in {image_data}; the two files must be of one release")
        names = names_by_id[image_id]
        if names is None:
            excluded.add(image_id)
            continue
        area_of: dict[str, int] = {}
        for region in entry.each("regions"):
            phrase = region["phrase"]
            # All areas are 0 then, and the sort below leaves the phrases in their order.
            area = 0 if reading.get("max_captions") is None else region["width"] * region["height"]
            area_of[phrase] = max(area, area_of.get(phrase, 0))
        candidate = candidates.setdefault(image_id, Candidate(names, [], str(image_id)))
        candidate.captions.extend(sorted(area_of, key=lambda phrase: -area_of[phrase]))
    found, num_excluded = candidates.values(), len(excluded)
    return find_captioned(found, images, region_descriptions, "visual_genome", num_excluded=num_excluded, **reading)
