"""SOHO-mini: a demo corpus of composed scenes, written in the published formats of COCO, VQA v2, NLVR2 and SNLI-VE."""

from .builder import build_corpus

__all__ = ["build_corpus"]
