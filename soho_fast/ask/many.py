"""A file of questions about the images of a folder or an archive, answered into a file that grows: `ask many`.

Both files are JSON lines. A line of the questions has the fields of the model's question, images by their names:

    {"image": "dogs/1.jpg", "question": "how many are there?"}          question answering
    {"image": "dogs/1.jpg", "texts": ["two dogs", "an empty street"]}   retrieval, pre-training
    {"image": "dogs/1.jpg", "text": "an animal is there"}               visual entailment
    {"left": "1.png", "right": "2.png", "text": "both show a dog"}      visual reasoning

and any others, which are handed on. A line of the results has its number, from 1, all that the question's line has, and
`answers` as `SohoPipeline` gives them; or `error`, why it has no answers.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from soho_fast.ask.pipeline import FIELDS, Answer, LoadedImage, Question, SohoPipeline, local_folder, windows
from soho_fast.common.checksums import folder_digest
from soho_fast.common.errors import CorruptImageError, UserError, print_line
from soho_fast.common.files import read_json, write_atomically
from soho_fast.common.hub import no_such_path
from soho_fast.common.import_path import own_code
from soho_fast.common.progress import ProgressLines
from soho_fast.common.versions import in_words, program
from soho_fast.common.workers import loaded_ahead
from soho_fast.data.overlap import content_of
from soho_fast.data.readers.records import ImageRef, ReadReport, field_of, find_images, load_json_lines

_OWN = ("line", "answers", "error")
# Of a score, which is at most 1.
_DIGITS = 6


def ask_many(
    model: str,
    questions: str | os.PathLike[str],
    results: str | os.PathLike[str],
    *,
    images: Sequence[str] = (),
    top_k: int | None = None,
    batch_size: int = 8,
    workers: int = 2,
    precision: str | None = None,
    compile: bool = False,
    say: Callable[[str], None] = print_line,
) -> None:
    """Answer the questions of a file, in their order, and write each line as soon as it is known.

    Called again after it was stopped, however that was, it goes on behind the last whole line; what comes out is what
    comes of a call that nothing stops. Beside the results, `RESULTS.about.json` says what they are of.

    Args:
        model: As of `SohoPipeline.from_pretrained`, as `precision` and `compile`.
        questions: The file of questions.
        results: The file that is written.
        images: Folders or .zip files in which an image is looked for first; then in the folder of `questions`.
        top_k: Number of answers to a question.
        batch_size: Images encoded at a time.
        workers: Processes that decode images ahead of the model; 0 decodes in this one.
        say: Called with each line of progress.

    Raises:
        ValueError, OSError: a file can't be used; a line does not follow the format, which is named; no image is found;
            or the results that are there are of another model, other questions or settings. Nothing was changed then.
    """
    questions, results = Path(questions), Path(results)
    if not results.parent.is_dir() or results.is_dir():
        reason = "is a folder" if results.is_dir() else no_such_path(results.parent)
        raise UserError(f"results: {results} can't be written ({reason}); expected the name of a file")
    lines = load_json_lines(questions, 'one question a line, such as {"image": "dog.jpg", "question": "what is it?"}')
    soho = SohoPipeline.from_pretrained(model, precision=precision, compile=compile)
    asked, found = _questions([*images, questions.parent], lines, soho.action, questions)
    about = {
        "model": folder_digest(local_folder(model)),
        "questions": hashlib.sha256(questions.read_bytes()).hexdigest(),
        "images": [os.path.abspath(each) for each in images],
        "set of images": content_of(image for image in found.values() if image is not None),
        "top_k": top_k,
        "batch_size": batch_size,
        "precision": precision,
        "compile": compile,
        "code": own_code(),
        "program": program(),
    }
    with _open_locked(results) as file:
        done, failed, before = _kept(file, results, about, len(lines))
        if done:
            say(f"{results}: {done:,} of {len(lines):,} lines are there")
        if not before or not before.items() <= program().items():
            others = {name: value for name, value in before.items() if program().get(name) != value}
            say(f"{results}: its first {done:,} lines were answered by another version, {in_words(others)}")
        answers = _answers(soho, asked, found, done, top_k, batch_size, workers)
        progress = ProgressLines(say, "answered")
        try:
            with closing(answers):
                for line, answer in answers:
                    if isinstance(answer, ValueError):
                        failed.append(line)
                        added: dict[str, Any] = {"error": str(answer)}
                    else:
                        added = {"answers": [{**row, "score": round(row["score"], _DIGITS)} for row in answer]}
                    written = json.dumps({"line": line, **lines[line - 1][1], **added}).encode() + b"\n"
                    while written:  # a file without a buffer may take a part
                        written = written[file.write(written) :]
                    progress(line, len(lines))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{results}: stopped; the same command goes on behind its last line") from None
        except OSError as error:
            raise UserError(f"{results} can't be written ({error.strerror}); the same command goes on") from error
    whole = f"{results}: {len(lines):,} lines"
    first = f"; {len(failed):,} have no answer but an error, the first is line {failed[0]}" if failed else ""
    say(whole + first)


def _questions(
    images: Sequence[str | os.PathLike[str]], lines: Sequence[tuple[str, Any]], action: str, path: Path
) -> tuple[list[Question], dict[str, ImageRef | None]]:
    """The lines as questions, images by their names, and where these are; None: nowhere."""
    *names, words = FIELDS[action]
    shown = []
    for where, content in lines:
        own = next((name for name in _OWN if name in content), None)
        if own is not None:
            raise ValueError(f"{where}: field '{own}' is one of the results; give it another name")
        shown += [(field_of(content, name, str, where),) for name in names]
        given = field_of(content, words, list if action == "rank" else str, where)
        if action == "rank" and not (given and all(isinstance(text, str) for text in given)):
            raise ValueError(f"{where}: field 'texts' is {given!r:.60}, expected a list of at least one text")
    found = find_images(shown, images, annotations=path, missing_images="skip", report=ReadReport())
    where_of = {name: image for (name,), image in zip(shown, found, strict=True)}
    return [Question(tuple(content[name] for name in names), content[words]) for _, content in lines], where_of


def _answers(
    soho: SohoPipeline,
    questions: Sequence[Question],
    where_of: Mapping[str, ImageRef | None],
    done: int,
    top_k: int | None,
    batch_size: int,
    workers: int,
) -> Generator[tuple[int, Answer | ValueError], None, None]:
    """The answers to what is not done yet, by the numbers of the lines, from 1."""
    parts = list(windows(questions, batch_size))
    ends = list(accumulate(map(len, parts)))
    # A window of which a part is there is answered again as a whole: rounding depends on what is computed together.
    left = [number for number, end in enumerate(ends) if end > done]
    processor = soho.processor.image_processor

    def load(number: int) -> dict[str, np.ndarray | str]:
        """Pixels of each image of a window, or why it has no pixels: arrays are copied from process to process, where
        tensors would share memory and take an open file each."""
        loaded: dict[str, np.ndarray | str] = {}
        for name in dict.fromkeys(name for question in parts[number] for name in question.images):
            image = where_of[name]
            try:
                loaded[name] = f"{name}: there is no such file" if image is None else processor.load(image).numpy()
            except CorruptImageError as error:
                loaded[name] = str(error)
        return loaded

    with closing(loaded_ahead(load, left, workers=workers)) as loads:
        for number, loaded in zip(left, loads, strict=True):
            shown = {
                name: LoadedImage(
                    ValueError(f"image: {content}") if isinstance(content, str) else torch.from_numpy(content)
                )
                for name, content in loaded.items()
            }
            together = [Question(tuple(shown[name] for name in each.images), each.words) for each in parts[number]]
            answers = soho.answer_together(together, top_k, batch_size)
            first = ends[number] - len(answers)
            yield from [(line, answer) for line, answer in enumerate(answers, start=first + 1) if line > done]


def _open_locked(path: Path) -> BinaryIO:
    """The file, made if it is missing, for one process alone. Raises UserError: another one writes it."""
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
    except OSError as error:
        raise UserError(f"results: {path} can't be written ({error.strerror})") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # POSIX leaves open which of the two says so; a file system without locks says something else.
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise UserError(
                f"results: {path} is being written by another process; wait for its end, or stop it"
            ) from error
    return file


def _kept(file: BinaryIO, path: Path, about: Mapping[str, Any], total: int) -> tuple[int, list[int], Any]:
    """How many lines are there, which have no answer, and the program that began; a line that is not whole is cut off.

    Raises:
        UserError: what is there is of something else.
    """
    beside = path.with_name(f"{path.name}.about.json")
    content = file.read()
    if not content:
        write_atomically(beside, json.dumps(about, indent=1) + "\n")
        return 0, [], about["program"]
    way_out = "give another name for the results, or delete them"
    try:
        known = dict(read_json(beside))
    except (OSError, ValueError, TypeError):
        raise UserError(f"results: {path} holds something, and {beside.name} does not say what; {way_out}") from None
    changed = [name for name in about if name != "program" and known.get(name, about[name]) != about[name]]
    if changed:
        raise UserError(f"results: {path} was made with another {', '.join(changed)}; {way_out}")
    whole = content[: content.rfind(b"\n") + 1]
    failed = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("line") != number or number > total:
            raise UserError(f"results: {path}: line {number} is not as it was written; {way_out}")
        if "error" in found:
            failed.append(number)
    file.seek(len(whole))
    file.truncate()
    return whole.count(b"\n"), failed, known.get("program") or {}
