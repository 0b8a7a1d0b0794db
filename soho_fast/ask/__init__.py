"""Ask a model: `SohoPipeline`, `soho ask` for one question, `many.py` for a file of them."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from soho_fast.common.errors import listed

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


def does_not_know(words: Sequence[str]) -> str:
    """What is said of words that a model does not know."""
    return f"this model does not know: {listed([repr(f'{word:.40}') for word in words], 5)}"


def __getattr__(name: str) -> Any:
    """`SohoPipeline`, imported where it is asked for: the command line is read before torch is loaded."""
    if name != "SohoPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from soho_fast.ask.pipeline import SohoPipeline

    return SohoPipeline
