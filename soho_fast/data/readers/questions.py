"""Questions about images: VQA v2's, easy-VQA's, and their answers as the official VQA evaluation compares them.

VQA v2, a questions file and, but for the test splits, an annotations file: `v2_OpenEnded_mscoco_<split>_questions.json`
is {"data_subtype", "questions": [{"image_id", "question", "question_id"}]}; `v2_mscoco_<split>_annotations.json` is
{"data_subtype", "annotations": [{"question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer",
"answers": [10 x {"answer", "answer_confidence", "answer_id"}]}]}. Images are `COCO_<split>_<image_id in 12
digits>.jpg`, those of test-dev2015 `COCO_test2015_...`.

easy-VQA (PyPI package `easy-vqa`), about one coloured shape on a plain ground, with 13 answers: `questions.json` is
[[question, answer, image number], ...]; the image is `<number>.png`.

Source of `normalise_answer`: the official evaluation code (GT-Vision-Lab/VQA, `vqaEval.py`), whose normalisation is
kept with its quirks: scores are comparable only under the same one.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from soho_fast.data.readers.records import (
    AnyPath,
    Entry,
    Format,
    ImageRef,
    Paths,
    Reading,
    Words,
    check_text,
    find_records,
    is_blank,
    load,
    load_json,
    shown,
)

NUM_ANSWERS = 10
ANSWER_TYPES = ("yes/no", "number", "other")

_QUESTIONS = Format(
    'a VQA v2 questions file, {"questions": [...], ...}',
    {"data_subtype": str | None, "questions": {"question_id": int, "image_id": int, "question": Words("its words")}},
)
_ANNOTATIONS = Format(
    'a VQA v2 annotations file, {"annotations": [...], ...}',
    {
        "data_subtype": str | None,
        "annotations": {
            "question_id": int,
            "image_id": int,
            "answers": {"answer": str},
            "answer_type": ANSWER_TYPES,
            "multiple_choice_answer": str,
            "question_type": str,
        },
    },
)
_EASY_VQA = "easy-VQA questions, [[question, answer, image number], ...]"


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
    questions: AnyPath, images: Paths, annotations: AnyPath | None = None, **reading: Unpack[Reading]
) -> list[VqaRecord]:
    """Every question of a split, in the order of the questions file.

    Args:
        questions: `v2_OpenEnded_mscoco_<split>_questions.json`.
        images: Folder or .zip (or several) in which `COCO_<split>_<id>.jpg` is found, itself or below
            `<split>/`.
        annotations: `v2_mscoco_<split>_annotations.json`; None for a split whose answers are not published.
        reading: See `Reading`.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A file or a record does not follow the format, a question id comes twice, or the two files do not
            hold the same questions about the same images.
    """
    file = load(questions, _QUESTIONS)
    if not file["questions"]:
        raise ValueError(f"{questions}: holds no question; expected at least one")
    subtype = _split_of(file)
    image_of: dict[int, int] = {}
    texts: list[str] = []
    for entry in file.each("questions"):
        question_id = entry.once(image_of, "question_id")
        image_of[question_id] = entry["image_id"]
        # In step with `image_of`: a dict keeps the order in which ids come.
        texts.append(entry["question"].strip())
    answers = {} if annotations is None else _read_answers(annotations, image_of, subtype, questions)

    folder = "test2015" if subtype == "test-dev2015" else subtype
    files = {image_id: f"COCO_{folder}_{image_id:012d}.jpg" for image_id in image_of.values()}
    names_of = [(f"{folder}/{files[image_id]}", files[image_id]) for image_id in image_of.values()]
    asked = [(text, each, answers.get(each)) for each, text in zip(image_of, texts, strict=True)]
    return find_records(VqaRecord, names_of, asked, images, questions, f"vqa {subtype}", "questions", **reading)


def _split_of(file: Entry) -> str:
    """The split, from the file's own `data_subtype`, else from its name."""
    if file["data_subtype"] is not None:
        return file["data_subtype"]
    match = re.search(r"(?:train|val|test|test-dev)2\d{3}", Path(str(file)).name)
    if match is None:
        raise ValueError(
            f"{file}: neither a field 'data_subtype' nor a split such as val2014 in the file's name; it says which "
            "images are meant"
        )
    return match.group()


def _read_answers(path: AnyPath, image_of: dict[int, int], subtype: str, questions: AnyPath) -> dict[int, VqaAnswers]:
    file = load(path, _ANNOTATIONS)
    if _split_of(file) != subtype:
        raise ValueError(
            f"{path}: annotations of {_split_of(file):.60}, but {questions} holds the questions of {subtype:.60}"
        )
    answers: dict[int, VqaAnswers] = {}
    for entry in file.each("annotations"):
        question_id = entry["question_id"]
        if question_id not in image_of:
            raise ValueError(f"{entry}: question_id {question_id} is not in {questions}")
        entry.once(answers, "question_id")
        image_id = entry["image_id"]
        if image_id != image_of[question_id]:
            raise ValueError(
                f"{entry}: image_id {image_id}, but {questions} asks question {question_id} about image "
                f"{image_of[question_id]}"
            )
        num_answers = len(entry["answers"])
        if num_answers != NUM_ANSWERS:
            raise ValueError(f"{entry}: {num_answers} answers; expected {NUM_ANSWERS}")
        answers[question_id] = VqaAnswers(
            tuple(each["answer"] for each in entry.each("answers")),
            entry["multiple_choice_answer"],
            entry["question_type"],
            entry["answer_type"],
        )
    unanswered = [question_id for question_id in image_of if question_id not in answers]
    if unanswered:
        raise ValueError(
            f"{path}: {len(unanswered)} questions of {questions} have no annotation; first: question_id {unanswered[0]}"
        )
    return answers


def read_easy_vqa(questions: AnyPath, images: Paths, **reading: Unpack[Reading]) -> list[VqaRecord]:
    """Every question of a split, in file order, as if ten people had given its one answer.

    A question's id is its position in the file; the type of a question is not known.

    Args:
        questions: `questions.json` of a split.
        images: Folder or .zip (or several) in which `<number>.png` is found.
        reading: See `Reading`.

    Raises:
        FileNotFoundError: No such file, or images are missing.
        ValueError: A file or a record does not follow the format.
    """
    entries = load_json(questions, _EASY_VQA)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{questions}: holds no question; expected {_EASY_VQA}")
    names_of, asked = [], []
    for position, entry in enumerate(entries):
        where = f"{questions}: record {position}"
        kinds = [type(value) for value in entry] if isinstance(entry, list) else None
        # Types themselves, since `isinstance` takes true for a number.
        if kinds != [str, str, int] or is_blank(entry[0]) or is_blank(entry[1]):
            raise ValueError(f"{where} is {shown(entry)}; expected [question, answer, number]")
        text, answer, number = entry
        check_text(text + answer, where)
        answers = VqaAnswers((answer,) * NUM_ANSWERS, answer, "", "yes/no" if answer in ("yes", "no") else "other")
        names_of.append((f"{number}.png",))
        asked.append((text.strip(), position, answers))
    return find_records(VqaRecord, names_of, asked, images, questions, "easy-vqa", "questions", **reading)


_PUNCTUATION = r""";/[]"{}()=+\_-><@`,?!"""
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}

# The contractions that the official code repairs. A word that lacks one of the apostrophes gets it back.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_REPAIRED = {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTIONS.split()
    for position, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # as in the official table

_DECIMAL_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The official code hands the flag re.UNICODE (32) to `sub` where it takes the count.
_MAX_FULL_STOPS = 32


def normalise_answer(answer: str) -> str:
    """An answer as the official evaluation compares it: punctuation, case, number words, articles, contractions."""
    text = one_line(answer)
    has_decimal_comma = _DECIMAL_COMMA.search(text) is not None
    without = text
    for mark in _PUNCTUATION:
        # As in the official code the text is asked as it came, not what the marks before have left of it.
        glued = not (has_decimal_comma or f"{mark} " in text or f" {mark}" in text)
        without = without.replace(mark, " " if glued else "")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", without, count=_MAX_FULL_STOPS).lower().split())
    return " ".join(_REPAIRED.get(word, word) for word in words if word not in _ARTICLES)


def one_line(text: str) -> str:
    """An answer without line breaks, tabs and surrounding blanks: all that is done where people agree."""
    return text.replace("\n", " ").replace("\t", " ").strip()
