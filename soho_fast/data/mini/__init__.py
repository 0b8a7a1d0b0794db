"""SOHO-mini: a demo corpus of composed scenes, written in the published formats of COCO and VQA v2."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builder import build_corpus

__all__ = ["build_corpus"]


def __getattr__(name: str) -> Any:
    # It loads numpy and Pillow, and a recipe needs the options alone.
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from .builder import build_corpus

    return build_corpus
