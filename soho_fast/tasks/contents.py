"""Hashes of what a run is trained on and from, so that a folder that moved is no change."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from soho_fast.data.overlap import content_of
from soho_fast.data.readers.records import ImageRef

# Images of a set that are read at each start, where all would take long. Replaced by ones of the same sizes, one in a
# thousand is overlooked in one set of fifty.
_MOST_READ = 4000

# What tokenizers treat each in its own way: case, accents, scripts, punctuation, numbers, spaces.
_TEXT = "A Man's CAFE\u0301 caf\u00e9, 3,000.5 \u4eba\u7269 \u0645\u0631\u062d \U0001f600!\u00a0a\tb\n[MASK]"

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def records_identity(records: Sequence[Any]) -> str:
    """Number and hash of records in their order: names of images, texts, labels; not where the images lie. What these
    show is `images_identity`."""
    digest = hashlib.sha256()
    names: dict[type, list[str]] = {}
    for record in records:
        kind = type(record)
        if kind not in names:
            # The source is what messages call it.
            names[kind] = [field.name for field in fields(kind) if field.name != "source"]
        values = [getattr(record, name) for name in names[kind]]
        digest.update("\0".join(v.name if isinstance(v, ImageRef) else repr(v) for v in values).encode() + b"\1")
    return f"{len(records):,} records, {digest.hexdigest()[:12]}"


def images_identity(images: Sequence[ImageRef]) -> str:
    """Number and hash of the files of images: names and sizes of all, contents of some thousands at most."""
    return content_of(images, every=-(-len(images) // _MOST_READ))


def weights_identity(name_or_path: str | None) -> str | None:
    """A hash of the weights in a file or folder; what is neither, such as a hub name, stands for itself."""
    if name_or_path is None:
        return None
    path = Path(name_or_path)
    files = [path] if path.is_file() else sorted(each for each in path.glob("*") if each.suffix in _WEIGHTS)
    if not files:
        return name_or_path
    digest = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"weights {digest.hexdigest()[:12]}"


def output_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what a tokenizer makes of a fixed text, and of its own words in capitals and with accents: by
    themselves they do not tell it."""
    words = sorted(tokenizer.get_vocab())
    texts = [_TEXT, " ".join(words), " ".join(words).upper(), "\u0301 ".join(words)]
    ids = tokenizer(texts, verbose=False)["input_ids"]  # which would warn of their lengths
    return f"hash {hashlib.sha256(repr(ids).encode()).hexdigest()[:12]}"


def words_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Number and hash of a tokenizer's words."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    digest = hashlib.sha256("\n".join(f"{number} {word}" for word, number in words).encode("utf-8", "replace"))
    return f"{len(words):,} words, {digest.hexdigest()[:12]}"
