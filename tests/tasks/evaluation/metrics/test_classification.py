import pytest

from soho_fast.data.readers.records import ImageRef
from soho_fast.data.readers.statements import ENTAILMENT_LABELS, Nlvr2Record, SnliVeRecord
from soho_fast.tasks.evaluation.metrics.classification import nlvr2_accuracy, snli_ve_accuracy

IMAGE = ImageRef(None, "none.jpg")


def examples(**labels):
    return [Nlvr2Record(IMAGE, IMAGE, "same words", name.replace("_", "-"), label) for name, label in labels.items()]


def test_nlvr2_by_hand():
    # Two sentences of set 7 (0 and 1) and one of set 8, all with the same words.
    records = examples(dev_7_0_0=True, dev_7_1_0=False, dev_7_0_1=True, dev_7_3_1=True, dev_8_0_0=False)
    predictions = {record.identifier: record.label for record in records}
    assert nlvr2_accuracy(predictions, records)["consistency"] == 1.0
    result = nlvr2_accuracy({**predictions, "dev-7-3-1": False}, records)
    assert result == {"accuracy": pytest.approx(4 / 5), "consistency": pytest.approx(2 / 3)}


def test_nlvr2_refuses_other_examples():
    records = examples(dev_7_0_0=True, dev_7_1_0=False)
    with pytest.raises(ValueError, match=r"1 are missing, 0 are for unknown ones \(first: dev-7-1-0\)"):
        nlvr2_accuracy({"dev-7-0-0": True}, records)
    with pytest.raises(ValueError, match=r"0 are missing, 1 are for unknown ones \(first: dev-9-0-0\)"):
        nlvr2_accuracy({"dev-7-0-0": True, "dev-7-1-0": True, "dev-9-0-0": True}, records)


def test_snli_ve_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    truth = [ENTAILMENT_LABELS[n * n % 7 % 3] for n in range(40)]
    predicted = [ENTAILMENT_LABELS[n * 5 % 11 % 3] for n in range(40)]
    records = [SnliVeRecord(IMAGE, "a hypothesis", str(n), label) for n, label in enumerate(truth)]
    result = snli_ve_accuracy(predicted, records)
    assert result.pop("accuracy") == pytest.approx(metrics.accuracy_score(truth, predicted))
    recalls = metrics.recall_score(truth, predicted, average=None, labels=ENTAILMENT_LABELS)
    assert result == {label: pytest.approx(recall) for label, recall in zip(ENTAILMENT_LABELS, recalls, strict=True)}
    with pytest.raises(ValueError):
        snli_ve_accuracy(predicted[1:], records)
