"""COCO and Flickr30K captions in the Karpathy split, `dataset_coco.json` and `dataset_flickr30k.json`.

Format: {"images": [{"filepath", "filename", "imgid", "cocoid", "split", "sentids", "sentences": [{"tokens", "raw",
"imgid", "sentid"}]}], "dataset"}. The Flickr30K file has neither `filepath` nor `cocoid`, and no `restval` split. Some
images have more than five sentences; retrieval takes the first five (`max_captions=5`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

from soho_fast.data.readers.records import (
    Candidate,
    ImageTextRecord,
    MissingImages,
    ReadReport,
    field_of,
    finish_records,
    load_json,
)

_WHAT = 'a Karpathy split file, {"images": [...], "dataset": ...}'


def _load_images(annotations: str | os.PathLike[str]) -> tuple[list[Any], str]:
    content = load_json(annotations, _WHAT)
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
