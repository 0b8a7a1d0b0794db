"""easy-VQA (PyPI package `easy-vqa`): questions about one coloured shape on a plain ground, with 13 answers.

Format: `questions.json` is [[question, answer, image number], ...]; the image is `<number>.png`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from soho_fast.data.readers.records import (
    MissingImages,
    ReadReport,
    check_text,
    find_images,
    is_blank,
    load_json,
    shown,
)
from soho_fast.data.readers.vqa import NUM_ANSWERS, VqaAnswers, VqaRecord

_WHAT = "easy-VQA questions, [[question, answer, image number], ...]"


def read_easy_vqa(
    questions: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    missing_images: MissingImages = "error",
    report: ReadReport | None = None,
) -> list[VqaRecord]:
    """Every question of a split, in file order, as if ten people had given its one answer.

    A question's id is its place in the file; the type of a question is not told.

    Args:
        questions: `questions.json` of a split.
        images: Folder or .zip (or several) in which `<number>.png` is found.
        missing_images: "error" refuses a set with missing files; "skip" leaves their questions out.
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A file or a record does not follow the format.
    """
    entries = load_json(questions, _WHAT)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{questions}: holds no question; expected {_WHAT}")
    for position, entry in enumerate(entries):
        kinds = [type(value) for value in entry] if isinstance(entry, list) else None
        where = f"{questions}: record {position}"
        if kinds != [str, str, int] or is_blank(entry[0]) or is_blank(entry[1]):
            raise ValueError(f"{where} is {shown(entry)}; expected [question, answer, number]")
        check_text(entry[0] + entry[1], where)
    report = report if report is not None else ReadReport()
    report.source, report.texts = "easy-vqa", "questions"
    names_of = [(f"{number}.png",) for _, _, number in entries]
    found = find_images(names_of, images, annotations=questions, missing_images=missing_images, report=report)
    records = []
    for position, ((text, answer, _), image) in enumerate(zip(entries, found, strict=True)):
        if image is not None:
            kind = "yes/no" if answer in ("yes", "no") else "other"
            answers = VqaAnswers((answer,) * NUM_ANSWERS, answer, "", kind)
            records.append(VqaRecord(image, text.strip(), position, answers))
    report.num_captions = len(records)
    return records
