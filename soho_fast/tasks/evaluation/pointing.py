"""Whether codes point: do the patches that have a code lie on the object that the code stands for?

A code stands for an object that its images have at least `LEAST_LIFT` times as often as all images do. That is found on
some images, by what they show and not by where. On other images that show the object, patches of the code are then to
touch it. Beside it stands what any patch of these images does.

K codes, O objects, N images, h x w patches of an image.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from soho_fast.common.errors import CorruptImageError
from soho_fast.common.workers import loaded_ahead
from soho_fast.data.readers.records import ImageRef
from soho_fast.model import SohoForPreTraining
from soho_fast.tasks.evaluation.computing import Computing

LEAST_LIFT = 5.0
LEAST_IMAGES = 5
"""Images with both the code and the object, below which it does not stand for it."""

_MOST_IMAGES = 1500
"""Training images on which codes get their objects: enough for the demo's 124."""

Touched = Mapping[str, np.ndarray]
"""Of an image, bool (h, w): the patches that each object touches, by the object's name."""


class Pointing(NamedTuple):
    """Shares between 0 and 1; NaN where nothing was counted.

    share: of the tokens of codes that stand for an object, in images that have it, those whose patch touches it.
    any_patch: what a patch drawn at random from the same image would do.
    num_tokens: how many of these tokens there are. num_codes: codes that stand for an object.
    """

    share: float
    any_patch: float
    num_tokens: int
    num_codes: int


def objects_of_codes(codes: Sequence[np.ndarray], touched: Sequence[Touched], num_codes: int) -> list[str | None]:
    """The object that each code stands for.

    Args:
        codes: int (h, w) of each image, -1 where there is no token.
        touched: the objects of each image; their places are not read.
        num_codes: K.

    Returns:
        Of each code the name, or None. The object of the largest lift; of equal ones the one in most images.
    """
    names = sorted({name for objects in touched for name in objects})
    has_NK = np.zeros((len(codes), num_codes), dtype=np.float32)
    has_NO = np.zeros((len(codes), len(names)), dtype=np.float32)
    for image, (code_hw, objects) in enumerate(zip(codes, touched, strict=True)):
        has_NK[image, code_hw[code_hw >= 0]] = 1
        has_NO[image] = [name in objects for name in names]
    both_KO = has_NK.T @ has_NO
    expected_KO = has_NK.sum(0)[:, None] * has_NO.sum(0) / max(len(codes), 1)
    lift_KO = np.where(both_KO >= LEAST_IMAGES, both_KO / np.maximum(expected_KO, 1e-9), 0.0)
    if not names:
        return [None] * num_codes
    # By lift, then by images: the last one is the best.
    best_K = np.lexsort((both_KO, lift_KO), axis=-1)[:, -1]
    return [names[best] if lift_O[best] >= LEAST_LIFT else None for best, lift_O in zip(best_K, lift_KO, strict=True)]


def pointing(objects_K: Sequence[str | None], codes: Sequence[np.ndarray], touched: Sequence[Touched]) -> Pointing:
    """How far codes point; see the module.

    Args:
        objects_K: as `objects_of_codes` gives them, of other images than these.
        codes: int (h, w) of each image, -1 where there is no token.
        touched: of each image.
    """
    hits, by_chance, total = 0, 0.0, 0
    for code_hw, objects in zip(codes, touched, strict=True):
        for code, count in zip(*np.unique(code_hw[code_hw >= 0], return_counts=True), strict=True):
            touched_hw = objects.get(objects_K[code] or "")
            if touched_hw is not None:
                hits += int(touched_hw[code_hw == code].sum())
                by_chance += int(count) * float(touched_hw[code_hw >= 0].mean())
                total += int(count)
    num_codes = sum(name is not None for name in objects_K)
    if not total:
        return Pointing(float("nan"), float("nan"), 0, num_codes)
    return Pointing(hits / total, by_chance / total, total, num_codes)


def measure_pointing(task: Any, model: SohoForPreTraining, training: Sequence[ImageRef]) -> dict[str, float]:
    """How far a model's codes point, on images whose objects are known: those of a demo corpus.

    Args:
        task: the `PretrainingTask`; codes are to point at the objects of its held-out images.
        model: in evaluation mode.
        training: images on which codes get their objects; some of them are taken, evenly spread.

    Returns:
        `pointing` and `pointing_any_patch`, shares between 0 and 1; empty without codes, or without such images.
    """
    heldout = [record.image for record in task.heldout_records]
    if not scenes_of(str(training[0].store)) or not scenes_of(str(heldout[0].store)):
        return {}
    if not (model.config.use_dictionary and model.config.use_dictionary_output):
        return {}
    spread = np.unique(np.linspace(0, len(training) - 1, min(_MOST_IMAGES, len(training))).round().astype(int))
    chosen = [training[place] for place in spread.tolist()]
    objects_K = objects_of_codes(*_look_up(task, model, chosen), model.config.num_codes)
    found = pointing(objects_K, *_look_up(task, model, heldout))
    return {"pointing": found.share, "pointing_any_patch": found.any_patch} if found.num_tokens else {}


@torch.no_grad()
def _look_up(
    task: Any, model: SohoForPreTraining, images: Sequence[ImageRef]
) -> tuple[list[np.ndarray], list[Touched]]:
    """The codes (h, w) of each image whose objects are known and that can be read, and what these touch."""
    computing, processor = Computing(model, task.data.precision), task.processor

    def load(first: int) -> tuple[list[ImageRef], Any]:
        refs, pixels = [], []
        for ref in images[first : first + task.data.image_batch]:
            try:
                pixels.append(processor.image_processor.load(ref))
                refs.append(ref)
            except CorruptImageError:  # It is reported where the other metrics are measured.
                continue
        return refs, processor.image_processor.collate_bytes(pixels) if refs else None

    codes, touched = [], []
    for refs, batch in loaded_ahead(load, range(0, len(images), task.data.image_batch), workers=task.workers):
        if not refs:
            continue
        with computing():
            visual = model.encode_images(**processor.image_processor.normalised(computing.on_device(batch)))
        assert visual.index is not None, "the model has a dictionary"
        shape = (len(refs), -1, visual.columns)
        index_Bhw = visual.index.masked_fill(~visual.valid, -1).view(shape).cpu().numpy()
        for ref, index_hw in zip(refs, index_Bhw, strict=True):
            # Without the padding, which lies at the right and below.
            rows, columns = (int((index_hw >= 0).any(axis).sum()) for axis in (1, 0))
            objects = objects_touched(str(ref.store), ref.name, rows, columns)
            if objects is not None:
                codes.append(index_hw[:rows, :columns])
                touched.append(objects)
    return codes, touched


def objects_touched(root: str, name: str, rows: int, columns: int) -> Touched | None:
    """Where an image of the demo corpus shows its objects; None of other images, or where the grid is not square.

    Args:
        root: folder of the image's data set.
        name: its file in there.
        rows, columns: of its grid.
    """
    scene = scenes_of(root).get(Path(name).name)
    if scene is None or rows != columns:
        return None
    from soho_fast.data.mini.builder import objects_touching

    return objects_touching(scene, rows)


@lru_cache
def scenes_of(root: str) -> Mapping[str, Any]:
    """Those of a demo corpus, by the names of their files; none of other folders."""
    try:
        from soho_fast.data.mini.builder import corpus_scenes

        return corpus_scenes(root)
    except (FileNotFoundError, ImportError):
        return {}
