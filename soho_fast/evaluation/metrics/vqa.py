"""The VQA score by the official rule, offline, and the submission file of the evaluation server.

Source: Antol et al. 2015, section 4.1, and the official evaluation code (GT-Vision-Lab/VQA, `vqaEval.py`), whose
normalisation of answers is kept with its quirks: scores are comparable only under the same one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from soho_fast.data.vqa import VqaRecord

_PUNCTUATION = r""";/[]"{}()=+\_-><@`,?!"""
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}

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
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # as in the official table

_DECIMAL_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def normalise_answer(answer: str) -> str:
    """An answer as the official evaluation compares it: punctuation, case, number words, articles, contractions."""
    text = _one_line(answer)
    has_decimal_comma = _DECIMAL_COMMA.search(text) is not None
    without = text
    for mark in _PUNCTUATION:
        glued = not (has_decimal_comma or f"{mark} " in text or f" {mark}" in text)
        without = without.replace(mark, " " if glued else "")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", without).lower().split())
    return " ".join(_REPAIRED.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_score(answer: str, given: Sequence[str]) -> float:
    """How right an answer is, between 0 and 1: min(1, matches / 3), averaged over leaving out each person once.

    Args:
        answer: What the model says.
        given: What people said, ten in VQA v2. Where all gave the same, the official rule compares unnormalised.
    """
    if not given:
        raise ValueError("given: expected people's answers (ten in VQA v2), got none")
    normalise = normalise_answer if len({_one_line(each) for each in given}) > 1 else _one_line
    answer = normalise(answer).lower()
    matches = sum(normalise(each).lower() == answer for each in given)
    left_out = matches * min(1.0, (matches - 1) / 3) + (len(given) - matches) * min(1.0, matches / 3)
    return left_out / len(given)


@dataclass(frozen=True)
class VqaAccuracy:
    """Mean VQA scores, between 0 and 1, over all questions and over those of each type."""

    overall: float
    by_answer_type: dict[str, float]
    by_question_type: dict[str, float]


def vqa_accuracy(predictions: Mapping[int, str], records: Sequence[VqaRecord]) -> VqaAccuracy:
    """Score of one answer for each question of a split.

    Args:
        predictions: Question id to answer.
        records: The questions with people's answers (`read_vqa` with annotations).

    Raises:
        ValueError: A question has no prediction or no answers, or a prediction is for no question.
    """
    _check_complete(predictions, records)
    scores: list[float] = []
    by_answer_type: dict[str, list[float]] = {}
    by_question_type: dict[str, list[float]] = {}
    for record in records:
        if record.answers is None:
            raise ValueError(
                f"question {record.question_id} has no answers; a test split is scored by the server, from the file "
                "that write_vqa_submission writes"
            )
        score = vqa_score(predictions[record.question_id], record.answers.answers)
        scores.append(score)
        by_answer_type.setdefault(record.answers.answer_type, []).append(score)
        by_question_type.setdefault(record.answers.question_type, []).append(score)
    return VqaAccuracy(_mean(scores), _means(by_answer_type), _means(by_question_type))


def write_vqa_submission(
    path: str | os.PathLike[str], predictions: Mapping[int, str], records: Sequence[VqaRecord]
) -> None:
    """Write what the evaluation server (EvalAI) takes: [{"question_id", "answer"}] for every question, in order.

    The server wants all questions of test2015, also for its test-dev phase.

    Raises:
        ValueError: A question has no prediction, or a prediction is for no question.
    """
    _check_complete(predictions, records)
    rows = [{"question_id": record.question_id, "answer": predictions[record.question_id]} for record in records]
    Path(path).write_text(json.dumps(rows) + "\n", encoding="utf-8")


def _check_complete(predictions: Mapping[int, str], records: Sequence[VqaRecord]) -> None:
    if not records:
        raise ValueError("records: expected at least one question, got none")
    ids = {record.question_id for record in records}
    missing, unknown = ids - predictions.keys(), predictions.keys() - ids
    if missing or unknown:
        raise ValueError(
            f"predictions: expected one for each of {len(ids)} questions; {len(missing)} are missing"
            f"{_first(missing)}, {len(unknown)} are for unknown questions{_first(unknown)}"
        )


def _first(ids: Iterable[int]) -> str:
    smallest = min(ids, default=None)
    return "" if smallest is None else f" (first: question_id {smallest})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _means(values_by_type: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {kind: _mean(values) for kind, values in sorted(values_by_type.items())}
