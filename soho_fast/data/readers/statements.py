"""NLVR2: a statement about two photographs, true or false.

Format: JSON lines despite the name `.json`; a line has "identifier" ("dev-850-0-0": split, image set, pair, sentence),
"sentence", "label" as the string "True" or "False", and in the training file "directory". The images of the pair are
`dev-850-0-img0.png` (left) and `-img1.png` (right), in training below `<directory>/`; not all are really PNG.

SNLI-VE: does an image entail a hypothesis, contradict it, or neither?

Format: JSON lines with "gold_label", "sentence2" (the hypothesis), "pairID", "captionID" and the image, which is
"Flikr30kID" ("1234.jpg", so spelt) in old files and "Flickr30K_ID" ("1234") in new ones. "sentence1" is the caption
from which the hypothesis was written; it gives the answer away and is never read.
"""

from __future__ import annotations

import os
import re
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

_NLVR2 = 'NLVR2 JSON lines, {"identifier", "sentence", "label": "True" or "False"} on each'
_IDENTIFIER = re.compile(r"([a-z]+[0-9]*)-[0-9]+-[0-9]+(-[0-9]+)")
_LABELS = {"True": True, "False": False}


@dataclass(frozen=True, slots=True)
class Nlvr2Record:
    """A statement about a pair of images. Lines that differ only in the pair share their sentence."""

    left: ImageRef
    right: ImageRef
    sentence: str
    identifier: str
    label: bool


def read_nlvr2(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    missing_images: MissingImages = "error",
    report: ReadReport | None = None,
) -> list[Nlvr2Record]:
    """Every example of a split, in file order.

    Args:
        annotations: `train.json`, `dev.json` or `test1.json`.
        images: Folder or .zip (or several) in which `<set and pair>-img0.png` is found, itself or below `<split>/`,
            `<directory>/` or `<split>/<directory>/`.
        missing_images: "error" refuses a set with missing files; "skip" leaves their examples out.
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A line does not follow the format, a label is neither "True" nor "False", or an identifier comes
            twice.
    """
    examples: dict[str, tuple[str, bool]] = {}
    names_of: list[tuple[str, ...]] = []
    for where, line in load_json_lines(annotations, _NLVR2):
        identifier = field_of(line, "identifier", str, where)
        match = _IDENTIFIER.fullmatch(identifier)
        if match is None:
            raise ValueError(
                f"{where}: identifier {identifier!r:.60}; expected split-set-pair-sentence, such as 'dev-850-0-0'"
            )
        if identifier in examples:
            raise ValueError(f"{where}: identifier {identifier:.60} comes twice; expected every example once")
        sentence = field_of(line, "sentence", str, where).strip()
        if is_blank(sentence):
            raise ValueError(f"{where}: sentence is empty; expected its words")
        label = field_of(line, "label", str, where)
        if label not in _LABELS:
            raise ValueError(f'{where}: label {label!r:.60}; expected the string "True" or "False"')
        examples[identifier] = sentence, _LABELS[label]
        folders = ["", f"{match[1]}/"]
        if "directory" in line:
            directory = field_of(line, "directory", (int, str), where)
            folders = [f"{match[1]}/{directory}/", f"{directory}/", *folders]
        stem = identifier.removesuffix(match[2])
        names_of += [tuple(f"{folder}{stem}-img{side}.png" for folder in folders) for side in (0, 1)]

    report = report if report is not None else ReadReport()
    report.source, report.texts = "nlvr2", "statements"
    found = find_images(names_of, images, annotations=annotations, missing_images=missing_images, report=report)
    records = [
        Nlvr2Record(left, right, sentence, identifier, label)
        for (identifier, (sentence, label)), left, right in zip(examples.items(), found[::2], found[1::2], strict=True)
        if left is not None and right is not None
    ]
    if not records:
        raise FileNotFoundError(f"{annotations}: of no example both images are there; check the images path")
    report.num_captions = len(records)
    return records


ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")
_NO_MAJORITY = "-"

_SNLI_VE = 'SNLI-VE JSON lines, {"gold_label", "sentence2", "pairID", "Flickr30K_ID" or "Flikr30kID"} on each'


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
    for where, line in load_json_lines(annotations, _SNLI_VE):
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
