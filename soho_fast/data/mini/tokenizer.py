"""A small WordPiece vocabulary for the demo corpus, in the layout that AutoTokenizer.from_pretrained reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[]_"
_ENDINGS = ("s", "es", "ed", "ing", "er", "est", "ly", "y", "ie", "al", "ion", "ness")
_MAX_LENGTH = 512


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a sentence, without punctuation, as the Karpathy files list them."""
    return re.findall(r"[a-z0-9]+", text.lower())


def build_vocabulary(texts: Iterable[str]) -> list[str]:
    """Return the vocabulary: special tokens, characters and common endings as pieces, then every word of the texts.

    Every word of the corpus is one token; any other word falls into characters and endings, never into [UNK].
    The list is sorted, so it does not depend on the order of the texts (a trained merge list would, on ties).
    """
    words = sorted({word for text in texts for word in words_of(text)})
    pieces = list(SPECIAL_TOKENS) + list(_PUNCTUATION) + list(_CHARACTERS)
    pieces += [f"##{character}" for character in _CHARACTERS]
    pieces += [f"##{ending}" for ending in _ENDINGS if len(ending) > 1]
    return list(dict.fromkeys(pieces + words))


def write_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    """Write a BERT uncased WordPiece tokenizer (tokenizer.json, tokenizer_config.json, vocab.txt) into ``folder``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {piece: index for index, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": _MAX_LENGTH,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in vocabulary), encoding="utf-8")
