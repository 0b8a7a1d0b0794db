"""Labels of a folder of images, without training: `ask label`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soho_fast.ask.pipeline import TEMPLATES, Prompts, SohoPipeline
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.hub import no_such_path
from soho_fast.data.stores import images_below


def label_images(
    model: str,
    images: str,
    labels: str,
    templates: Sequence[str] = TEMPLATES,
    *,
    top_k: int = 1,
    batch_size: int = 8,
    precision: str | None = None,
    compile: bool = False,
    as_json: bool = False,
) -> None:
    """Print the labels of each image; see `SohoPipeline.label`.

    An image that can't be used gets a line that says why. Where every image lies in a folder named as its label, the
    accuracy is printed too, beside that of the most frequent label.

    Args:
        model, precision, compile: As of `SohoPipeline.from_pretrained`.
        images: A folder, with those below it, or one image.
        labels: Labels between commas, or a file with one a line.
        templates: Texts with `{}`, or one file with one a line.
        top_k: Number of labels printed of an image.
        batch_size: Images encoded at a time.
        as_json: Print a JSON object for each image: {"image", "answers"}, or {"image", "error"}.

    Raises:
        ValueError, OSError: A label or a template can't be used, the model can't tell two labels apart, there is no
            image, or as `SohoPipeline.from_pretrained`.
    """
    paths = image_paths(images)
    prompts = Prompts(_lines(labels.split(",") if not Path(labels).is_file() else [labels]), _lines(templates))
    soho = SohoPipeline.from_pretrained(model, precision=precision, compile=compile)
    _check_apart(soho, prompts)
    shown, right, unusable = Counter[str](), 0, 0
    for path, answer in zip(paths, _answers(soho, paths, prompts, top_k, batch_size), strict=True):
        unusable += isinstance(answer, ValueError)
        rows: Any = [] if isinstance(answer, ValueError) else answer
        if as_json:
            found = {"answers": rows} if rows else {"error": str(answer)}
            print_line(json.dumps({"image": str(path), **found}))
        else:
            best = ", ".join(f"{100 * row['score']:5.1f} %  {row['label']}" for row in rows)
            print_line(f"{path}: {best or answer}")
        if rows:
            shown[path.parent.name] += 1
            right += rows[0]["label"] == path.parent.name
    beside = sys.stderr if as_json else sys.stdout
    if unusable:
        print_line(f"{unusable:,} of {len(paths):,} images can't be used", beside)
    if len(shown) > 1 and set(shown) <= set(prompts.labels):
        most, count = shown.most_common(1)[0]
        accuracy, always = (f"{100 * part / shown.total():.1f} %" for part in (right, count))
        said = f"accuracy {accuracy} of {shown.total():,} images in folders named as their label"
        print_line(f"{said}; always {most!r}: {always}", beside)


def _answers(soho: SohoPipeline, paths: Sequence[Path], prompts: Prompts, top_k: int, batch_size: int) -> Iterator[Any]:
    """The answers about some images at a time, to print them as they come."""
    for first in range(0, len(paths), 4 * batch_size):
        some = paths[first : first + 4 * batch_size]
        yield from soho.rank(some, prompts, top_k=top_k, batch_size=batch_size, errors="return")


def image_paths(images: str) -> list[Path]:
    """The images of a folder and of those below it, or the one image. Raises OSError, UserError: there is none."""
    folder = Path(images)
    if not folder.exists():
        raise UserError(f"images: {images} can't be read ({no_such_path(images)})")
    names = images_below(folder) if folder.is_dir() else [""]
    if not names:
        raise UserError(f"images: {images} holds no image, nor does a folder in it")
    return [folder / name for name in names]


def _lines(given: Sequence[str]) -> list[str]:
    """What was given, or the lines of the one file that was."""
    if len(given) == 1 and Path(given[0]).is_file():
        try:
            given = Path(given[0]).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{given[0]}: not UTF-8 ({error}); expected one text a line") from None
    return [each.strip() for each in given if each.strip()]


def _check_apart(soho: SohoPipeline, prompts: Prompts) -> None:
    """Raises ValueError: a text can't be read, or two labels are the same tokens."""
    seen: dict[tuple[int, ...], str] = {}
    for number, ids in enumerate(soho.token_ids(prompts)):
        label = prompts.labels[number * len(prompts.labels) // len(prompts)]
        if (other := seen.setdefault(tuple(ids), label)) != label:
            raise ValueError(f"labels: {other!r} and {label!r} are the same tokens; this model lacks words of them")
