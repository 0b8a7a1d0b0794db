"""Answers to questions as the official VQA evaluation compares them.

Source: the official evaluation code (GT-Vision-Lab/VQA, `vqaEval.py`), whose normalisation is kept with its quirks:
scores are comparable only under the same one.
"""

from __future__ import annotations

import re

_PUNCTUATION = r""";/[]"{}()=+\_-><@`,?!"""
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}

# The contractions that the official code repairs. A word that lacks one of the apostrophes gets it back.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_REPAIRED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # as in the official table

_DECIMAL_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The official code hands the flag re.UNICODE (32) to `sub` where it takes the count.
_MAX_FULL_STOPS = 32


def normalise_answer(answer: str) -> str:
    """An answer as the official evaluation compares it: punctuation, case, number words, articles, contractions."""
    text = one_line(answer)
    has_decimal_comma = _DECIMAL_COMMA.search(text) is not None
    without = text
    for mark in _PUNCTUATION:
        glued = not (has_decimal_comma or f"{mark} " in text or f" {mark}" in text)
        without = without.replace(mark, " " if glued else "")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", without, count=_MAX_FULL_STOPS).lower().split())
    return " ".join(_REPAIRED.get(word, word) for word in words if word not in _ARTICLES)


def one_line(text: str) -> str:
    """An answer without line breaks, tabs and surrounding blanks: all that is done where people agree."""
    return text.replace("\n", " ").replace("\t", " ").strip()
