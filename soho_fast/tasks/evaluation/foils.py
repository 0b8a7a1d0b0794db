"""Whether matching tells a caption from its foil, which differs in one word or in the order of two.

By kind of foil, of held-out captions: the share whose score is above the foil's, `foils_sides` and so on; the same
with another image, `..._shuffled`, which the words alone decide; `..._accepted`, the share of foils that count as
matching; and `..._pairs`, of how many. Where there are few words of a kind (sides, numbers, colours), as many pairs
have a word exchanged for another as the other way round: whoever likes one word better, whatever the image, is right
in half of them.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from soho_fast.data.batches.sample import EVALUATION_STREAM
from soho_fast.data.foils import KINDS, Foils
from soho_fast.data.readers.records import ImageTextRecord
from soho_fast.data.text import encode_texts
from soho_fast.model import SohoForPreTraining
from soho_fast.tasks.evaluation.computing import readable
from soho_fast.tasks.evaluation.pair_scoring import PairScorer

_MOST_PAIRS = 200
"""Of a kind."""

_BALANCED = ("sides", "numbers", "colours")
_CALLED = {
    "sides": "another side",
    "numbers": "another number",
    "colours": "another colour",
    "objects": "another object",
    "order": "two words in each other's place",
}


class Pair(NamedTuple):
    """A caption of image number `image`, and its foil."""

    image: int
    caption: str
    foil: str


def choose_pairs(records: Sequence[ImageTextRecord], foils: Foils, rng: np.random.Generator) -> dict[str, list[Pair]]:
    """Pairs by kind, of each at most 200; of all images their first captions before any second one."""
    chosen: dict[str, list[Pair]] = {}
    for kind in KINDS:
        pairs: list[Pair] = []
        # Pairs without one the other way round yet, by (its word, the caption's word).
        waiting: defaultdict[tuple[str, str], list[Pair]] = defaultdict(list)
        rounds = zip_longest(*(record.captions for record in records))
        captions = ((image, text) for texts in rounds for image, text in enumerate(texts) if text is not None)
        for image, text in captions:
            if len(pairs) >= _MOST_PAIRS:
                break
            balanced = kind in _BALANCED
            foil = foils.make(text, records[image].captions, rng, [kind], as_often=not balanced)
            if foil is None:
                continue
            pair = Pair(image, text, foil.text)
            if not balanced:
                pairs.append(pair)
            elif waiting[foil.before, foil.after]:
                pairs += [waiting[foil.before, foil.after].pop(), pair]
            else:
                waiting[foil.after, foil.before].append(pair)
        if pairs:
            chosen[kind] = pairs
    return chosen


def measure_foils(task: Any, model: SohoForPreTraining, captions: Sequence[str]) -> dict[str, float]:
    """Measure a model on foils of held-out captions. The same seed chooses the same ones.

    Args:
        task: The `PretrainingTask`: its held-out records, processor, seed, and how much is computed at a time.
        model: The model; put in evaluation mode for the time of the call.
        captions: Those of the training images: words that stand in foils are of these.

    Returns:
        The metrics of the module, shares between 0 and 1; none of a kind of which no foil can be made. What can't be
        read is left out.
    """
    rng = np.random.default_rng([EVALUATION_STREAM, task.seed])
    # The images of the other metrics.
    order = rng.permutation(len(task.heldout_records))[: task.heldout_images or None]
    records = [task.heldout_records[number] for number in order]
    pairs = choose_pairs(records, Foils(captions), rng)
    texts = list(dict.fromkeys(text for own in pairs.values() for pair in own for text in (pair.caption, pair.foil)))
    place_of = {text: place for place, text in enumerate(texts)}
    encoded = encode_texts(task.processor.tokenizer, texts, task.data.max_text_length) if texts else []
    scorer = PairScorer(model, encoded, pair_batch=task.pair_batch, precision=task.precision)
    was_training = model.training
    model.eval()
    try:
        images = sorted({pair.image for own in pairs.values() for pair in own})
        tokens = _encode(task, scorer, [records[image] for image in images])
        there = [image for image, found in zip(images, tokens, strict=True) if found is not None]
        row_of = {image: row for row, image in enumerate(there)}
        kept = [found for found in tokens if found is not None]
        metrics: dict[str, float] = {}
        for kind, all_of_kind in pairs.items():
            own = [pair for pair in all_of_kind if pair.image in row_of]
            if len(there) < 2 or not own:  # A lone image could not be shuffled.
                continue
            image_P = np.array([row_of[pair.image] for pair in own])
            caption_P = np.array([place_of[pair.caption] for pair in own])
            foil_P = np.array([place_of[pair.foil] for pair in own])
            for name, row_P in (("", image_P), ("_shuffled", (image_P + 1) % len(there))):
                right, wrong = (scorer.score(kept, row_P, text_P) for text_P in (caption_P, foil_P))
                metrics[f"foils_{kind}{name}"] = float((right > wrong).mean())
                if not name:
                    metrics[f"foils_{kind}_accepted"] = float((wrong > 0).mean())
            metrics[f"foils_{kind}_pairs"] = float(len(own))
    finally:
        model.train(was_training)
    return metrics


def _encode(task: Any, scorer: PairScorer, records: Sequence[ImageTextRecord]) -> list[Any]:
    """The tokens of each image; None of what can't be read: it is reported where the other metrics are measured."""
    images = task.processor.image_processor
    tokens: list[Any] = [None] * len(records)
    for rows, batch in readable(task, [record.image for record in records]):
        encoded = scorer.encode(images.normalised(scorer.computing.on_device(batch)))
        for row, found in zip(rows, encoded, strict=True):
            tokens[row] = found
    return tokens


def foil_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Rows of the closing table for metrics of `measure_foils`: what was measured, its value, the baselines."""
    rows = []
    for kind in KINDS:
        if (name := f"foils_{kind}") in metrics:
            label = f"caption above the same with {_CALLED[kind]}, {metrics[f'{name}_pairs']:.0f} pairs"
            value, shuffled, accepted = (100 * metrics[f"{name}{end}"] for end in ("", "_shuffled", "_accepted"))
            beside = f"50.0 % chance, {shuffled:.1f} % shuffled image; {accepted:.1f} % of the others count as matching"
            rows.append([label, f"{value:.1f} %", beside])
    if rows:
        blind = [kind for kind in KINDS if f"foils_{kind}" in metrics and _at_chance(metrics, kind)]
        rows.append(["what matching does not see", ", ".join(blind) or "none of these", "within two standard errors"])
    return rows


def _at_chance(metrics: Mapping[str, float], kind: str) -> bool:
    """Whether captions are not above their foils, within two standard errors of one half."""
    return metrics[f"foils_{kind}"] - 0.5 <= 2 * math.sqrt(0.25 / metrics[f"foils_{kind}_pairs"])
