"""NLVR2: is a statement about two images true? Accuracy, and consistency over the pairs of a sentence."""

from collections.abc import Sequence

import numpy as np

from soho_fast.data.readers.records import ImageRef, ReadReport
from soho_fast.data.readers.statements import Nlvr2Record, read_nlvr2
from soho_fast.model import SohoForVisualReasoning
from soho_fast.tasks.answering import AnsweringTask
from soho_fast.tasks.evaluation.metrics.classification import nlvr2_accuracy
from soho_fast.tasks.settings import StatementSplit

_LABELS = ("False", "True")


class VisualReasoningTask(AnsweringTask):
    """Statements about pairs of images; see `AnsweringTask`."""

    name = "nlvr2"
    model_class = SohoForVisualReasoning
    example = 'compare {run} LEFT RIGHT "A STATEMENT"'
    selection = "accuracy"
    texts = "statements"
    text_field, id_field = "sentence", "identifier"

    def read(self, source: StatementSplit, report: ReadReport) -> list[Nlvr2Record]:
        return read_nlvr2(source.annotations, source.images, missing_images=self.data.missing_images, report=report)

    def images_of(self, record: Nlvr2Record) -> tuple[ImageRef, ...]:
        return record.left, record.right

    def label_names(self) -> list[str]:
        return list(_LABELS)

    def targets(self, records: Sequence[Nlvr2Record]) -> np.ndarray:
        return np.array([record.label for record in records], dtype=np.int64)

    def metrics(self, answers: Sequence[str], records: Sequence[Nlvr2Record]) -> dict[str, float]:
        said = {record.identifier: answer == "True" for record, answer in zip(records, answers, strict=True)}
        return nlvr2_accuracy(said, records)

    def baselines(self, records: Sequence[Nlvr2Record], labels: Sequence[str]) -> dict[str, float]:
        majority = max((True, False), key=[record.label for record in records].count)
        constant = nlvr2_accuracy({record.identifier: majority for record in records}, records)
        return {
            "accuracy_majority": constant["accuracy"],
            "accuracy_chance": 0.5,
            "consistency_majority": constant["consistency"],
        }
