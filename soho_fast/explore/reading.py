"""What an explorer holds, as plain structured arrays of numpy: one record a patch, a word, a code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from soho_fast.common.spelling import did_you_mean
from soho_fast.explore.bundle import KINDS, Bundle
from soho_fast.explore.sources import fields_of

_OCCURRENCE = fields_of("image row column", "distance rows columns")
_COUNTS = fields_of("both images", "lift low high")


def occurrences(
    explorer: str | os.PathLike[str] | Bundle,
    code: int,
    kind: Literal["nearest", "quantiles", "random"] = "nearest",
) -> np.ndarray:
    """Patches that have a code, of distinct images.

    Args:
        explorer: Its folder, or a `Bundle`.
        code: From 0 to K - 1.
        kind: Those nearest to the code; those at quantiles of the distance, from the nearest to the farthest; or some
            at random.

    Returns:
        A record a patch: `image`, its number (`Bundle.image` has its name and captions); `row`, `column` of the
        patch; `distance` of its feature to the code; `rows`, `columns`, the image's height and width in patches.

    Raises:
        FileNotFoundError, BundleError: there is no explorer, or a damaged one.
        IndexError: there is no such code. ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return np.array([tuple(row) for row in _bundle(explorer).code(code)[kind]], dtype=_OCCURRENCE)


def words_of_code(explorer: str | os.PathLike[str] | Bundle, code: int) -> np.ndarray:
    """Words of the captions of a code's images that are more frequent there than elsewhere, best first.

    Args:
        explorer: Its folder, or a `Bundle`.
        code: From 0 to K - 1.

    Returns:
        A record a word: `word`; `both`, images with the code and the word; `images` with the word; `lift`,
        P(word | code) / P(word), and its interval, `low` and `high`. The code is
        associated with a word where `low` is above 1.

    Raises:
        FileNotFoundError, BundleError: there is no explorer, or a damaged one. IndexError: there is no such code.
    """
    entries = _bundle(explorer).code(code)["words"]
    longest = max((len(entry["word"]) for entry in entries), default=1)
    return _counted(entries, "word", f"U{longest}")


def codes_of_word(explorer: str | os.PathLike[str] | Bundle, word: str) -> np.ndarray:
    """Codes associated with a word, best first.

    Args:
        explorer: Its folder, or a `Bundle`.
        word: In lower case, as it is counted.

    Returns:
        A record a code: `code`; `both`, images with the code and the word; `images` with the code, and with captions;
        `lift`, and its interval, `low` and `high`. Empty where no code is associated with the word.

    Raises:
        FileNotFoundError, BundleError: there is no explorer, or a damaged one.
        KeyError: the word was not counted: no caption has it, or too few have, or it is a stop word.
    """
    by_word = {entry["word"]: entry["codes"] for entry in _bundle(explorer).read("words")}
    if word not in by_word:
        raise KeyError(f"{word!r} is not among the {len(by_word)} words that were counted{did_you_mean(word, by_word)}")
    return _counted(by_word[word], "code", "i8")


def _bundle(explorer: str | os.PathLike[str] | Bundle) -> Bundle:
    return explorer if isinstance(explorer, Bundle) else Bundle(explorer)


def _counted(entries: Sequence[Mapping[str, Any]], name: str, kind: str) -> np.ndarray:
    fields: list[tuple[str, Any]] = [(name, kind), *_COUNTS]
    return np.array([tuple(entry[each] for each, _ in fields) for entry in entries], dtype=fields)
