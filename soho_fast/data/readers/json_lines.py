"""One's own images: a text file with one JSON object a line for each image.

    {"file": "holiday/dog.jpg", "captions": ["a dog on a beach"],
     "questions": [{"question": "What animal is it?", "answer": "dog"}]}

`file` is any image file: its path in a folder or .zip of images, or beside the text file. `captions` serve
pre-training and retrieval, `questions` question answering; either may be left out. A question has one `answer`, or
`answers` of up to ten people, or neither where it is to be answered. `split` ("train", "val", "test", ...) stands on
every line or on none; on none, where splits are asked for, some of the images are held out as `val` (`drawn_split`).
"""

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any, Unpack

from soho_fast.data.readers.questions import NUM_ANSWERS, VqaAnswers, VqaRecord, normalise_answer
from soho_fast.data.readers.records import (
    AnyPath,
    Candidate,
    CaptionReading,
    Entry,
    Format,
    ImageTextRecord,
    Paths,
    Reading,
    ReadReport,
    Words,
    check_text,
    drawn_split,
    find_captioned,
    find_records,
    is_blank,
    load_lines,
    shown,
)

_FORMAT = Format(
    'one JSON object a line, {"file": "dog.jpg", "captions": ["a dog on a beach"]}',
    {
        "file": Words("the path of an image"),
        "captions": list,
        "questions": {"question": Words("its words"), "answer": str, "answers": list},
        "split": Words("a name such as train or val"),
    },
)


def read_json_lines(
    annotations: AnyPath,
    images: Paths = (),
    splits: Collection[str] = (),
    **reading: Unpack[CaptionReading],
) -> list[ImageTextRecord]:
    """Images with their captions, in file order.

    Args:
        annotations: The file of JSON lines; its format is described above.
        images: Folders or .zip files in which an image is looked for first; then in the folder of `annotations`.
        splits: Splits to use, see `drawn_split` where the lines name none; none takes all lines.
        reading: See `CaptionReading`; the set has the file's name.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A line does not follow the format, an image comes twice, or a split is empty.
    """
    lines = _read_lines(annotations, splits)
    named = [image for image, _ in lines if not splits or image.split in splits]
    return find_captioned(named, _places(annotations, images), annotations, Path(annotations).stem, **reading)


def read_json_lines_questions(
    annotations: AnyPath,
    images: Paths = (),
    splits: Collection[str] = (),
    **reading: Unpack[Reading],
) -> list[VqaRecord]:
    """Questions about the images, in file order; a question's id is its position among those of the whole file, from 0.

    Answers are kept as the VQA evaluation compares them (`normalise_answer`), so that "Two dogs" and "2 dogs" are one.
    An `answer` counts as that of all ten people; fewer than ten `answers` are counted in turn until there are ten.

    Args and raises as `read_json_lines`; ValueError also where only some of the questions have an answer.
    """
    report = reading["report"] = reading.get("report") or ReadReport()
    names_of, asked = [], []
    first_of: dict[bool, Entry] = {}
    question_id = -1
    for image, questions in _read_lines(annotations, splits):
        wanted = not splits or image.split in splits
        for entry in questions:
            # Counted over all splits, so that a question keeps its id whichever are read.
            question_id += 1
            text, answers = _question(entry)
            if wanted:
                first_of.setdefault(answers is not None, entry)
                names_of.append(image.names)
                asked.append((text, question_id, answers))
        if wanted and questions:
            report.count_split(image.split)
        report.num_without_caption += wanted and not questions
    if not asked:
        raise ValueError(
            f'{annotations}: no question was found; expected some, as "questions": '
            '[{"question": "What animal is it?", "answer": "dog"}]'
        )
    if len(first_of) == 2:
        raise ValueError(
            f"{first_of[False]} has no answer, while {first_of[True]} has one; expected answers to all "
            'questions that are read together, or to none: give those to be answered a "split" of their own'
        )
    places, name = _places(annotations, images), Path(annotations).stem
    return find_records(VqaRecord, names_of, asked, places, annotations, name, "questions", **reading)


def _places(annotations: AnyPath, images: Paths) -> list[AnyPath]:
    given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    return [*given, Path(annotations).parent]


def _read_lines(annotations: AnyPath, splits: Collection[str]) -> list[tuple[Candidate, list[Entry]]]:
    """All lines, checked: the image with its split, and its questions; every one of `splits` holds some."""
    lines: list[tuple[Candidate, list[Entry]]] = []
    entry_of: dict[str, Entry] = {}
    first_of: dict[bool, Entry] = {}
    entries = list(load_lines(annotations, _FORMAT))
    for entry in entries:
        _refuse_unknown(entry)
        # "./a.jpg" and "a.jpg" are one image.
        file = str(PurePosixPath(entry["file"]))
        if file in entry_of:
            raise ValueError(f"{entry}: image {file} comes twice, first in {entry_of[file]}; expected a line an image")
        entry_of[file] = entry
        # The first line with a split and the first one without, for the message.
        first_of.setdefault("split" in entry, entry)
        drawn = drawn_split(file, len(entries)) if splits else ""
        split = entry["split"] if "split" in entry.content else drawn
        captions = entry.texts("captions") if "captions" in entry else []
        questions = list(entry.each("questions")) if "questions" in entry else []
        lines.append((Candidate((file,), captions, file, split), questions))
    if len(first_of) == 2:
        raise ValueError(
            f"{first_of[False]}: no field 'split', while {first_of[True]} has one; expected it on every line or on none"
        )
    counts = Counter(image.split for image, _ in lines)
    for split in splits:
        if not counts[split]:
            known = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if name) or "none"
            raise ValueError(
                f"{annotations}: split '{split}' holds no image; the file's splits: {known}. Write \"split\": "
                f'"{split}" on some lines and another name on the others'
            )
    return lines


def _question(entry: Entry) -> tuple[str, VqaAnswers | None]:
    """The words of a question and its answers, checked; None where it has none."""
    text = entry["question"].strip()
    _refuse_unknown(entry)
    if "answer" in entry and "answers" in entry:
        raise ValueError(f"{entry}: both 'answer' and 'answers'; expected one of them")
    if "answer" in entry:
        # Repeated below: as if all ten had said it.
        given: list[Any] = [entry["answer"]]
    elif "answers" in entry:
        given = entry["answers"]
        if not 1 <= len(given) <= NUM_ANSWERS:
            raise ValueError(f"{entry}: {len(given)} answers; expected 1 to {NUM_ANSWERS}, one of each person asked")
    else:
        return text, None
    compared = []
    for answer in given:
        words = normalise_answer(answer) if isinstance(answer, str) else ""
        if is_blank(words):
            raise ValueError(
                f"{entry}: answer {shown(answer)}; expected a text with at least one word that is no article (a, an, "
                "the), since the VQA evaluation leaves articles and punctuation out"
            )
        check_text(answer, f"{entry}: an answer")
        compared.append(words)
    most_common = Counter(compared).most_common(1)[0][0]
    kind = "yes/no" if most_common in ("yes", "no") else "number" if most_common.isdecimal() else "other"
    people = tuple(compared[person % len(compared)] for person in range(NUM_ANSWERS))
    return text, VqaAnswers(people, most_common, "", kind)


def _refuse_unknown(entry: Entry) -> None:
    unknown = sorted(set(entry.content) - set(entry.fields))
    if unknown:
        raise ValueError(f"{entry}: unknown field '{unknown[0]}'; the known ones are {', '.join(entry.fields)}")
