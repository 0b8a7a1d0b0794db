"""Foils: texts that differ from a caption in one word, or in the order of two, and are false of its image.

Kinds, each with one rule:

- sides: a word for a side becomes its opposite.
- numbers: a number of what is named becomes another one (not of "two things", which such a text counts out itself).
- colours: a colour becomes another one that captions have before the same word.
- objects: a word behind an article, a number or a colour becomes another one that captions have behind such a word and
  before the same next one (not in "two animals: a dog and a cat", which says itself what these are).
- order: two words behind "a", with a direction or a verb in -ing between them, change places.

Nothing in the text alone should tell a foil. So the other word is drawn by how often captions have it in that place,
and a draw of the word that is there already gives no foil: then each word is taken for another as often as the other
way round. A word that any caption of the same image has is never put in, nor is one for a whole kind of things:
"an animal" is true of a dog.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from soho_fast.common.text import STOP_WORDS

KINDS = ("sides", "numbers", "colours", "objects", "order")

_OPPOSITE = {"left": "right", "above": "below", "over": "under", "top": "bottom"}
_OPPOSITE |= {second: first for first, second in _OPPOSITE.items()}
_NUMBERS = frozenset(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
_COLOURS = frozenset(
    ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "grey", "white", "black"]
)
# "left" is also a verb, "right" an adverb: with one of these before or behind them they are sides.
_BEFORE_A_SIDE = frozenset(["the", "to", "top", "bottom", "upper", "lower", "far"])
_BEHIND_A_SIDE = frozenset(["of", "side", "corner", "hand"])
# What stands over these lies on them: there is no "under".
_GROUNDS = frozenset(["background", "wall", "photo"])
# True of many things at once, or of the picture itself: neither exchanged nor put in.
_GENERAL_WORDS = """
    thing object item animal creature fruit vegetable snack food vehicle instrument ball tool device garment plant
    building person people man men woman women child children kid boy girl guy lady
    background wall middle center centre corner side front back
    group pair couple lot bunch set piece kind few
"""
_GENERAL = frozenset(_GENERAL_WORDS.split())
# Between two things that may change places without making a caption false.
_LISTING = frozenset(["and", "or", "with", "next", "near", "beside", "by", "as", "plus", "between", "like", "together"])
_DIRECTED = frozenset([*_OPPOSITE, "on", "in", "onto", "into", "inside", "behind"])
_VERBS = frozenset(["sits", "stands", "lies", "rides", "holds"])

_TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]")
_MOST_COUNTED = 50_000
"""Captions that words are counted in; of more, so many that lie evenly among them."""


class Foil(NamedTuple):
    """A text that is false of the image of a caption.

    kind: one of `KINDS`.
    text: the text.
    before, after: the word of the caption, and what stands in its place; in `order` the words that change places.
    """

    kind: str
    text: str
    before: str
    after: str


class _Spot(NamedTuple):
    """Where a caption could be changed: the kind, the number of the token, and the slot whose words could stand there;
    in `order` the number of the other token."""

    kind: str
    place: int
    slot: tuple[str, ...] = ()
    other: int = -1


class _Caption:
    """A caption's tokens: words and punctuation marks, in lower case."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._spans = [match.span() for match in _TOKEN.finditer(text)]
        self.tokens = [text[start:end].lower() for start, end in self._spans]

    def at(self, place: int) -> str:
        """The token there, empty beyond the ends."""
        return self.tokens[place] if 0 <= place < len(self.tokens) else ""

    def has_article(self, place: int) -> bool:
        """Whether "a" or "an" stands before a token."""
        return self.at(place - 1) in ("a", "an")

    def exchanged(self, new: dict[int, str]) -> str:
        """The text with other tokens at some places; each begins as large as what it takes the place of."""
        parts, end = [], 0
        for place, word in sorted(new.items()):
            start, stop = self._spans[place]
            parts += [self.text[end:start], word[:1].upper() + word[1:] if self.text[start].isupper() else word]
            end = stop
        return "".join([*parts, self.text[end:]])


def _stem(word: str) -> str:
    """A word without the ending of its plural, roughly: "foxes" and "fox", "teddies" and "teddy"."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word.removesuffix("s") if not re.search("(s|x|ch|sh)es$", word) else word[:-2]


def _is_side(caption: _Caption, place: int) -> bool:
    word = caption.at(place)
    if word in ("left", "right"):
        return caption.at(place - 1) in _BEFORE_A_SIDE or caption.at(place + 1) in _BEHIND_A_SIDE
    if word in ("over", "under"):
        return not _GROUNDS.intersection(caption.tokens[place + 1 : place + 4])
    return word in _OPPOSITE


def _is_object(caption: _Caption, place: int) -> bool:
    word, before = caption.at(place), caption.at(place - 1)
    if not (before in ("a", "an") or before in _NUMBERS or before in _COLOURS):
        return False
    taken = word in STOP_WORDS or word in _OPPOSITE or word in _NUMBERS or word in _COLOURS
    return word[:1].isalpha() and not taken and _stem(word) not in _GENERAL and word not in _GENERAL


def _ends_a_phrase(word: str) -> bool:
    """Whether what stands before this word is a whole name: not the "pine" of a "pine tree"."""
    return not word[:1].isalnum() or word in STOP_WORDS or word in _OPPOSITE or word in _VERBS or word.endswith("ing")


def _spots(caption: _Caption) -> Iterator[_Spot]:
    # The last word that could change its place with another one.
    previous = -1
    # "two animals: a dog and a cat"
    lists_its_own = ":" in caption.tokens
    for place, word in enumerate(caption.tokens):
        if _is_side(caption, place):
            yield _Spot("sides", place)
        elif word in _NUMBERS:
            if not lists_its_own and _stem(caption.at(place + 1)) not in ("thing", "object", "item"):
                yield _Spot("numbers", place, ("numbers",))
        elif word in _COLOURS:
            yield _Spot("colours", place, ("colours", caption.at(place + 1)))
        elif _is_object(caption, place):
            before = "a" if caption.has_article(place) else "two" if caption.at(place - 1) in _NUMBERS else "red"
            if not lists_its_own:
                yield _Spot("objects", place, ("objects", before, caption.at(place + 1)))
            if before != "a" or not _ends_a_phrase(caption.at(place + 1)):
                previous = -1
                continue
            between = caption.tokens[previous + 1 : place] if previous >= 0 else []
            directed = any(each in _DIRECTED or each.endswith("ing") for each in between)
            listed = any(each in _LISTING or not each[0].isalnum() for each in between)
            if directed and not listed and caption.at(previous) != word:
                yield _Spot("order", previous, other=place)
            previous = place


class _Words(NamedTuple):
    """Words of a slot, and int64 (words,): how often each comes, added up."""

    words: list[str]
    ends: np.ndarray


class Foils:
    """Makes foils, with words that a corpus' captions have."""

    def __init__(self, captions: Sequence[str]) -> None:
        """Count the words of the captions by where they stand."""
        counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        of_kind: Counter[str] = Counter()
        articles: defaultdict[str, Counter[str]] = defaultdict(Counter)
        chosen: Sequence[int] = range(len(captions))
        if len(captions) > _MOST_COUNTED:
            chosen = np.linspace(0, len(captions) - 1, _MOST_COUNTED).astype(int).tolist()
        for number in chosen:
            caption = _Caption(captions[number])
            spots = list(_spots(caption))
            of_kind.update({spot.kind for spot in spots})
            for spot in spots:
                if spot.slot:
                    counts[spot.slot][caption.at(spot.place)] += 1
            for place in range(1, len(caption.tokens)):
                if caption.has_article(place):
                    articles[caption.at(place)][caption.at(place - 1)] += 1
        self._article_of = {word: of.most_common(1)[0][0] for word, of in articles.items()}
        self._slots = {
            slot: _Words(list(words), np.cumsum(list(words.values())))
            for slot, words in counts.items()
            if len(words) > 1
        }
        self._rarity = {kind: 1 / max(of_kind[kind], 1) for kind in KINDS}

    def make(
        self,
        caption: str,
        of_image: Iterable[str],
        rng: np.random.Generator,
        kinds: Sequence[str] = KINDS,
        *,
        as_often: bool = True,
    ) -> Foil | None:
        """A foil of a caption; None where none was found.

        Of the kinds that the caption has a place for, one is drawn: the rarer a kind in the corpus, the more often. If
        it gives no foil, another is.

        Args:
            caption: The caption.
            of_image: All captions of its image.
            rng: Source of all draws.
            kinds: The kinds to choose from.
            as_often: Draw the other word as the module says; without, among those that are not there already: more
                captions get a foil, but rare words then stand in foils more often than in captions.
        """
        read = _Caption(caption)
        spots: defaultdict[str, list[_Spot]] = defaultdict(list)
        for spot in _spots(read):
            if spot.kind in kinds:
                spots[spot.kind].append(spot)
        if not spots:
            return None
        own = {word for text in of_image for word in _Caption(text).tokens}
        own |= {_stem(word) for word in own}
        names = sorted(spots)
        rarity = np.array([self._rarity[name] for name in names])
        for kind in rng.choice(names, len(names), replace=False, p=rarity / rarity.sum()).tolist():
            spot = spots[kind][int(rng.integers(len(spots[kind])))]
            if (new := self._other(read, spot, own, rng, as_often)) is not None:
                before, after = read.at(spot.place), new[spot.place]
                # The articles before, where captions have another one with the new word.
                for place, word in list(new.items()):
                    if read.has_article(place):
                        new[place - 1] = self._article_of.get(word, read.at(place - 1))
                return Foil(kind, read.exchanged(new), before, after)
        return None

    def _other(
        self, caption: _Caption, spot: _Spot, own: set[str], rng: np.random.Generator, as_often: bool
    ) -> dict[int, str] | None:
        """Other words by the places of the tokens that they replace."""
        word = caption.at(spot.place)
        if spot.kind == "order":
            return {spot.place: caption.at(spot.other), spot.other: word}
        if spot.kind == "sides":
            return {spot.place: _OPPOSITE[word]}
        if spot.slot not in self._slots:
            return None
        words, ends = self._slots[spot.slot]
        if not as_often:
            words = [other for other in words if other != word]
            ends = np.arange(1, len(words) + 1)
        if not words:
            return None
        other = words[int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))]
        alike = other in own or _stem(other) in own or {word, other} == {"gray", "grey"}
        return None if alike else {spot.place: other}
