"""VQA v2: questions about images, answered from a list of frequent answers that travels with the model.

Shapes: E questions, P questions of a batch, A answers of the list.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from soho_fast.data.readers.json_lines import read_json_lines_questions
from soho_fast.data.readers.questions import VqaRecord, read_easy_vqa, read_vqa
from soho_fast.data.readers.records import ReadReport
from soho_fast.model import SohoForQuestionAnswering
from soho_fast.model.downstream import SohoDownstreamModel
from soho_fast.tasks.answering import AnsweringTask
from soho_fast.tasks.evaluation.metrics.vqa import normalise_answer, vqa_accuracy, vqa_score, write_vqa_submission
from soho_fast.tasks.fine_tuning import refuse_twice
from soho_fast.tasks.settings import VqaSplit, refuse_fields_of_other_formats

# Soft score of an answer that n of the ten people gave: min(1, 0.3 n), the targets of the usual practice (Teney et al.
# 2018, section 3.2, "soft scores"); close to the mean of the official score over leaving out each person.
_SCORE_PER_PERSON = 0.3

# The formats of a split that take a field.
_FORMATS_OF = {"annotations": ("vqa",), "splits": ("json_lines",)}

_ROWS_AT_A_TIME = 4096
_SMALLEST_PRIOR = 1e-4
_OF_QUESTION = "vqa_score_majority_of_the_question"


def _answers_of(record: VqaRecord) -> tuple[str, ...]:
    assert record.answers is not None  # which `is_answered` tells before
    return record.answers.answers


class QuestionAnsweringTask(AnsweringTask):
    """Questions about images; see `AnsweringTask`."""

    name = "vqa"
    model_class = SohoForQuestionAnswering
    example = 'answer {run} IMAGE "A QUESTION?"'
    selection = "vqa_score"
    texts = "questions"
    text_field, id_field = "question", "question_id"

    def read(self, source: VqaSplit, report: ReadReport) -> list[VqaRecord]:
        options = {"missing_images": self.data.missing_images, "report": report}
        refuse_fields_of_other_formats(source, _FORMATS_OF)
        if source.format == "json_lines":
            return read_json_lines_questions(source.questions, source.images, source.splits, **options)
        if source.format == "easy_vqa":
            return read_easy_vqa(source.questions, source.images, **options)
        return read_vqa(source.questions, source.images, source.annotations, **options)

    @cached_property
    def answers(self) -> list[str]:
        """The list of answers, the most frequent first: normalised, as the official evaluation compares them."""
        counts: Counter[str] = Counter()
        refuse_twice(self.data.train, "data.train")
        for split in self.data.train:
            for record in self.records(split, "data.train"):
                if record.answers is None:
                    raise ValueError(f"data.train: {split} has no answers")
                counts[normalise_answer(record.answers.most_common)] += 1
        if len(counts) == 1:
            ((answer, count),) = counts.items()
            raise ValueError(
                f"data.train: all {count:,} questions have the answer {answer!r:.60}; expected at least two answers"
            )
        frequent = [answer for answer, count in counts.items() if count >= self.data.min_answer_count]
        if len(frequent) < 2:
            raise ValueError(
                f"data.min_answer_count: {len(frequent)} answers come {self.data.min_answer_count} times or more; "
                "expected at least two, so lower it"
            )
        # Ties by name: the order is that of the model's outputs, and the same in each run.
        return sorted(frequent, key=lambda answer: (-counts[answer], answer))

    def label_names(self) -> list[str]:
        return self.answers

    def label_keywords(self) -> dict[str, list[str]]:
        return {"answers": self.answers}

    def new_model(self) -> SohoDownstreamModel:
        """As `AnsweringTask.new_model`; each answer's logit starts where `model.answer_bias` says.

        From 0 the first hundreds of steps teach little but that most answers are wrong, by gradients that shake what
        pre-training has learnt.
        """
        model = super().new_model()
        if self.model.answer_bias == "zero":
            return model
        assert isinstance(model, SohoForQuestionAnswering)  # as `model_class` says
        targets = torch.from_numpy(self._training_examples.targets)
        scores_A = torch.zeros(len(self.answers))
        for rows in targets.split(_ROWS_AT_A_TIME):
            scores_A += self.target_keywords(rows)["answer_scores"].sum(0)
        last = model.head[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            # The mean soft score as the probability that the model gives before it has looked at anything.
            last.bias.copy_(torch.logit(scores_A / len(targets), eps=_SMALLEST_PRIOR))
        return model

    def is_answered(self, records: Sequence[VqaRecord]) -> bool:
        return all(record.answers is not None for record in records)

    def targets(self, records: Sequence[VqaRecord]) -> np.ndarray:
        """int64 (E, 10): the place in the list of each person's answer, -1 where it is not in it."""
        place_of = {answer: place for place, answer in enumerate(self.answers)}
        # Millions of answers, of which few are different.
        place = cache(lambda answer: place_of.get(normalise_answer(answer), -1))
        rows = [[place(answer) for answer in _answers_of(record)] for record in records]
        return np.array(rows, dtype=np.int64)

    def target_keywords(self, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        people_PA = torch.zeros(len(targets), len(self.answers) + 1)
        # An answer that is not in the list goes to the last column, which is cut off.
        people_PA.scatter_add_(1, targets % people_PA.shape[1], torch.ones_like(targets, dtype=torch.float32))
        return {"answer_scores": (_SCORE_PER_PERSON * people_PA[:, :-1]).clamp(max=1.0)}

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()

    def metrics(self, answers: Sequence[str], records: Sequence[VqaRecord]) -> dict[str, float]:
        said = {record.question_id: answer for record, answer in zip(records, answers, strict=True)}
        return vqa_accuracy(said, records)

    def baselines(self, records: Sequence[VqaRecord], labels: Sequence[str]) -> dict[str, float]:
        """The most frequent answer, of all or of the same question in training; any of the list, by chance."""
        constant = self.metrics([labels[0]] * len(records), records)
        usual = self._usual_answers
        of_question = [usual.get(record.question.lower(), labels[0]) for record in records] if usual else []
        known = set(labels)
        chance = 0.0
        for record in records:
            given = _answers_of(record)
            # Each answer of the list is drawn equally often, and those that were not given score 0.
            chance += sum(vqa_score(answer, given) for answer in {normalise_answer(each) for each in given} & known)
        return {
            **{f"{name}_majority": value for name, value in constant.items()},
            **({_OF_QUESTION: self.metrics(of_question, records)["vqa_score"]} if usual else {}),
            "vqa_score_chance": chance / (len(labels) * len(records)),
        }

    @cached_property
    def _usual_answers(self) -> dict[str, str]:
        """Of each question of training, in lower case, its most frequent answer; none where they can't be read."""
        try:
            records = self.training_records
        except (OSError, ValueError) as error:
            self._say(f"no baseline of the same question: {error}")
            return {}
        counts: dict[str, Counter[str]] = {}
        for record in records if self.is_answered(records) else ():
            counts.setdefault(record.question.lower(), Counter()).update(map(normalise_answer, _answers_of(record)))
        return {question: count.most_common(1)[0][0] for question, count in counts.items()}

    def write_extra(self, answers: Sequence[str], records: Sequence[VqaRecord], folder: Path) -> list[str]:
        """The submission to the evaluation server (EvalAI)."""
        said = {record.question_id: answer for record, answer in zip(records, answers, strict=True)}
        write_vqa_submission(folder / "submission.json", said, records)
        return ["submission.json"]
