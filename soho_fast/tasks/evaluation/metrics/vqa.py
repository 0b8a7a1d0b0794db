"""The VQA score by the official rule, offline, and the submission file of the evaluation server.

Source: Antol et al. 2015, section 4.1, and the official evaluation code (GT-Vision-Lab/VQA, `vqaEval.py`).
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from soho_fast.data.readers.questions import VqaRecord, normalise_answer, one_line
from soho_fast.tasks.evaluation.metrics import check_complete


def vqa_score(answer: str, given: Sequence[str]) -> float:
    """How right an answer is, between 0 and 1: min(1, matches / 3), averaged over leaving out each person once.

    Both sides are normalised (`normalise_answer`) only where people differ. Where all gave the same, the official rule
    compares the words as they stand, case and marks included, so that text read in an image is not changed.

    Args:
        answer: What the model says.
        given: What people said, ten in VQA v2.
    """
    normalise = normalise_answer if len({one_line(each) for each in given}) > 1 else one_line
    answer = normalise(answer)
    matches = sum(normalise(each) == answer for each in given)
    left_out = matches * min(1.0, (matches - 1) / 3) + (len(given) - matches) * min(1.0, matches / 3)
    return left_out / len(given)


def vqa_accuracy(predictions: Mapping[int, str], records: Sequence[VqaRecord]) -> dict[str, float]:
    """Mean scores of one answer for each question of a split: `vqa_score` over all, and over each type of answers.

    Args:
        predictions: Question id to answer.
        records: The questions with people's answers (`read_vqa` with annotations).

    Raises:
        ValueError: A question has no prediction or no answers, or a prediction is for no question.
    """
    check_complete(predictions, [record.question_id for record in records])
    scores: list[float] = []
    by_answer_type: dict[str, list[float]] = {}
    for record in records:
        if record.answers is None:
            raise ValueError(
                f"question {record.question_id} has no answers; a test split is scored by the server, from the file "
                "that write_vqa_submission writes"
            )
        score = vqa_score(predictions[record.question_id], record.answers.answers)
        scores.append(score)
        by_answer_type.setdefault(record.answers.answer_type, []).append(score)
    by_type = {kind: sum(values) / len(values) for kind, values in sorted(by_answer_type.items())}
    return {"vqa_score": sum(scores) / len(scores), **by_type}


def write_vqa_submission(
    path: str | os.PathLike[str], predictions: Mapping[int, str], records: Sequence[VqaRecord]
) -> None:
    """Write what the evaluation server (EvalAI) takes: [{"question_id", "answer"}] for every question, in order.

    The server wants all questions of test2015, also for its test-dev phase.

    Raises:
        ValueError: A question has no prediction, or a prediction is for no question.
    """
    check_complete(predictions, [record.question_id for record in records])
    rows = [{"question_id": record.question_id, "answer": predictions[record.question_id]} for record in records]
    Path(path).write_text(json.dumps(rows) + "\n", encoding="utf-8")
