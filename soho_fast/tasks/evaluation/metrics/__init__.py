"""What a result is worth: the published metric of each task, offline. Knows records, no model."""

from soho_fast.tasks.evaluation.metrics.classification import (
    Nlvr2Accuracy,
    SnliVeAccuracy,
    nlvr2_accuracy,
    snli_ve_accuracy,
)
from soho_fast.tasks.evaluation.metrics.recall import (
    RetrievalRecall,
    recall_at,
    retrieval_recall,
    retrieval_recall_in_folds,
)
from soho_fast.tasks.evaluation.metrics.vqa import (
    VqaAccuracy,
    normalise_answer,
    vqa_accuracy,
    vqa_score,
    write_vqa_submission,
)

__all__ = [
    "Nlvr2Accuracy",
    "RetrievalRecall",
    "SnliVeAccuracy",
    "VqaAccuracy",
    "nlvr2_accuracy",
    "normalise_answer",
    "recall_at",
    "retrieval_recall",
    "retrieval_recall_in_folds",
    "snli_ve_accuracy",
    "vqa_accuracy",
    "vqa_score",
    "write_vqa_submission",
]
