"""SNLI-VE: does an image entail a hypothesis, contradict it, or neither? Accuracy; the text premise is never read."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from soho_fast.data.readers.records import ReadReport
from soho_fast.data.readers.statements import ENTAILMENT_LABELS, SnliVeRecord, read_snli_ve
from soho_fast.model import SohoForVisualEntailment
from soho_fast.tasks.answering import AnsweringTask
from soho_fast.tasks.evaluation.metrics.classification import snli_ve_accuracy
from soho_fast.tasks.settings import StatementSplit


class VisualEntailmentTask(AnsweringTask):
    """Hypotheses about images; see `AnsweringTask`."""

    name = "snli_ve"
    model_class = SohoForVisualEntailment
    example = 'entails {run} IMAGE "A STATEMENT"'
    selection = "accuracy"
    texts = "hypotheses"
    text_field, id_field = "hypothesis", "pair_id"

    def read(self, source: StatementSplit, report: ReadReport) -> list[SnliVeRecord]:
        return read_snli_ve(source.annotations, source.images, missing_images=self.data.missing_images, report=report)

    def label_names(self) -> list[str]:
        return list(ENTAILMENT_LABELS)

    def targets(self, records: Sequence[SnliVeRecord]) -> np.ndarray:
        return np.array([ENTAILMENT_LABELS.index(record.label) for record in records], dtype=np.int64)

    def metrics(self, answers: Sequence[str], records: Sequence[SnliVeRecord]) -> dict[str, float]:
        return snli_ve_accuracy(answers, records)

    def baselines(self, records: Sequence[SnliVeRecord], labels: Sequence[str]) -> dict[str, float]:
        ((majority, _),) = Counter(record.label for record in records).most_common(1)
        constant = snli_ve_accuracy([majority] * len(records), records)
        return {"accuracy_majority": constant["accuracy"], "accuracy_chance": 1 / len(ENTAILMENT_LABELS)}
