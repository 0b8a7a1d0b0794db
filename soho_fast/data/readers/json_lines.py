"""One's own pictures: a text file with one JSON object a line for each image.

    {"file": "holiday/dog.jpg", "captions": ["a dog on a beach"],
     "questions": [{"question": "What animal is it?", "answer": "dog"}]}

`file` is any image file: its path in a folder or .zip of images, or beside the text file. `captions` serve
pre-training and retrieval, `questions` question answering; either may be left out. A question has one `answer`, or
`answers` of up to ten people, or neither where it is to be answered. `split` ("train", "val", "test", ...) stands on
every line or on none; on none, a share of the images is held out by the hash of `file`, so that an image stays where
it is when others are added.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from soho_fast.data.readers.questions import NUM_ANSWERS, VqaAnswers, VqaRecord, normalise_answer
from soho_fast.data.readers.records import (
    Candidate,
    ImageTextRecord,
    MissingImages,
    ReadReport,
    check_text,
    field_of,
    find_images,
    finish_records,
    is_blank,
    load_json_lines,
    shown,
)

_WHAT = 'one JSON object a line, {"file": "dog.jpg", "captions": ["a dog on a beach"]}'
_FIELDS = ("file", "captions", "questions", "split")
_QUESTION_FIELDS = ("question", "answer", "answers")
_HELDOUT = "val"

Images = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the file: `where` for messages, the image's name, its split, and what is said of it."""

    where: str
    file: str
    split: str
    captions: list[str]
    questions: list[Any]


def read_json_lines(
    annotations: str | os.PathLike[str],
    images: Images = (),
    splits: Collection[str] = (),
    *,
    heldout_share: float = 0.0,
    max_captions: int | None = None,
    missing_images: MissingImages = "error",
    source: str | None = None,
    report: ReadReport | None = None,
) -> list[ImageTextRecord]:
    """Images with their captions, in file order.

    Args:
        annotations: The file of JSON lines; its format is told above.
        images: Folders or .zip files in which an image is looked for first; then in the folder of `annotations`.
        splits: Splits to use; none takes all lines.
        heldout_share: Where the lines name no split: this share of the images is `val`, the rest `train`.
        max_captions: Keep only the first so many captions of an image; None keeps all.
        missing_images: "error" refuses a set with missing files; "skip" leaves those images out and counts them.
        source: Name of the set in messages; the file's name when None.
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A line does not follow the format, an image comes twice, or a split is empty.
    """
    lines = _read_lines(annotations, splits, heldout_share)
    return finish_records(
        [Candidate((line.file,), line.captions, line.file, line.split) for line in lines if _wanted(line, splits)],
        _stores(annotations, images),
        source=source or Path(annotations).stem,
        annotations=annotations,
        missing_images=missing_images,
        max_captions=max_captions,
        report=report,
    )


def read_json_lines_questions(
    annotations: str | os.PathLike[str],
    images: Images = (),
    splits: Collection[str] = (),
    *,
    heldout_share: float = 0.0,
    missing_images: MissingImages = "error",
    report: ReadReport | None = None,
) -> list[VqaRecord]:
    """Questions about the images, in file order; a question's id is its place among those of the whole file, from 0.

    Answers are kept as the VQA evaluation compares them (`normalise_answer`), so that "Two dogs" and "2 dogs" are one.
    An `answer` counts as that of all ten people; fewer than ten `answers` are counted in turn until there are ten.

    Args and raises as `read_json_lines`; ValueError also where only some of the questions have an answer.
    """
    report = report if report is not None else ReadReport()
    report.source, report.texts = Path(annotations).stem, "questions"
    rows: list[tuple[str, int, VqaAnswers | None]] = []
    names_of: list[tuple[str, ...]] = []
    first_of: dict[str, str] = {}
    question_id = -1
    for line in _read_lines(annotations, splits, heldout_share):
        for number, entry in enumerate(line.questions):
            question_id += 1
            where = f"{line.where}: questions[{number}]"
            text, answers = _question(entry, where)
            if not _wanted(line, splits):
                continue
            first_of.setdefault("unanswered" if answers is None else "answered", where)
            rows.append((text, question_id, answers))
            names_of.append((line.file,))
        if _wanted(line, splits):
            report.num_without_caption += not line.questions
            if line.questions and line.split:
                report.splits[line.split] = report.splits.get(line.split, 0) + 1
    if not rows:
        raise ValueError(
            f'{annotations}: no question was found; expected some, as "questions": '
            '[{"question": "What animal is it?", "answer": "dog"}]'
        )
    if len(first_of) == 2:
        raise ValueError(
            f"{first_of['unanswered']} has no answer, while {first_of['answered']} has one; expected answers to all "
            'questions that are read together, or to none: give those to be answered a "split" of their own'
        )
    stores = _stores(annotations, images)
    found = find_images(names_of, stores, annotations=annotations, missing_images=missing_images, report=report)
    records = [VqaRecord(image, *row) for row, image in zip(rows, found, strict=True) if image is not None]
    report.num_captions = len(records)
    return records


def _wanted(line: _Line, splits: Collection[str]) -> bool:
    return not splits or line.split in splits


def _stores(annotations: str | os.PathLike[str], images: Images) -> list[str | os.PathLike[str]]:
    given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    return [*given, Path(annotations).parent]


def _read_lines(annotations: str | os.PathLike[str], splits: Collection[str], heldout_share: float) -> list[_Line]:
    """All lines, checked, each with its split; every one of `splits` holds some."""
    if isinstance(splits, str):
        raise ValueError(f"splits: expected a list of split names such as ['train'], got {splits!r}")
    if not 0 <= heldout_share < 1:
        raise ValueError(f"heldout_share: expected a share between 0 and 1 (not 1 itself), got {heldout_share}")
    lines: list[_Line] = []
    where_of: dict[str, str] = {}
    first_of: dict[bool, str] = {}
    for where, content in load_json_lines(annotations, _WHAT):
        _refuse_unknown(content, _FIELDS, where)
        file = str(PurePosixPath(_text_of(content, "file", where, "the path of an image")))
        if file in where_of:
            raise ValueError(f"{where}: image {file} comes twice, first in {where_of[file]}; expected a line an image")
        where_of[file] = where
        first_of.setdefault("split" in content, where)
        if "split" in content:
            split = _text_of(content, "split", where, "a name such as train or val")
        else:
            split = _split_of(file, heldout_share) if heldout_share else ""
        captions = _list_of(content, "captions", where)
        for number, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise ValueError(f"{where}: captions[{number}] is {shown(caption)}, expected a text")
            check_text(caption, f"{where}: captions[{number}]")
        lines.append(_Line(where, file, split, captions, _list_of(content, "questions", where)))
    if len(first_of) == 2:
        raise ValueError(
            f"{first_of[False]}: no field 'split', while {first_of[True]} has one; expected it on every line or on none"
        )
    counts = Counter(line.split for line in lines)
    for split in splits:
        if not counts[split]:
            known = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if name) or "none"
            raise ValueError(
                f"{annotations}: split '{split}' holds no image; the file's splits: {known}. Write \"split\": "
                f'"{split}" on some lines and another name on the others'
                + ("" if True in first_of else f", or change heldout_share (now {heldout_share:g})")
            )
    return lines


def _split_of(file: str, heldout_share: float) -> str:
    number = int.from_bytes(hashlib.sha256(file.encode()).digest()[:8], "big")
    return _HELDOUT if number < heldout_share * 2**64 else "train"


def _question(entry: Any, where: str) -> tuple[str, VqaAnswers | None]:
    """The words of a question and its answers, checked; None where it has none."""
    text = _text_of(entry, "question", where, "its words").strip()
    _refuse_unknown(entry, _QUESTION_FIELDS, where)
    if "answer" in entry and "answers" in entry:
        raise ValueError(f"{where}: both 'answer' and 'answers'; expected one of them")
    if "answer" in entry:
        given = [field_of(entry, "answer", str, where)]
    elif "answers" in entry:
        given = field_of(entry, "answers", list, where)
        if not 1 <= len(given) <= NUM_ANSWERS:
            raise ValueError(f"{where}: {len(given)} answers; expected 1 to {NUM_ANSWERS}, one of each person asked")
    else:
        return text, None
    compared = []
    for answer in given:
        words = normalise_answer(answer) if isinstance(answer, str) else ""
        if is_blank(words):
            raise ValueError(
                f"{where}: answer {shown(answer)}; expected a text with at least one word that is no article (a, an, "
                "the), since the VQA evaluation leaves articles and punctuation out"
            )
        check_text(answer, f"{where}: an answer")
        compared.append(words)
    most_common = Counter(compared).most_common(1)[0][0]
    kind = "yes/no" if most_common in ("yes", "no") else "number" if most_common.isdecimal() else "other"
    people = tuple(compared[person % len(compared)] for person in range(NUM_ANSWERS))
    return text, VqaAnswers(people, most_common, "", kind)


def _refuse_unknown(content: Any, known: Sequence[str], where: str) -> None:
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown field '{unknown[0]}'; the known ones are {', '.join(known)}")


def _text_of(content: Any, name: str, where: str, what: str) -> str:
    text = field_of(content, name, str, where)
    if is_blank(text):
        raise ValueError(f"{where}: field '{name}' is empty; expected {what}")
    return text


def _list_of(content: dict[str, Any], name: str, where: str) -> list[Any]:
    return field_of(content, name, list, where) if name in content else []
