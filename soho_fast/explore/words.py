"""What the captions say of the images of a code: words by lift, with counts and an interval.

The unit is the image: a word is there or not, however often it is said. lift = P(word | code) / P(word); above 1 the
word is more frequent where the code is. An image without captions says neither, and is not counted.

The interval is Clopper and Pearson's of P(word | code) over P(word), at a level that holds for all words of all codes
together (Bonferroni): where codes have nothing to do with the captions, in one explorer of forty any is associated.

Words are also two that follow each other ("polar bear"), where one of them mostly stands with the other. A plural is
counted as its singular, where captions have both. Words of place and number, which are about the image rather than a
patch, are not counted.

N images, K codes (or a block of them), V words.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from soho_fast.common.extras import from_extra
from soho_fast.common.text import STOP_WORDS
from soho_fast.explore.sources import fields_of

with from_extra("explore"):
    from scipy.sparse import csr_array
    from scipy.special import betaincinv

LEVEL = 0.95
MIN_IMAGES = 5
"""Images with both the code and the word, below which they are not associated."""
MOST_WORDS = 2000
"""The most frequent words are counted, so many of them."""
WORDS_PER_CODE = 20
CODES_PER_WORD = 32

_WORD_OF_CODE = fields_of("column both", "lift low high")

# Words of all scripts; hyphens and apostrophes join. Vowel signs and accents, which re counts as no part of a word, and
# joiners within words are part of many scripts; the variation selectors that follow digits and emoji are not.
_MARKS = "".join(
    mark
    for mark in map(chr, range(0x300, 0x20000))
    if unicodedata.category(mark) in ("Mn", "Mc") and not 0xFE00 <= ord(mark) <= 0xFE0F
)
_LETTERS = rf"\w[\w{_MARKS}]*"
_WORD = re.compile(rf"{_LETTERS}(?:['\u2019\u00b7\u200c\u200d-]{_LETTERS})*")
_LONGEST_WORD = 40

_PLACES = """
    front back top bottom left right side middle center centre above below under over beside behind next near close
    between around along across against inside outside away one two three four five six seven eight nine ten several
    many few group pair couple
"""
_NOT_COUNTED = STOP_WORDS | frozenset(_PLACES.split())
_COLOURS = "red orange yellow green blue purple violet pink brown black white grey gray dark light bright beige"
_SINGULARS = {"men": "man", "women": "woman", "children": "child", "people": "person", "leaves": "leaf"}
_SINGULARS |= {"mice": "mouse", "feet": "foot", "teeth": "tooth", "geese": "goose", "knives": "knife"}
_NO_PLURALS = frozenset(["news", "glasses", "shorts", "clothes", "woods", "james"])


def words_of(captions: Iterable[str]) -> set[str]:
    """The whole lower-case words of an image's captions that are no stop words."""
    return {word for words in _runs(captions) for word in words}


def phrases_of(captions: Iterable[str]) -> set[str]:
    """Two such words that follow each other, with nothing but a space between them."""
    return {f"{one} {other}" for words in _runs(captions) for one, other in itertools.pairwise(words)}


def _runs(captions: Iterable[str]) -> Iterator[list[str]]:
    """Words that are counted, as far as they follow each other."""
    for caption in captions:
        text = unicodedata.normalize("NFC", caption).lower().replace("_", " ")
        # Words that follow each other with one space between them; a word that is not counted ends it.
        run: list[str] = []
        end = 0
        for found in _WORD.finditer(text):
            if text[end : found.start()] != " ":
                yield run
                run = []
            end = found.end()
            if len(found[0]) <= _LONGEST_WORD and found[0] not in _NOT_COUNTED:
                run.append(found[0])
            else:
                yield run
                run = []
        yield run


def singulars_of(word: str) -> list[str]:
    """What a word may be the plural of."""
    first, space, last = word.rpartition(" ")
    found = [_SINGULARS[last]] if last in _SINGULARS else []
    if last.endswith("s") and not (found or last.endswith(("ss", "us", "is")) or last in _NO_PLURALS):
        found += [last[:-1], *([last[:-2]] if re.search("(?:[sxzo]|ch|sh)es$", last) else [])]
        found += [last[:-3] + "y"] if last.endswith("ies") else []
    return [first + space + one for one in found]


def leads(word: str) -> bool:
    """Whether a word says more than a colour, which is often the background's."""
    return word not in _COLOURS.split()


class Vocabulary:
    """Words by numbers, in the order in which they come, and how many images have each."""

    def __init__(self) -> None:
        self._number_of: dict[str, int] = {}
        self._images: list[int] = []

    def numbers(self, captions: Iterable[str]) -> np.ndarray:
        """The numbers of an image's words, int32, each once; the image is counted."""
        captions = list(captions)
        words = sorted(words_of(captions) | phrases_of(captions))
        numbers = [self._number_of.setdefault(word, len(self._number_of)) for word in words]
        # For the words that are new.
        self._images += [0] * (len(self._number_of) - len(self._images))
        for number in numbers:
            self._images[number] += 1
        return np.array(numbers, dtype=np.int32)

    def choose(self, images: Iterable[tuple[np.ndarray, np.ndarray]]) -> Words:
        """The words that are counted: the most frequent ones that enough images have, in alphabetical order.

        Args:
            images: `numbers` of some images at a time one after another, and where each image's begin, see `Words`.
        """
        spelling = list(self._number_of)
        root = np.arange(len(spelling))
        for plural, word in enumerate(spelling):
            known = [self._number_of[one] for one in singulars_of(word) if one in self._number_of]
            root[plural] = max(known, key=self._images.__getitem__, default=plural)
        # It ends: what loses its s becomes shorter, and the irregular singulars are plurals of nothing.
        while (root[root] != root).any():
            root = root[root]
        # An image counts for a root once, whatever forms of it it has; forms keep their own count.
        of_root = np.zeros(len(root), dtype=np.int64)
        for numbers, begins in images:
            image = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
            # A number for each pair of an image and a root, of which the root is the remainder.
            pairs = np.unique(image * len(root) + root[numbers])
            of_root += np.bincount(pairs % len(root), minlength=len(root))
        count = np.where(root == np.arange(len(root)), of_root, self._images)
        frequent = [
            number
            for number in np.argsort(-count, kind="stable")
            if count[number] >= MIN_IMAGES and root[number] == number and self._holds(spelling[number], count)
        ]
        chosen = sorted(frequent[:MOST_WORDS], key=lambda number: spelling[number])
        column_of = np.full(len(spelling), -1, dtype=np.int64)
        column_of[chosen] = np.arange(len(chosen))
        # Plurals have the column of their root.
        column_of = column_of[root]
        forms: list[list[str]] = [[] for _ in chosen]
        for number in np.flatnonzero((column_of >= 0) & (root != np.arange(len(root)))):
            forms[column_of[number]].append(spelling[number])
        return Words([spelling[number] for number in chosen], count[chosen].astype(np.int64), column_of, forms)

    def _holds(self, word: str, images: np.ndarray) -> bool:
        """Whether one of a phrase's words stands mostly with the other; of a word always."""
        parts = word.split(" ")
        return len(parts) == 1 or 2 * images[self._number_of[word]] > min(images[self._number_of[one]] for one in parts)


@dataclass
class Words:
    """The V words that are counted: spellings in alphabetical order, images that have each, int64 (V,), the column
    of each number of the vocabulary, -1 for those that are not counted, and the other forms of each word."""

    spelling: list[str]
    images: np.ndarray
    column_of: np.ndarray
    forms: list[list[str]]

    def table(self, numbers: np.ndarray, begins: np.ndarray) -> csr_array:
        """int32 (N, V), 1 where an image has a word; numbers of image n stand from begins[n] to begins[n + 1]."""
        columns = self.column_of[numbers]
        image = np.repeat(np.arange(len(begins) - 1), np.diff(begins))[columns >= 0]
        columns = columns[columns >= 0]
        shape = (len(begins) - 1, len(self.spelling))
        table = csr_array((np.ones(len(columns), dtype=np.int32), (image, columns)), shape=shape)
        table.sum_duplicates()  # An image may have both forms of a word.
        table.data[:] = 1
        return table


def count_both(code: np.ndarray, image: np.ndarray, num_codes: int, words_NV: csr_array) -> csr_array:
    """int32 (K, V), images that have both a code and a word.

    Args:
        code, image: int (pairs,), each pair of a code and an image that has it, once.
        num_codes: K.
        words_NV: 1 where an image has a word, int32 (N, V).
    """
    shape = (num_codes, words_NV.shape[0])
    codes_KN = csr_array((np.ones(len(code), dtype=np.int32), (code, image)), shape=shape)
    return codes_KN @ words_NV


def lifts(
    both: np.ndarray, code_images: int, word_images: np.ndarray, num_images: int, num_tests: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lift, low, high) of some words with a code, float64 (words,).

    Args:
        both: int (words,), images with both; at least 1.
        code_images: images with captions that have the code; at least 1.
        word_images: int (words,), images that have the word; at least 1.
        num_images: all images with captions.
        num_tests: words times codes of which one might be associated by chance, at least 1.

    Below `MIN_IMAGES` images with both, `low` is at most 1.
    """
    # Bonferroni: what may go wrong is divided among the tests, and between the two ends.
    tail = (1 - LEVEL) / 2 / num_tests
    # Many words have the same count, and the interval's inversion is slow.
    both_U, place = np.unique(both, return_inverse=True)
    # Clopper and Pearson's ends are quantiles of beta distributions.
    low_U = betaincinv(both_U, code_images - both_U + 1.0, tail)
    # Where every image with the code has the word, the upper end of the interval is 1.
    high_U = np.ones(len(both_U))
    some = both_U < code_images
    high_U[some] = betaincinv(both_U[some] + 1.0, code_images - both_U[some], 1 - tail)
    share = np.maximum(word_images, 1) / num_images
    low = low_U[place] / share
    return both / code_images / share, np.where(both < MIN_IMAGES, np.minimum(low, 1.0), low), high_U[place] / share


def rank_words(
    both_V: np.ndarray, code_images: int, word_images: np.ndarray, num_images: int, num_codes: int = 1
) -> np.ndarray:
    """The words that are more frequent in a code's images than elsewhere, those first whose interval lies highest.

    Args:
        both_V: int (V,), images with the code and the word.
        code_images: Images that have the code. word_images: int (V,). num_images: N; all of them images with captions.
        num_codes: Codes whose words are asked for, for all of which together the interval holds.

    Returns:
        A record a word: `column`, its number in `Words`; `both`; `lift`, and its interval, `low` and `high`.
    """
    # lift > 1, without a division. Counts may come in 32 bits, which their products do not fit.
    column = np.flatnonzero(both_V.astype(np.int64) * num_images > code_images * word_images.astype(np.int64))
    found = np.empty(len(column), dtype=_WORD_OF_CODE)
    found["column"], found["both"] = column, both_V[column]
    found["lift"], found["low"], found["high"] = lifts(
        found["both"], code_images, word_images[column], num_images, max(len(both_V), 1) * num_codes
    )
    # Of equal ones the columns tell, which are in alphabetical order.
    return found[np.lexsort((found["column"], -found["lift"], -found["low"]))]
