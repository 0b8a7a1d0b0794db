"""SNLI-VE: does an image entail a hypothesis, contradict it, or neither?

Format: JSON lines with "gold_label", "sentence2" (the hypothesis), "pairID", "captionID" and the image, which is
"Flikr30kID" ("1234.jpg", so spelt) in old files and "Flickr30K_ID" ("1234") in new ones. "sentence1" is the caption
from which the hypothesis was written; it gives the answer away and is never read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from soho_fast.data.readers.records import (
    ImageRef,
    MissingImages,
    ReadReport,
    field_of,
    find_images,
    is_blank,
    load_json_lines,
)

ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")
_NO_MAJORITY = "-"

_WHAT = 'SNLI-VE JSON lines, {"gold_label", "sentence2", "pairID", "Flickr30K_ID" or "Flikr30kID"} on each'


@dataclass(frozen=True, slots=True)
class SnliVeRecord:
    """An image and a hypothesis about it; `label` is one of `ENTAILMENT_LABELS`."""

    image: ImageRef
    hypothesis: str
    pair_id: str
    label: str


def read_snli_ve(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    missing_images: MissingImages = "error",
    report: ReadReport | None = None,
) -> list[SnliVeRecord]:
    """Every pair of a split, in file order, but for those on whose label the annotators did not agree ("-").

    Args:
        annotations: `snli_ve_train.jsonl`, `snli_ve_dev.jsonl` or `snli_ve_test.jsonl`.
        images: Folder or .zip (or several) in which `<id>.jpg` or `flickr30k-images/<id>.jpg` is found.
        missing_images: "error" refuses a set with missing files; "skip" leaves their pairs out.
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A line does not follow the format, its label is unknown, or no line has one.
    """
    report = report if report is not None else ReadReport()
    report.source, report.texts = "snli_ve", "hypotheses"
    pairs: list[tuple[str, str, str]] = []
    names_of: list[tuple[str, ...]] = []
    for where, line in load_json_lines(annotations, _WHAT):
        if "Flickr30K_ID" not in line and "Flikr30kID" not in line:
            raise ValueError(
                f"{where}: neither 'Flickr30K_ID' nor 'Flikr30kID' (the record has: {', '.join(sorted(line))})"
            )
        name = field_of(line, "Flickr30K_ID" if "Flickr30K_ID" in line else "Flikr30kID", (str, int), where)
        pair_id = field_of(line, "pairID", str, where)
        label = field_of(line, "gold_label", str, where)
        if label == _NO_MAJORITY:
            report.num_without_label += 1
            continue
        if label not in ENTAILMENT_LABELS:
            raise ValueError(
                f"{where}: gold_label {label!r:.60}; expected one of "
                f"{', '.join(ENTAILMENT_LABELS)}, or '{_NO_MAJORITY}'"
            )
        hypothesis = field_of(line, "sentence2", str, where).strip()
        if is_blank(hypothesis):
            raise ValueError(f"{where}: sentence2 (the hypothesis) is empty; expected its words")
        pairs.append((hypothesis, pair_id, label))
        filename = f"{str(name).removesuffix('.jpg')}.jpg"
        names_of.append((filename, f"flickr30k-images/{filename}"))

    if not pairs:
        raise ValueError(f"{annotations}: every gold_label is '-'; expected some of {', '.join(ENTAILMENT_LABELS)}")
    found = find_images(names_of, images, annotations=annotations, missing_images=missing_images, report=report)
    records = [SnliVeRecord(image, *pair) for pair, image in zip(pairs, found, strict=True) if image is not None]
    report.num_captions = len(records)
    return records
