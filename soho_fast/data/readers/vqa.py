"""Visual question answering as published by VQA v2: a questions file and, but for the test splits, an annotations file.

Formats: `v2_OpenEnded_mscoco_<split>_questions.json` is {"data_subtype", "questions": [{"image_id", "question",
"question_id"}]}; `v2_mscoco_<split>_annotations.json` is {"data_subtype", "annotations": [{"question_id", "image_id",
"question_type", "answer_type", "multiple_choice_answer", "answers": [10 x {"answer", "answer_confidence",
"answer_id"}]}]}. Images are `COCO_<split>_<image_id in 12 digits>.jpg`, those of test-dev2015 `COCO_test2015_...`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soho_fast.data.readers.records import (
    ImageRef,
    MissingImages,
    ReadReport,
    field_of,
    find_images,
    is_blank,
    load_json,
)

NUM_ANSWERS = 10
ANSWER_TYPES = ("yes/no", "number", "other")

_QUESTIONS = 'a VQA v2 questions file, {"questions": [...], ...}'
_ANNOTATIONS = 'a VQA v2 annotations file, {"annotations": [...], ...}'


@dataclass(frozen=True, slots=True)
class VqaAnswers:
    """What ten people answered, as published; `most_common` is the file's `multiple_choice_answer`."""

    answers: tuple[str, ...]
    most_common: str
    question_type: str
    answer_type: str


@dataclass(frozen=True, slots=True)
class VqaRecord:
    """One question about one image; `answers` is None in a test split."""

    image: ImageRef
    question: str
    question_id: int
    answers: VqaAnswers | None


def read_vqa(
    questions: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    annotations: str | os.PathLike[str] | None = None,
    *,
    missing_images: MissingImages = "error",
    report: ReadReport | None = None,
) -> list[VqaRecord]:
    """Every question of a split, in the order of the questions file.

    Args:
        questions: `v2_OpenEnded_mscoco_<split>_questions.json`.
        images: Folder or .zip (or several) in which `COCO_<split>_<id>.jpg` is found, itself or below
            `<split>/`.
        annotations: `v2_mscoco_<split>_annotations.json`; None for a split whose answers are not published.
        missing_images: "error" refuses a set with missing files; "skip" leaves their questions out.
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A file or a record does not follow the format, a question id comes twice, or the two files do not
            hold the same questions about the same images.
    """
    content = load_json(questions, _QUESTIONS)
    entries = field_of(content, "questions", list, str(questions))
    if not entries:
        raise ValueError(f"{questions}: holds no question; expected at least one")
    subtype = _split(content, questions)
    folder = "test2015" if subtype == "test-dev2015" else subtype
    image_ids: dict[int, int] = {}
    texts: list[str] = []
    for position, entry in enumerate(entries):
        where = f"{questions}: questions[{position}]"
        question_id = field_of(entry, "question_id", int, where)
        if question_id in image_ids:
            raise ValueError(f"{where}: question_id {question_id} comes twice; expected every question once")
        image_ids[question_id] = field_of(entry, "image_id", int, where)
        text = field_of(entry, "question", str, where).strip()
        if is_blank(text):
            raise ValueError(f"{where}: question {question_id} is empty; expected its words")
        texts.append(text)

    answers = {} if annotations is None else _read_answers(annotations, image_ids, subtype, questions)
    report = report if report is not None else ReadReport()
    report.source, report.texts = f"vqa {subtype}", "questions"
    files = {image_id: f"COCO_{folder}_{image_id:012d}.jpg" for image_id in image_ids.values()}
    names_of = [(f"{folder}/{files[image_id]}", files[image_id]) for image_id in image_ids.values()]
    found = find_images(names_of, images, annotations=questions, missing_images=missing_images, report=report)
    records = [
        VqaRecord(image, text, question_id, answers.get(question_id))
        for question_id, text, image in zip(image_ids, texts, found, strict=True)
        if image is not None
    ]
    report.num_captions = len(records)
    return records


def _split(content: dict[str, Any], path: str | os.PathLike[str]) -> str:
    """The split, from the file's own `data_subtype`, else from its name."""
    subtype = content.get("data_subtype")
    if subtype is None:
        match = re.search(r"(?:train|val|test|test-dev)2\d{3}", Path(path).name)
        if match is None:
            raise ValueError(
                f"{path}: neither a field 'data_subtype' nor a split such as val2014 in the file's name; it says which "
                "images are meant"
            )
        return match.group()
    return field_of(content, "data_subtype", str, str(path))


def _read_answers(
    path: str | os.PathLike[str], image_ids: dict[int, int], subtype: str, questions: str | os.PathLike[str]
) -> dict[int, VqaAnswers]:
    content = load_json(path, _ANNOTATIONS)
    entries = field_of(content, "annotations", list, str(path))
    if _split(content, path) != subtype:
        raise ValueError(
            f"{path}: annotations of {_split(content, path):.60}, but {questions} holds the questions of {subtype:.60}"
        )
    answers: dict[int, VqaAnswers] = {}
    for position, entry in enumerate(entries):
        where = f"{path}: annotations[{position}]"
        question_id = field_of(entry, "question_id", int, where)
        if question_id not in image_ids:
            raise ValueError(f"{where}: question_id {question_id} is not in {questions}")
        if question_id in answers:
            raise ValueError(f"{where}: question_id {question_id} comes twice; expected every question once")
        image_id = field_of(entry, "image_id", int, where)
        if image_id != image_ids[question_id]:
            raise ValueError(
                f"{where}: image_id {image_id}, but {questions} asks question {question_id} about image "
                f"{image_ids[question_id]}"
            )
        given = field_of(entry, "answers", list, where)
        if len(given) != NUM_ANSWERS:
            raise ValueError(f"{where}: {len(given)} answers; expected {NUM_ANSWERS}")
        answer_type = field_of(entry, "answer_type", str, where)
        if answer_type not in ANSWER_TYPES:
            raise ValueError(f"{where}: answer_type {answer_type!r:.60}; expected one of {', '.join(ANSWER_TYPES)}")
        answers[question_id] = VqaAnswers(
            tuple(field_of(each, "answer", str, f"{where}.answers[{n}]") for n, each in enumerate(given)),
            field_of(entry, "multiple_choice_answer", str, where),
            field_of(entry, "question_type", str, where),
            answer_type,
        )
    unanswered = [question_id for question_id in image_ids if question_id not in answers]
    if unanswered:
        raise ValueError(
            f"{path}: {len(unanswered)} questions of {questions} have no annotation; first: question_id {unanswered[0]}"
        )
    return answers
