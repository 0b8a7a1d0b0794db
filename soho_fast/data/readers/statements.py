"""Texts that are true or not: NLVR2's statements about two photographs, SNLI-VE's hypotheses about one.

NLVR2: JSON lines despite the name `.json`; a line has "identifier" ("dev-850-0-0": split, image set, pair, sentence),
"sentence", "label" as the string "True" or "False", and in the training file "directory". The images of the pair are
`dev-850-0-img0.png` (left) and `-img1.png` (right), in training below `<directory>/`; not all are really PNG.

SNLI-VE, does an image entail a hypothesis, contradict it, or neither? JSON lines with "gold_label", "sentence2" (the
hypothesis), "pairID", "captionID" and the image, which is "Flikr30kID" ("1234.jpg", so spelt) in old files and
"Flickr30K_ID" ("1234") in new ones. "sentence1" is the caption from which the hypothesis was written; it gives the
answer away and is never read.
"""

import re
from dataclasses import dataclass
from typing import Unpack

from soho_fast.data.readers.records import (
    AnyPath,
    Format,
    ImageRef,
    Paths,
    Reading,
    ReadReport,
    Words,
    find_records,
    load_lines,
)

ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")
_NO_MAJORITY = "-"

_NLVR2 = Format(
    'NLVR2 JSON lines, {"identifier", "sentence", "label": "True" or "False"} on each',
    {"identifier": str, "sentence": Words("a statement"), "label": ("True", "False"), "directory": int | str},
)
_SNLI_VE = Format(
    'SNLI-VE JSON lines, {"gold_label", "sentence2", "pairID", "Flickr30K_ID" or "Flikr30kID"} on each',
    {
        "Flickr30K_ID": str | int,
        "Flikr30kID": str | int,
        "pairID": str,
        "gold_label": (*ENTAILMENT_LABELS, _NO_MAJORITY),
        "sentence2": Words("the hypothesis"),
    },
)
_IDENTIFIER = re.compile(r"([a-z]+[0-9]*)-[0-9]+-[0-9]+(-[0-9]+)")


@dataclass(frozen=True, slots=True)
class Nlvr2Record:
    """A statement about a pair of images. Lines that differ only in the pair share their sentence."""

    left: ImageRef
    right: ImageRef
    sentence: str
    identifier: str
    label: bool


@dataclass(frozen=True, slots=True)
class SnliVeRecord:
    """An image and a hypothesis about it; `label` is one of `ENTAILMENT_LABELS`."""

    image: ImageRef
    hypothesis: str
    pair_id: str
    label: str


def read_nlvr2(annotations: AnyPath, images: Paths, **reading: Unpack[Reading]) -> list[Nlvr2Record]:
    """Every example of a split, in file order.

    Args:
        annotations: `train.json`, `dev.json` or `test1.json`.
        images: Folder or .zip (or several) in which `<set and pair>-img0.png` is found, itself or below `<split>/`,
            `<directory>/` or `<split>/<directory>/`.
        reading: See `Reading`.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A line does not follow the format, a label is neither "True" nor "False", or an identifier comes
            twice.
    """
    names_of: list[tuple[str, ...]] = []
    examples: dict[str, tuple[str, str, bool]] = {}
    for line in load_lines(annotations, _NLVR2):
        identifier = line.once(examples, "identifier")
        match = _IDENTIFIER.fullmatch(identifier)
        if match is None:
            raise ValueError(
                f"{line}: identifier {identifier!r:.60}; expected split-set-pair-sentence, such as 'dev-850-0-0'"
            )
        examples[identifier] = line["sentence"].strip(), identifier, line["label"] == "True"
        folders = ["", f"{match[1]}/"]
        if "directory" in line:
            folders = [f"{match[1]}/{line['directory']}/", f"{line['directory']}/", *folders]
        stem = identifier.removesuffix(match[2])
        names_of += [tuple(f"{folder}{stem}-img{side}.png" for folder in folders) for side in (0, 1)]
    found = list(examples.values())
    return find_records(Nlvr2Record, names_of, found, images, annotations, "nlvr2", "statements", **reading)


def read_snli_ve(annotations: AnyPath, images: Paths, **reading: Unpack[Reading]) -> list[SnliVeRecord]:
    """Every pair of a split, in file order, but for those on whose label the annotators did not agree ("-").

    Args:
        annotations: `snli_ve_train.jsonl`, `snli_ve_dev.jsonl` or `snli_ve_test.jsonl`.
        images: Folder or .zip (or several) in which `<id>.jpg` or `flickr30k-images/<id>.jpg` is found.
        reading: See `Reading`.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A line does not follow the format, its label is unknown, or no line has one.
    """
    report = reading["report"] = reading.get("report") or ReadReport()
    names_of, pairs = [], []
    for line in load_lines(annotations, _SNLI_VE):
        image, pair_id, label = line.first("Flickr30K_ID", "Flikr30kID"), line["pairID"], line["gold_label"]
        if label == _NO_MAJORITY:
            report.num_without_label += 1
            continue
        filename = f"{str(image).removesuffix('.jpg')}.jpg"
        names_of.append((filename, f"flickr30k-images/{filename}"))
        pairs.append((line["sentence2"].strip(), pair_id, label))
    if not pairs:
        raise ValueError(f"{annotations}: every gold_label is '-'; expected some of {', '.join(ENTAILMENT_LABELS)}")
    return find_records(SnliVeRecord, names_of, pairs, images, annotations, "snli_ve", "hypotheses", **reading)
