"""The VQA score by the official rule, offline, and the submission file of the evaluation server.

Source: Antol et al. 2015, section 4.1, and the official evaluation code (GT-Vision-Lab/VQA, `vqaEval.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from soho_fast.data.readers.questions import VqaRecord, normalise_answer, one_line


def vqa_score(answer: str, given: Sequence[str]) -> float:
    """How right an answer is, between 0 and 1: min(1, matches / 3), averaged over leaving out each person once.

    Both sides are normalised (`normalise_answer`) only where people differ. Where all gave the same, the official rule
    compares the words as they stand, case and marks included, so that text read in a picture is not changed.

    Args:
        answer: What the model says.
        given: What people said, ten in VQA v2.
    """
    if not given:
        raise ValueError("given: expected people's answers (ten in VQA v2), got none")
    normalise = normalise_answer if len({one_line(each) for each in given}) > 1 else one_line
    answer = normalise(answer)
    matches = sum(normalise(each) == answer for each in given)
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
