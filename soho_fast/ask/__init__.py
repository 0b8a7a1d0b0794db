"""Ask a model: `SohoPipeline`, `soho ask` for one question, `many.py` for a file of them."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soho_fast.ask.pipeline import SohoPipeline as SohoPipeline

# Before torch loads OpenMP; see train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

MODELS = {
    "SohoForPreTraining": ("pre-training", "rank"),
    "SohoForImageTextRetrieval": ("image-text retrieval", "rank"),
    "SohoForQuestionAnswering": ("question answering", "answer"),
    "SohoForVisualReasoning": ("visual reasoning about two images", "compare"),
    "SohoForVisualEntailment": ("visual entailment", "entails"),
}
"""What each kind of model is for, in words, and the question that it takes."""


def __getattr__(name: str) -> Any:
    """`SohoPipeline`, imported where it is asked for: the command line is read before torch is loaded."""
    if name != "SohoPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from soho_fast.ask.pipeline import SohoPipeline

    return SohoPipeline
