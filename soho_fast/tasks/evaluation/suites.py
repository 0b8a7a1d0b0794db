"""The scores of a suite that needs no training, by the ITM head, and its metrics, by its authors' rules: a tie is never
right.

Shapes: N examples, I images and T = 2 texts of each; scores are log-odds of "matched", scores[n, i, i] of what belongs
together.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from soho_fast.common.errors import CorruptImageError
from soho_fast.common.progress import ProgressLines
from soho_fast.data.images import SohoImageProcessor, decode_image
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.text import describe_fit, encode_texts
from soho_fast.tasks.evaluation.pair_scoring import ImageBlocks, PairScorer, score_pairs
from soho_fast.tasks.evaluation.sharing import Sharing

Metrics = dict[str, float]


def load_image(processor: SohoImageProcessor, image: ImageRef, box: tuple[int, ...] | None) -> Tensor:
    """An image cropped to its box and resized: uint8 (3, height, width). What of the box lies outside of the image is
    black, as Pillow's crop has it.

    Raises:
        CorruptImageError: It can't be read.
    """
    if box is None:
        return processor.load(image)
    left, top, width, height = box
    try:
        return processor.resize_one(tvF.crop(decode_image(image.read()), top, left, height, width))
    except (OSError, ValueError) as error:
        raise CorruptImageError(f"{image}: {error}") from error


def score_suite(task: Any, model: Any, records: Sequence[Any], say: Callable[[str], None]) -> Tensor:
    """The log-odds of "matched" of each image of a record with each of its texts, float32 (N, I, T) on the CPU.

    An image that comes again is encoded once. Texts are cut to the model's length.

    Args:
        task: The `RetrievalTask`: its processor, how many images are encoded at a time, and processes that decode them.
        model: `SohoForImageTextRetrieval`.
        records: N `SuiteRecord`s, of one suite.
        say: Called with lines about how the tokenizer fits the texts, and of progress.

    Raises:
        CorruptImageError: An image can't be read: a published metric covers every one.
    """
    processor = task.processor
    texts = list(dict.fromkeys(text for record in records for text in record.texts))
    say(f"tokenizer: {describe_fit(processor.tokenizer, texts).summary()}")
    encoded = encode_texts(processor.tokenizer, texts, model.config.max_position_embeddings)
    # Texts of the same tokens are one: computed twice they might differ by rounding, and a tie would not be one.
    first: dict[bytes, int] = {}
    place_of = {
        text: first.setdefault(each.ids.tobytes(), place)
        for place, (text, each) in enumerate(zip(texts, encoded, strict=True))
    }
    # Of each distinct image and box the texts that it is scored with.
    texts_of: dict[tuple[ImageRef, tuple[int, ...] | None], dict[int, None]] = {}
    for record in records:
        own_texts = dict.fromkeys(place_of[text] for text in record.texts)
        for image in record.images:
            texts_of.setdefault((image, record.box), {}).update(own_texts)
    scorer = PairScorer(model, encoded)
    images, distinct = processor.image_processor, list(texts_of)

    def load(block: range) -> Any:
        return images.collate_bytes([load_image(images, *distinct[number]) for number in block])

    def encode(pixels: Any) -> Any:
        return scorer.encode(task.on_device(scorer.computing.on_device(pixels)))

    size, workers = task.image_batch, task.workers
    blocks = ImageBlocks(len(distinct), encode, load=load, workers=workers, block_images=size)
    wanted = [np.array(list(each)) for each in texts_of.values()]
    found = score_pairs(scorer, blocks, wanted, Sharing(progress=ProgressLines(say, "batches of images")))
    score_of = {
        (key, place): score
        for (key, each), scores in zip(texts_of.items(), found, strict=True)
        for place, score in zip(each, scores.tolist(), strict=True)
    }
    keys = [([(image, each.box) for image in each.images], [place_of[text] for text in each.texts]) for each in records]
    return torch.tensor([[[score_of[image, text] for text in texts] for image in own] for own, texts in keys])


def pairwise(scores_N12: Tensor) -> Metrics:
    """Share of images whose own text scores strictly above the other (SugarCrepe's `main_eval.py`; in ARO's
    `evaluate_scores` the false text comes first, and argmax takes the first of equal ones)."""
    return {"accuracy": _share(scores_N12[:, 0, 0] > scores_N12[:, 0, 1])}


def valse(scores_N12: Tensor) -> Metrics:
    """Accuracies of captions and foils (VALSE's `lxmert_valse_eval.py`; section 5.2 of the paper).

    `pairwise`: the caption scores strictly above its foil. `caption_precision`: captions that match, log-odds above 0;
    `foil_precision`: foils that do not; `accuracy`: the mean of these two. As there, an example whose foil has log-odds
    of exactly 0 is left out. (LXMERT is compared there by the logit of "matched", here by the log-odds.)

    Raises ValueError: every foil has log-odds of 0.
    """
    kept_N12 = scores_N12[scores_N12[:, 0, 1] != 0]
    if not len(kept_N12):
        raise ValueError("every foil has log-odds of exactly 0; the model's output is constant")
    caption, foil = _share(kept_N12[:, 0, 0] > 0), _share(kept_N12[:, 0, 1] < 0)
    rest = {"accuracy": (caption + foil) / 2, "caption_precision": caption, "foil_precision": foil}
    return {"pairwise": _share(kept_N12[:, 0, 0] > kept_N12[:, 0, 1]), **rest}


def winoground(scores_N22: Tensor) -> Metrics:
    """Text, image and group score (Thrush et al. 2022, section 3.2): each image's own text, each text's own image, and
    both, strictly above the other."""
    own_N2 = scores_N22.diagonal(dim1=1, dim2=2)
    # flip: scores of image i with the other text, and of text i with the other image.
    text_N = (own_N2 > scores_N22.flip(2).diagonal(dim1=1, dim2=2)).all(1)
    image_N = (own_N2 > scores_N22.flip(1).diagonal(dim1=1, dim2=2)).all(1)
    return {"text": _share(text_N), "image": _share(image_N), "group": _share(text_N & image_N)}


def _share(right_N: Tensor) -> float:
    return float(right_N.double().mean())


class Rule(NamedTuple):
    """The metrics of a suite, their values by chance, and the fewest examples of a group that is shown."""

    metrics: Callable[[Tensor], Metrics]
    chance: Metrics
    fewest: int = 1


RULES = {
    "sugarcrepe": Rule(pairwise, {"accuracy": 0.5}),
    "valse": Rule(valse, dict.fromkeys(("pairwise", "accuracy", "caption_precision", "foil_precision"), 0.5)),
    "aro_relation": Rule(pairwise, {"accuracy": 0.5}),
    "aro_attribution": Rule(pairwise, {"accuracy": 0.5}, fewest=25),
    "winoground": Rule(winoground, {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}),
}
"""By the names of `SUITES`."""


class SuiteMetrics(NamedTuple):
    """The metrics of a suite, between 0 and 1.

    `groups`: of each group that has enough examples, in order of appearance. `mean`: of the groups (ARO's macro
    accuracy, the average of SugarCrepe and VALSE); empty without one. `all`: of all examples (Winoground's scores).
    """

    groups: dict[str, Metrics]
    mean: Metrics
    all: Metrics


def suite_metrics(suite: str, scores_NIT: Tensor, groups: Sequence[str]) -> SuiteMetrics:
    """The metrics of a suite.

    Args:
        suite: One of `RULES`.
        scores_NIT: Log-odds of each image with each text.
        groups: The group of each example.

    Raises:
        ValueError: A score is not finite.
    """
    if not scores_NIT.isfinite().all():
        raise ValueError("scores hold NaN or infinity; the model's output is not finite")
    rule = RULES[suite]
    places: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        places.setdefault(group, []).append(number)
    found = {group: rule.metrics(scores_NIT[own]) for group, own in places.items() if len(own) >= rule.fewest}
    mean = {name: sum(each[name] for each in found.values()) / len(found) for name in rule.chance if found}
    return SuiteMetrics(found, mean, rule.metrics(scores_NIT))
