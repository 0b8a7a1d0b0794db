"""A published checkpoint of the authors, written as a folder that `from_pretrained` loads."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from soho_fast.common.checksums import write_checksums
from soho_fast.common.errors import UserError
from soho_fast.common.files import new_folder
from soho_fast.common.hub import no_such_path
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import load_json
from soho_fast.data.text import load_tokenizer
from soho_fast.data.tokenizer import SPECIAL_TOKENS, write_tokenizer
from soho_fast.model import SohoPreTrainedModel
from soho_fast.model.official.convert import convert, read_checkpoint

_TOKENIZER = "bert-base-uncased"
# SHA-256 of the words in its vocab.txt.
_VOCABULARY = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def write_converted(published: Path, output: Path, vocab: str | None, answers: str | None) -> Iterator[str]:
    """Convert a published file and write the folder; yields what there is to say, line by line.

    Args:
        published: The published file.
        output: The folder; one that is there is replaced.
        vocab: Path of vocab.txt; None asks the hub for the tokenizer.
        answers: Path of a VQA model's answers.

    Raises:
        UserError: one of the files can't be used, or the folder can't be written.
    """
    checkpoint = read_checkpoint(published)
    if answers and checkpoint.preset != "official_vqa":
        raise UserError(f"answers: {checkpoint.path} is no model of VQA, which alone has answers; leave it out")
    tokenizer = _tokenizer(vocab)
    model = convert(checkpoint, answers=_answers(answers) if answers else None)
    if len(tokenizer) != model.config.vocab_size:
        raise UserError(
            f"vocab: expected the {model.config.vocab_size:,} words of {_TOKENIZER}, got {len(tokenizer):,}"
        )
    yield from checkpoint.report()
    if checkpoint.preset == "official_vqa" and not answers:
        yield "warning: its answers have numbers for names; give --answers FILE"
    words = sorted((number, word) for word, number in tokenizer.get_vocab().items())
    digest = hashlib.sha256("".join(f"{word}\n" for _, word in words).encode()).hexdigest()
    if digest != _VOCABULARY:
        yield f"warning: the words are not those of {_TOKENIZER}, with which the authors trained"
    # As the released code reads images.
    size = {"shortest_edge": 600, "longest_edge": 1000}
    processor = SohoProcessor(SohoImageProcessor(size=size, size_divisor=32, antialias=False), tokenizer)
    write_model(model, processor, output)
    yield f"wrote {output}, which from_pretrained, soho_fast.ask and --model.pretrained take"


def _tokenizer(vocab: str | None) -> PreTrainedTokenizerBase:
    if vocab is None:
        try:
            return load_tokenizer(_TOKENIZER)
        except FileNotFoundError as error:
            raise UserError(f"vocab: expected --vocab FILE, the vocab.txt of {_TOKENIZER} ({error})") from error
    if not Path(vocab).is_file():
        reason = "it is a folder" if Path(vocab).is_dir() else no_such_path(vocab)
        raise UserError(f"vocab: {vocab} can't be read ({reason}); expected the vocab.txt of {_TOKENIZER}")
    try:
        words = Path(vocab).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"vocab: {vocab} is no text in UTF-8; expected the vocab.txt of {_TOKENIZER}") from error
    missing = [token for token in SPECIAL_TOKENS if token not in words]
    if missing or len(set(words)) != len(words):
        wrong = f"{', '.join(missing)} is missing" if missing else "a word comes twice"
        raise UserError(f"vocab: {vocab}: {wrong}; expected the vocab.txt of {_TOKENIZER}, a word a line")
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), words)
        return load_tokenizer(folder)


def _answers(path: str) -> list[str]:
    """The answers of a VQA model in the order of its outputs."""
    what = "a JSON list of answers, or an object of answers with their numbers from 0 on"
    content = load_json(path, what)
    if isinstance(content, dict) and sorted(content.values(), key=str) == sorted(range(len(content)), key=str):
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(answer, str) for answer in content):
        raise UserError(f"answers: {path}: expected {what}")
    return content


def write_model(model: SohoPreTrainedModel, processor: SohoProcessor, output: Path) -> None:
    """Write a folder that `from_pretrained` loads, as training exports it: complete, or not there.

    Raises:
        UserError: it can't be written.
    """
    try:
        with new_folder(output) as new:
            model.save_pretrained(new)
            processor.save_pretrained(new)
            write_checksums(new)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"output: {output} could not be written: {reason}") from error
