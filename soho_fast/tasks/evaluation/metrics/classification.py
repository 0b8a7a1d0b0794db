"""Accuracy of NLVR2 and SNLI-VE by their authors' rules."""

from collections.abc import Mapping, Sequence

from soho_fast.data.readers.statements import Nlvr2Record, SnliVeRecord
from soho_fast.tasks.evaluation.metrics import check_complete


def nlvr2_accuracy(predictions: Mapping[str, bool], records: Sequence[Nlvr2Record]) -> dict[str, float]:
    """Accuracy and consistency (Suhr et al. 2019, section 5; `nlvr2/eval/metrics.py` of the authors).

    Both between 0 and 1: right examples, and sentences of an image set that are right for all of their pairs.
    A sentence is known by the identifier without its pair: the same words in another image set are another sentence.

    Args:
        predictions: Identifier to whether the statement is true.
        records: The examples of a split.

    Raises:
        ValueError: An example has no prediction, or a prediction is for no example.
    """
    check_complete(predictions, [record.identifier for record in records])
    right_by_sentence: dict[tuple[str, str, str], list[bool]] = {}
    for record in records:
        split, image_set, _, sentence = record.identifier.split("-")
        right = predictions[record.identifier] == record.label
        right_by_sentence.setdefault((split, image_set, sentence), []).append(right)
    return {
        "accuracy": sum(map(sum, right_by_sentence.values())) / len(records),
        "consistency": sum(map(all, right_by_sentence.values())) / len(right_by_sentence),
    }


def snli_ve_accuracy(predictions: Sequence[str], records: Sequence[SnliVeRecord]) -> dict[str, float]:
    """Share of pairs whose label is predicted (Xie et al. 2019): `accuracy` over all, and over those of each label.

    Args:
        predictions: One of `ENTAILMENT_LABELS` for each record, in order.
        records: The pairs of a split.

    Raises:
        ValueError: Not one prediction for each record.
    """
    right_by_label: dict[str, list[bool]] = {}
    for predicted, record in zip(predictions, records, strict=True):
        right_by_label.setdefault(record.label, []).append(predicted == record.label)
    by_label = {label: sum(right) / len(right) for label, right in sorted(right_by_label.items())}
    return {"accuracy": sum(map(sum, right_by_label.values())) / len(records), **by_label}
