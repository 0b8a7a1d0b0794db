"""Words and tokens: the tokenizer, content words, BERT masking.

Shapes: S tokens of one text.
"""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from soho_fast.common.checksums import check_checksums
from soho_fast.common.files import read_json
from soho_fast.common.hub import loading_options, no_such_path
from soho_fast.common.text import STOP_WORDS

IGNORED_LABEL = -100
"""Label of a position that is not predicted (cross-entropy's default `ignore_index`)."""

_WHAT_LOADS = (
    "a folder with tokenizer.json and tokenizer_config.json (or vocab.txt), which soho tokenizer "
    "makes from your own texts, or a hub name such as bert-base-uncased"
)

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")

_MOST_GROWTH = 64

# What is made of a text is kept: the captions of a small corpus come again in every epoch.
KEPT_TEXTS = 1 << 15


@lru_cache(KEPT_TEXTS)
def content_words(text: str) -> frozenset[str]:
    """The lower-case words of a text that are not stop words."""
    return frozenset(_WORD.findall(text.lower())) - STOP_WORDS


def _check_replacements(file: Path) -> None:
    """Raises ValueError: a tokenizer's file has texts grow without end, by replacing one character by several, again
    and again."""
    try:
        left = [read_json(file)]
    except (OSError, ValueError):  # whoever loads it says so
        return
    growth = 1
    while left:
        each = left.pop()
        if isinstance(each, dict) and each.get("type") == "Replace":
            growth *= max(1, len(str(each.get("content"))))
        left += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
    if growth > _MOST_GROWTH:
        raise ValueError(
            f"tokenizer: {file} replaces what makes texts {growth:,} times as long; at most {_MOST_GROWTH}"
        )


def load_tokenizer(name_or_path: str | os.PathLike[str], **hub_options: Any) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or a hub name, checked for what SOHO needs.

    Args:
        name_or_path: A folder with tokenizer.json and tokenizer_config.json (or vocab.txt), or a name on the hub.
        hub_options: revision, token, cache_dir and their kin, as in every `from_pretrained`.

    Raises:
        FileNotFoundError: It can't be loaded.
        ValueError: Its folder is not as it was written; or it lacks a special token, gives only [UNK], or is not a
            fast tokenizer.
    """
    # The tokenizer runs inside DataLoader workers, which are processes already: its own threads would only warn about
    # the fork and fight for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        options, failure = loading_options(name_or_path, **hub_options)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"tokenizer: {name_or_path} can't be loaded: {no_such_path(name_or_path)}. Expected {_WHAT_LOADS}"
        ) from error
    check_checksums(name_or_path, weights=False)
    _check_replacements(Path(name_or_path) / "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=False, **options)
        # The snowman is in few vocabularies: a tokenizer that fails on what it does not know fails here.
        pieces = tokenizer("a man and a woman \u2603", add_special_tokens=False)["input_ids"]
    except Exception as error:  # what transformers and tokenizers raise of a damaged file has no common type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"tokenizer: {name_or_path} can't be loaded: "
            + (f"there is no such folder, and {failure}" if failure else reason)
            + f". Expected {_WHAT_LOADS}"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer: {name_or_path} is not a fast tokenizer; whole-word masking needs its word ids")
    for token in ("pad", "cls", "sep", "mask", "unk"):
        if getattr(tokenizer, f"{token}_token_id") is None:
            raise ValueError(f"tokenizer: {name_or_path} has no {token} token; expected a BERT tokenizer")
    if set(pieces) <= {tokenizer.unk_token_id}:
        raise ValueError(
            f"tokenizer: {name_or_path} turns plain English into {tokenizer.unk_token} only; its vocabulary was not "
            "loaded (transformers 5 ignores BertTokenizer(vocab_file=...): load the directory with AutoTokenizer)"
        )
    return tokenizer


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text as the model reads it: `[CLS] pieces [SEP]`.

    `ids` int64 (S,). `word_ids` int64 (S,): the number of the word a piece belongs to, -1 at special tokens.
    """

    ids: np.ndarray
    word_ids: np.ndarray


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[EncodedText]:
    """Tokenize texts, cut to `max_length` tokens including [CLS] and [SEP]."""
    encoding = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return [
        EncodedText(
            np.asarray(ids, dtype=np.int64),
            np.asarray([-1 if word is None else word for word in encoding.word_ids(number)], dtype=np.int64),
        )
        for number, ids in enumerate(encoding["input_ids"])
    ]


@lru_cache(KEPT_TEXTS)
def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> EncodedText:
    """One text as `encode_texts` does it, kept for the next time: its arrays are not to be written to."""
    return encode_texts(tokenizer, [text], max_length)[0]


# A tokenizer that fits makes little more than one piece of a word; one of other words falls back on letters.
_MOST_PIECES = 2.0
_MOST_UNKNOWN = 0.01
_KEPT = 0.99
_MOST_COUNTED = 20_000


@dataclass(frozen=True)
class TextFit:
    """How a tokenizer fits texts.

    `lengths` int64 (T,): tokens of each text counted, [CLS] and [SEP] included, in ascending order. `pieces_per_word`:
    mean. `unknown_share`: of the words, those that are [UNK].
    """

    lengths: np.ndarray
    pieces_per_word: float
    unknown_share: float

    def length_needed(self) -> int:
        """The smallest longest length that cuts at most one text in a hundred."""
        return int(self.lengths[max(0, math.ceil(_KEPT * len(self.lengths)) - 1)])

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.pieces_per_word:.2f} pieces a word, {self.unknown_share:.1%} of the words [UNK]; {_KEPT:.0%} of "
            f"the texts have at most {self.length_needed()} tokens, the longest {self.lengths[-1]}"
        )

    def warnings(self, max_text_length: int) -> list[str]:
        """What a user should mend: texts that are cut, words that the tokenizer does not know; a line each."""
        lines = []
        cut = float((self.lengths > max_text_length).mean())
        if cut > 1 - _KEPT:
            lines.append(
                f"warning: {cut:.1%} of the texts are cut at data.max_text_length {max_text_length}; "
                f"{self.length_needed()} would keep {_KEPT:.0%} whole"
            )
        if self.pieces_per_word > _MOST_PIECES or self.unknown_share > _MOST_UNKNOWN:
            lines.append(
                f"warning: the tokenizer does not fit these texts: {self.pieces_per_word:.1f} pieces a word, "
                f"{self.unknown_share:.1%} of the words unknown; make one of your own texts by "
                "soho tokenizer ANNOTATIONS FOLDER, and give it as data.tokenizer"
            )
        return lines


def describe_fit(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> TextFit:
    """Count tokens and pieces of texts; of more than 20,000 texts, so many that lie evenly among them.

    Raises ValueError when there is no text.
    """
    if not len(texts):
        raise ValueError("texts: expected at least one, got none")
    # Evenly spread, so that a file that is sorted is seen as a whole.
    counted = [texts[int(number)] for number in np.linspace(0, len(texts) - 1, min(len(texts), _MOST_COUNTED))]
    lengths, num_words, num_pieces, num_unknown = [], 0, 0, 0
    # Longer than any text: nothing is cut here.
    for text in encode_texts(tokenizer, counted, max_length=1_000_000):
        words = text.word_ids >= 0
        lengths.append(len(text.ids))
        num_pieces += int(words.sum())
        num_words += int(text.word_ids.max(initial=-1)) + 1
        num_unknown += int((text.ids[words] == tokenizer.unk_token_id).sum())
    tokenizer.backend_tokenizer.no_truncation()  # or the length above would be saved with the tokenizer
    return TextFit(
        np.sort(np.array(lengths, dtype=np.int64)), num_pieces / max(num_words, 1), num_unknown / max(num_words, 1)
    )


def mask_tokens(
    text: EncodedText,
    rng: np.random.Generator,
    *,
    mask_token_id: int,
    vocab_size: int,
    special_ids: frozenset[int],
    probability: float = 0.15,
    random_special: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """BERT masking (Devlin et al. 2019, section 3.1).

    Each token is chosen with `probability`; eight of ten chosen ones become [MASK], one a random token of the
    vocabulary, and one stays as it is. Special tokens are never chosen, and never drawn but with `random_special`.

    Args:
        text: The text.
        rng: Source of all draws.
        mask_token_id: Id of [MASK].
        vocab_size: Random tokens are drawn from [0, vocab_size).
        special_ids: Ids never drawn as a replacement, without `random_special`.
        probability: Share of tokens to choose.
        random_special: Draw random tokens from the whole vocabulary, as BERT's first PyTorch code.

    Returns:
        `ids` int64 (S,) after masking and `labels` int64 (S,), the original id where chosen and -100 elsewhere.
    """
    ids = text.ids.copy()
    labels = np.full_like(ids, IGNORED_LABEL)
    (positions,) = (text.word_ids >= 0).nonzero()
    if not len(positions):
        return ids, labels
    chosen = positions[rng.random(len(positions)) < probability]
    # Nothing reads it: without it all draws behind it would be others than those of earlier versions.
    rng.integers(len(positions))
    labels[chosen] = ids[chosen]
    for position, fate in zip(chosen.tolist(), rng.random(len(chosen)).tolist(), strict=True):
        if fate < 0.8:
            ids[position] = mask_token_id
        elif fate < 0.9:
            draw = int(rng.integers(vocab_size))
            while draw in special_ids and not random_special:
                draw = int(rng.integers(vocab_size))
            ids[position] = draw
    return ids, labels


class FlatTexts(Sequence[str]):
    """Texts in two flat arrays.

    Millions of Python strings in a forked worker are copied page by page, as their reference counts are touched; flat
    arrays stay shared.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # no slices are asked for
        return self._bytes[self._ends[number] : self._ends[number + 1]].tobytes().decode()


class PackedTexts:
    """Many lists of texts.

    Attributes:
        flat: All texts, one list after the other.
        first: int64 (lists + 1,), the number of texts before each list.
    """

    def __init__(self, texts_of: Sequence[Sequence[str]]) -> None:
        self.flat = FlatTexts(text for texts in texts_of for text in texts)
        self.first = np.cumsum([0, *map(len, texts_of)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.first) - 1

    def count(self, index: int) -> int:
        """How many texts list `index` has."""
        return int(self.first[index + 1] - self.first[index])

    def counts(self) -> np.ndarray:
        """How many texts each list has, int64."""
        return np.diff(self.first)

    def get(self, index: int, number: int) -> str:
        """Text `number` of list `index`."""
        return self.flat[self.first[index] + number]

    def all(self, index: int) -> list[str]:
        """All texts of list `index`."""
        return [self.flat[number] for number in range(self.first[index], self.first[index + 1])]
