"""Whether codes point: do the patches that have a code lie on the object that the code stands for?

A code stands for an object that its images have at least `LEAST_LIFT` times as often as all images do, if at least
`LEAST_IMAGES` images have both. That is found on training images, by what they show and not by where. On held-out
images codes are then to point. A patch lies on an object if one of its pixels shows it. Of codes that stand for one:

- `pointing`: of their tokens in images that show the object, the share that lies on it. Tokens in other images are not
  counted, so a code loses nothing by being anywhere else too.
- `pointing_all`: of their tokens in all images, the share that lies on it.
- `pointing_found`: of all pairs of an object and a patch that lies on it, the share whose patch has a code that stands
  for the object. Of a patch that lies on two objects one is found at most.

`..._any_patch`: what the first two would be, were the tokens of each image put in its places at random. All three with
codes that are made afterwards, by `KMeans` with as many clusters, of what is known of each token of the same training
images:

- `..._k_means`: what the CNN gives: what the 1x1 convolution reads, and with a max-pool the mean of its window.
- `..._start_k_means`: the same of the CNN as it was before the training.
- `..._colour_k_means`: mean and standard deviation of its pixels' three channels.
- `..._words_k_means`: of a `WordsDictionary` what it looks up.

K codes, O objects, N images, h x w patches of an image, T tokens, C channels.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from soho_fast.data.readers.records import ImageRef
from soho_fast.model import SohoForPreTraining
from soho_fast.model.visual_encoder import VisualEncoder, cut_features
from soho_fast.tasks.evaluation.computing import Computing, readable

LEAST_LIFT = 5.0
LEAST_IMAGES = 5
"""Images with both the code and the object, below which it does not stand for it."""

_MOST_IMAGES = 1500
"""Training images on which codes get their objects: enough for the demo's 124."""

Touched = Mapping[str, np.ndarray]
"""Of an image, bool (h, w): the patches that each object touches, by the object's name."""


class Pointing(NamedTuple):
    """Shares between 0 and 1, see the module; NaN where nothing was counted.

    share, any_patch: `pointing`, and what it would be at random. num_tokens: of how many tokens.
    share_of_all, any_patch_of_all: `pointing_all`, and what it would be at random.
    found: `pointing_found`.
    num_codes: codes that stand for an object.
    """

    share: float
    any_patch: float
    share_of_all: float
    any_patch_of_all: float
    found: float
    num_tokens: int
    num_codes: int

    def metrics(self, of: str = "") -> dict[str, float]:
        """By the names in the module; `of` ends those of k-means. Empty if there are no such tokens."""
        by_chance = {} if of else {"_any_patch": self.any_patch, "_all_any_patch": self.any_patch_of_all}
        shares = {f"{of}": self.share, f"_all{of}": self.share_of_all, f"_found{of}": self.found}
        return {f"pointing{name}": share for name, share in (shares | by_chance).items()} if self.num_tokens else {}


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
    hits, by_chance, num_shown, num_all, num_to_find = 0, 0.0, 0, 0, 0
    for code_hw, objects in zip(codes, touched, strict=True):
        real_hw = code_hw >= 0
        num_to_find += sum(int(touched_hw[real_hw].sum()) for touched_hw in objects.values())
        for code, count in zip(*np.unique(code_hw[real_hw], return_counts=True), strict=True):
            name = objects_K[code]
            num_all += int(count) * (name is not None)
            touched_hw = objects.get(name or "")
            if touched_hw is not None:
                hits += int(touched_hw[code_hw == code].sum())
                by_chance += int(count) * float(touched_hw[real_hw].mean())
                num_shown += int(count)

    def share(counted: float, total: int) -> float:
        return counted / total if total else float("nan")

    return Pointing(
        share(hits, num_shown), share(by_chance, num_shown), share(hits, num_all), share(by_chance, num_all),
        share(hits, num_to_find), num_shown, sum(name is not None for name in objects_K),
    )  # fmt: skip


def measure_pointing(task: Any, model: SohoForPreTraining, training: Sequence[ImageRef]) -> dict[str, float]:
    """How far a model's codes point, on images whose objects are known: those of a demo corpus.

    Args:
        task: the `PretrainingTask`; codes are to point at the objects of its held-out images.
        model: in evaluation mode.
        training: images on which codes get their objects; some of them are taken, evenly spread.

    Returns:
        The metrics of the module, shares between 0 and 1; empty without codes, or without such images. Those of k-means
        are left out where there are fewer tokens than codes, and of the released code.
    """
    heldout = [record.image for record in task.heldout_records]
    if not scenes_of(str(training[0].store)) or not scenes_of(str(heldout[0].store)):
        return {}
    if not (model.config.dictionary != "none" and model.config.use_dictionary_output):
        return {}
    spread = np.unique(np.linspace(0, len(training) - 1, min(_MOST_IMAGES, len(training))).round().astype(int))
    start = task.encoder_at_start(Computing(model, task.precision).device)
    known = _look_up(task, model, start, [training[place] for place in spread.tolist()])
    asked = _look_up(task, model, start, heldout)
    metrics: dict[str, float] = {}
    num_codes = model.config.num_codes
    codings = {"": (known.codes, asked.codes)}
    codings |= {f"_{name}": _k_means(known, asked, name, num_codes) for name in known.features}
    for name, (known_codes, asked_codes) in codings.items():
        if known_codes:
            objects_K = objects_of_codes(known_codes, known.touched, num_codes)
            metrics |= pointing(objects_K, asked_codes, asked.touched).metrics(name)
    return metrics if "pointing" in metrics else {}


@dataclass
class _Seen:
    """Images whose objects are known: codes int (h, w), what their objects touch, and by what k-means is called what it
    reads, (h * w, C)."""

    codes: list[np.ndarray] = field(default_factory=list)
    touched: list[Touched] = field(default_factory=list)
    features: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))


def _k_means(known: _Seen, asked: _Seen, name: str, num_codes: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Codes of both as k-means of the features of the first gives them; none where it cannot."""
    from soho_fast.cluster import KMeans

    if not asked.features[name] or sum(map(len, known.features[name])) < num_codes:
        return [], []
    # The start is named, since the default one takes minutes for thousands of clusters. This process is alone here.
    means = KMeans(num_codes, init="mini-batch", random_state=0, distributed=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of clusters that stay empty, as codes may
        means.fit(torch.cat(known.features[name]))

    def labels(seen: _Seen) -> list[np.ndarray]:
        label_T = means.predict(torch.cat(seen.features[name])).numpy()
        bounds = np.cumsum([code_hw.size for code_hw in seen.codes])[:-1]
        parts = zip(np.split(label_T, bounds), seen.codes, strict=True)
        return [label_t.reshape(code_hw.shape) for label_t, code_hw in parts]

    return labels(known), labels(asked)


@torch.no_grad()
def _look_up(task: Any, model: SohoForPreTraining, start: VisualEncoder | None, images: Sequence[ImageRef]) -> _Seen:
    """Of each image whose objects are known and that can be read; `start` is the encoder before the training."""
    computing, processor, encoder = Computing(model, task.precision), task.processor, model.base().visual_encoder
    words = getattr(model.base().visual_dictionary, "words", None)

    seen = _Seen()
    for row_numbers, batch in readable(task, images):
        refs = [images[row] for row in row_numbers]
        with computing():
            given = processor.image_processor.normalised(computing.on_device(batch))
            pixels, mask = given["pixel_values"], given["pixel_mask"]
            maps: dict[str, list[torch.Tensor]] = {}
            if model.config.official is None:  # The released encoder's tokens need the pixels.
                features_BChw, mask_Bhw = encoder.backbone_output(pixels, mask)
                given = {"backbone_features": features_BChw, "backbone_mask": mask_Bhw}
                maps["k_means"] = _pooled(features_BChw, mask_Bhw, encoder.pool)
                if start is not None:
                    maps["start_k_means"] = _pooled(*start.backbone_output(pixels, mask), encoder.pool)
                side = pixels.shape[-1] // features_BChw.shape[-1] * encoder.pool
                maps["colour_k_means"] = _colours(pixels, mask, side)
            visual = model.encode_images(**given)
        assert visual.index is not None, "the model has a dictionary"
        index_Bhw = visual.index.masked_fill(~visual.valid, -1).view(len(refs), -1, visual.columns).cpu().numpy()
        if words is not None:
            said_BCL = words(visual.features).movedim(-1, 1)
            maps["words_k_means"] = list(said_BCL.unflatten(2, (-1, visual.columns)).cpu())
        for row, (ref, index_hw) in enumerate(zip(refs, index_Bhw, strict=True)):
            # Without the padding, which lies at the right and below.
            rows, columns = (int((index_hw >= 0).any(axis).sum()) for axis in (1, 0))
            objects = objects_touched(str(ref.store), ref.name, rows, columns)
            if objects is not None:
                seen.codes.append(index_hw[:rows, :columns])
                seen.touched.append(objects)
                for name, of_images in maps.items():
                    seen.features[name].append(of_images[row][:, :rows, :columns].flatten(1).T)
    return seen


def _pooled(map_BChw: torch.Tensor, mask_Bhw: torch.Tensor | None, side: int) -> list[torch.Tensor]:
    """Means of windows, of each image without its padding."""
    # A last window that is partly outside is a token too; its mean is of what is inside.
    return [
        F.avg_pool2d(map_Chw, side, ceil_mode=True, count_include_pad=False)
        for map_Chw in cut_features(map_BChw.float().cpu(), mask_Bhw)
    ]


def _colours(pixels_B3HW: torch.Tensor, mask_BHW: torch.Tensor | None, side: int) -> list[torch.Tensor]:
    """Mean and standard deviation of the channels in windows, (6, h, w) of each image."""
    parts = zip(_pooled(pixels_B3HW, mask_BHW, side), _pooled(pixels_B3HW.square(), mask_BHW, side), strict=True)
    return [torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt()]) for mean, square in parts]


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
