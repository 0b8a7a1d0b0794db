"""Makes a tokenizer of your own texts: BERT's layout, uncased WordPiece.

    soho tokenizer images.jsonl tokenizer

reads the texts of annotation files (JSON lines of one's own, Karpathy, COCO captions, Visual Genome, VQA v2, NLVR2,
SNLI-VE) and writes a folder for a recipe's `data.tokenizer`.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import print_line
from soho_fast.data.readers.records import check_text, load_json, load_json_lines

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXT_FIELDS = ("captions", "caption", "raw", "phrase", "question", "sentence", "sentence2")
"""Where the texts are in the formats that this package reads: strings, or lists of strings, of these names."""

_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[]_"
_ENDINGS = ("s", "es", "ed", "ing", "er", "est", "ly", "y", "ie", "al", "ion", "ness")
_MAX_LENGTH = 512
_WHAT = "an annotation file: JSON, or one JSON object a line"

_NORMALIZER = normalizers.BertNormalizer(lowercase=True)
_PRE_TOKENIZER = pre_tokenizers.BertPreTokenizer()


def words_of(text: str) -> list[str]:
    """The words and marks of a text as BERT's uncased tokenizer divides it, before it looks for pieces."""
    return [word for word, _ in _PRE_TOKENIZER.pre_tokenize_str(_NORMALIZER.normalize_str(text))]


def build_vocabulary(texts: Iterable[str], size: int | None = None) -> list[str]:
    """Special tokens, characters and common endings as pieces, then words; the same for any order of the texts.

    Where all words go into `size`, every word is one token. Else WordPiece is trained, and words that come seldom are
    made of several pieces; the training breaks ties as they fall, so that seldom pieces may differ between two runs.
    No text of the same characters gives [UNK].

    Args:
        texts: What is to be read with it.
        size: Largest number of tokens; None has no limit.

    Raises:
        ValueError: There is no word, or the characters alone are more than `size`.
    """
    texts = list(texts)
    words = sorted({word for text in texts for word in words_of(text)})
    if not words:
        raise ValueError("texts: no word was found; expected texts to make a vocabulary of")
    characters = dict.fromkeys(_CHARACTERS + "".join(sorted(set("".join(words)) - set(_PUNCTUATION))))
    pieces = [*SPECIAL_TOKENS, *_PUNCTUATION, *characters, *(f"##{character}" for character in characters)]
    if size is not None and size < len(pieces):
        raise ValueError(f"size: {size} is too small; {len(pieces)} tokens are needed for the characters alone")
    vocabulary = list(dict.fromkeys(pieces + [f"##{ending}" for ending in _ENDINGS] + words))
    if size is None or len(vocabulary) <= size:
        return vocabulary
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _NORMALIZER, _PRE_TOKENIZER
    # The pieces that the training itself does not count.
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    learnt = tokenizer.get_vocab()
    # By their ids: the special tokens stay first.
    return sorted(learnt, key=learnt.__getitem__)


def write_tokenizer(folder: Path, vocabulary: Sequence[str]) -> None:
    """Write a BERT uncased WordPiece tokenizer (tokenizer.json, tokenizer_config.json, vocab.txt) into `folder`."""
    from transformers import BertTokenizer  # takes seconds

    # A name given twice would leave a gap in the ids; `build_vocabulary` gives each once.
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    BertTokenizer(vocab=ids, model_max_length=_MAX_LENGTH).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in vocabulary), encoding="utf-8")


def read_texts(annotations: str | os.PathLike[str]) -> list[str]:
    """Every caption, phrase, question, statement and hypothesis of an annotation file, in order.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is no JSON, holds no text under any of `TEXT_FIELDS`, or half a character.
    """
    try:
        contents = [(str(annotations), load_json(annotations, _WHAT))]
    except ValueError:
        contents = load_json_lines(annotations, _WHAT)
    texts = []
    for where, content in contents:
        for text in _texts_in(content):
            check_text(text, f"{where}: a text")
            texts += [text] if text.strip() else []
    if not texts:
        raise ValueError(f"{annotations}: no text was found; expected some under a field {', '.join(TEXT_FIELDS)}")
    return texts


def _texts_in(content: Any) -> Iterator[str]:
    pending = [(False, content)]  # Whether it has a text's name; the next one is the last.
    # A stack of its own, in the place of recursion: a file may be nested more deeply than Python calls.
    while pending:
        is_text, value = pending.pop()
        if isinstance(value, dict):
            # Reversed, since the last one comes off first: texts keep their order.
            pending += [(name in TEXT_FIELDS, each) for name, each in reversed(value.items())]
        elif isinstance(value, list):
            pending += [(is_text, each) for each in reversed(value)]
        elif is_text and isinstance(value, str):
            yield value


def make_tokenizer(
    annotations: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], *, size: int, overwrite: bool = False
) -> list[str]:
    """Write a tokenizer of all texts of some annotation files; returns what was read and how it fits, line by line.

    Raises:
        FileNotFoundError, ValueError: as `read_texts` and `build_vocabulary`; `output` is not empty.
    """
    from soho_fast.data.text import describe_fit, load_tokenizer  # which loads transformers

    folder = Path(output)
    if folder.suffix in (".json", ".jsonl") or folder.is_file():
        raise ValueError(f"output: {folder} is a file; expected the folder to write, as the last argument")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"output: {folder} is not empty; give another folder, or --overwrite")
    texts = [text for path in annotations for text in read_texts(path)]
    vocabulary = build_vocabulary(texts, size)
    write_tokenizer(folder, vocabulary)
    files = "1 file" if len(annotations) == 1 else f"{len(annotations)} files"
    return [
        f"read {len(texts):,} texts from {files}",
        f"wrote {folder}: a vocabulary of {len(vocabulary):,} tokens",
        describe_fit(load_tokenizer(folder), texts).summary(),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="soho tokenizer",
        epilog="example: soho tokenizer my_images/images.jsonl my_images/tokenizer",
        description="Make a BERT tokenizer (uncased WordPiece) of the texts of annotation files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("annotations", nargs="+", help="JSON or JSON lines with captions, questions, ...")
    parser.add_argument("output", help="folder to create")
    parser.add_argument("--size", type=int, default=8000, help="maximum number of tokens")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    options = parser.parse_args(arguments)
    lines = make_tokenizer(options.annotations, options.output, size=options.size, overwrite=options.overwrite)
    for line in lines:
        print_line(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
