"""Whether codes mean something: their words, and the objects under their patches, against k-means and shuffled codes.

T tokens with a code, C channels, K codes, V words, S labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from soho_fast.common.command_line import Parser
from soho_fast.common.extras import from_extra
from soho_fast.explore.build import add_data_arguments, open_model

with from_extra("explore"):
    import numpy as np
    from scipy.stats import binomtest, entropy

    from soho_fast.explore.words import Vocabulary, count_both, is_associated, rank_words

TAKES_FIELDS = True
MOST_IMAGES = 5000
SEED = 0
LEVEL = 0.95

_RESAMPLES = 200


def add_arguments(parser: Parser) -> None:
    """What `measure` takes."""
    parser.epilog = "Every field of the recipe can be given too, as in training (train.py --recipe ... --help)."
    add_data_arguments(parser)
    parser.set_defaults(images=MOST_IMAGES)


def run(options: argparse.Namespace) -> int:
    """Measure, and print the table."""
    from soho_fast.common.tables import print_table

    opened = open_model(options, print)
    source = opened.source("", print)
    print_table(measure(source, print))
    return 0


@dataclass
class Seen:
    """What is measured on.

    code: int64 (T,). image: int64 (T,), by number. features: float32 (T, C). label: int64 (T,), the number of what lies
    under the patch in `labels`, names, where "" is what is not known; is_object: bool (T,), whether it is an object and
    not a background. shown: of each image the labels of its objects that lie under patches. captions: of each image.
    """

    code: np.ndarray
    image: np.ndarray
    features: np.ndarray
    label: np.ndarray
    is_object: np.ndarray
    labels: list[str]
    shown: list[list[int]]
    captions: list[Sequence[str]]

    @property
    def num_images(self) -> int:
        """All of them."""
        return len(self.captions)

    def codings(self, num_codes: int) -> dict[str, np.ndarray]:
        """The model's codes, and what stands beside them: k-means of the features, and the same codes shuffled."""
        means = k_means(self.features, num_codes)
        return {"the model's codes": self.code, "k-means": means, "shuffled codes": shuffled(self.code)}


def measure(source: Any, say: Callable[[str], None] = print) -> Any:
    """The table of all metrics.

    Args:
        source: A `ModelSource`; each of its images is looked up.
        say: Called with each line of what is done.

    Returns:
        A `common.tables.Table`: a row for each metric; columns for the model's codes, k-means and shuffled codes.
    """
    from soho_fast.common.tables import Table

    seen = look(source, say)
    num_codes = source.num_codes // source.num_levels
    say(f"k-means of {len(seen.code):,} features with {num_codes:,} means")
    codings = seen.codings(num_codes)
    rows = [
        ["codes with a token", *(f"{np.unique(code).size:,} of {num_codes:,}" for code in codings.values())],
        ["perplexity of their use", *(f"{np.exp(entropy(np.bincount(code))):,.0f}" for code in codings.values())],
    ]
    rows += _word_rows(seen, codings)
    rows += _object_rows(seen, codings, num_codes)
    title = f"{seen.num_images:,} images, {len(seen.code):,} patches"
    if any(seen.labels):
        title += f", of {seen.is_object.sum():,} an object covers most"
    return Table(title, ["measure", *codings], rows)


def look(source: Any, say: Callable[[str], None] = print) -> Seen:
    """All images of a `ModelSource`, looked up; labels where they are of the demo corpus."""
    from soho_fast.common.progress import ProgressLines

    parts, objects, captions = [], [], []
    progress = ProgressLines(say, "images")
    for batch in source.batches():
        index_Bhw, feat_BLC = batch.index.cpu().numpy(), batch.features.float().cpu().numpy()
        for number, image in enumerate(batch.images):
            valid_hw = index_Bhw[number] >= 0
            names, is_object, found = _under_patches(str(image.ref.store), image.ref.name, valid_hw)
            code = index_Bhw[number][valid_hw].astype(np.int64)
            parts.append((code, feat_BLC[number][valid_hw.ravel()], names, is_object))
            objects.append(found)
            captions.append(image.captions)
        progress(len(captions), source.num_images)
    image_T = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    code_T, feat_TC, name_T, is_object_T = (np.concatenate(each) for each in zip(*parts, strict=True))
    labels, label_T = np.unique(name_T, return_inverse=True)
    number_of = {name: number for number, name in enumerate(labels.tolist())}
    shown = [[number_of[name] for name in found if name in number_of] for found in objects]
    return Seen(code_T, image_T, feat_TC, label_T, is_object_T, list(number_of), shown, captions)


def _under_patches(root: str, name: str, valid_hw: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """For each True of `valid_hw` what lies under the patch, "" where that is not known, and whether it is an object;
    and all objects of the image."""
    scene = _scenes(root).get(Path(name).name)
    rows, columns = int(valid_hw.any(1).sum()), int(valid_hw.any(0).sum())
    if scene is None or rows != columns:
        unknown = np.zeros(int(valid_hw.sum()), dtype=bool)
        return np.full(len(unknown), ""), unknown, []
    from soho_fast.data.mini.builder import objects_in_patches

    # The same photograph or colour is one label, whichever part of it a patch shows.
    background = scene.background.photo or f"{scene.background.colour} background"
    objects = [item.name for item in scene.objects]
    place = objects_in_patches(scene, rows, columns).ravel() + 1
    return np.array([background, *objects])[place], place > 0, objects


@lru_cache
def _scenes(root: str) -> Mapping[str, Any]:
    """Those of a demo corpus, by the names of their files; none of other folders."""
    try:
        from soho_fast.data.mini.builder import corpus_scenes

        return corpus_scenes(root)
    except (FileNotFoundError, ImportError):
        return {}


def shuffled(code_T: np.ndarray) -> np.ndarray:
    """The same codes, as often each, over other patches and images."""
    return np.random.default_rng(SEED).permutation(code_T)


def k_means(features_TC: np.ndarray, num_codes: int) -> np.ndarray:
    """int64 (T,), the nearest of as many means, found by Lloyd's algorithm from k-means++ with a fixed seed."""
    with from_extra("demo"):
        from sklearn.cluster import KMeans

    means = KMeans(min(num_codes, len(features_TC)), n_init=1, max_iter=100, random_state=SEED)
    return means.fit_predict(features_TC).astype(np.int64)


def words_of_active_codes(
    code_T: np.ndarray, image_T: np.ndarray, captions: Iterable[Sequence[str]]
) -> list[np.ndarray]:
    """The `rank_words` of each code that has a token, whose intervals hold for each code alone."""
    captions = list(captions)
    captioned_N = np.array([any(text.strip() for text in texts) for texts in captions], dtype=bool)
    vocabulary = Vocabulary()
    numbers = [vocabulary.numbers(texts) for texts in captions]
    chosen = vocabulary.choose()
    begins = np.cumsum([0, *map(len, numbers)])
    words_NV = chosen.table(np.concatenate([*numbers, np.zeros(0, dtype=np.int32)]), begins)
    pairs = np.unique(np.stack([code_T, image_T], axis=1), axis=0)
    active = np.unique(pairs[:, 0])
    pairs = pairs[captioned_N[pairs[:, 1]]]
    place = np.searchsorted(active, pairs[:, 0])
    images_K = np.bincount(place, minlength=len(active))
    both_KV = count_both(place, pairs[:, 1], len(active), words_NV).toarray()
    num_captioned = int(captioned_N.sum())
    return [
        rank_words(both_V, images, chosen.images, num_captioned)
        for both_V, images in zip(both_KV, images_K.tolist(), strict=True)
    ]


def _word_rows(seen: Seen, codings: Mapping[str, np.ndarray]) -> list[list[str]]:
    if not any(seen.captions):
        return []
    shares = []
    for code in codings.values():
        words = words_of_active_codes(code, seen.image, seen.captions)
        shares.append(_share_of(sum(map(is_associated, words)), len(words)))
    return [["codes associated with a word", *shares]]


def _share_of(count: int, total: int) -> str:
    """A share with Clopper and Pearson's interval."""
    interval = binomtest(count, total).proportion_ci(LEVEL)
    return f"{count / total:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def count_labels(
    code_T: np.ndarray, label_T: np.ndarray, num_codes: int, num_labels: int, weight_T: np.ndarray | None = None
) -> np.ndarray:
    """float64 (K, S), how many tokens have each code and each label, counted by their weights."""
    table = np.bincount(code_T * num_labels + label_T, weight_T, minlength=num_codes * num_labels)
    return table.reshape(num_codes, num_labels).astype(np.float64)


def purity(table_KS: np.ndarray) -> float:
    """The share of tokens whose label is the most frequent one of their code."""
    return float(table_KS.max(1).sum() / table_KS.sum())


def normalised_mutual_information(table_KS: np.ndarray) -> float:
    """Of codes and labels, over the mean of their entropies: 0 where they are independent, 1 where they are alike."""
    code, label = entropy(table_KS.sum(1)), entropy(table_KS.sum(0))
    shared = code + label - entropy(table_KS.ravel())
    return float(2 * shared / (code + label)) if code + label else 1.0


def _with_spread(statistic: Callable[[np.ndarray], float], seen: Seen) -> str:
    """A statistic of the tokens' weights, where all are 1, and 1.96 standard deviations over resampled images."""
    generator = np.random.default_rng(SEED)
    resampled = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(seen.num_images, size=seen.num_images)
        resampled.append(statistic(np.bincount(drawn, minlength=seen.num_images)[seen.image]))
    # Resampled tables are purer than the whole: only their spread is taken.
    return f"{statistic(np.ones(len(seen.image))):.1%} ± {1.96 * np.std(resampled, ddof=1):.1%}"


def object_is_near(
    code_T: np.ndarray,
    label_T: np.ndarray,
    is_object_T: np.ndarray,
    image_T: np.ndarray,
    shown: Sequence[Sequence[int]],
) -> np.ndarray:
    """bool (T,): whether the image shows the object that a token's code lies on most often, wherever it stands."""
    table = count_labels(code_T[is_object_T], label_T[is_object_T], int(code_T.max()) + 1, int(label_T.max()) + 1)
    object_T = np.where(table.any(1), table.argmax(1), -1)[code_T]
    return np.array([one in shown[image] for one, image in zip(object_T, image_T, strict=True)])


def _object_rows(seen: Seen, codings: Mapping[str, np.ndarray], num_codes: int) -> list[list[str]]:
    known = np.array(seen.labels, dtype=object)[seen.label] != ""
    if not known.any():
        return []

    def of_table(statistic: Callable[[np.ndarray], float], code_T: np.ndarray, chosen_T: np.ndarray) -> str:
        code, label = code_T[chosen_T], seen.label[chosen_T]
        sizes = num_codes, len(seen.labels)
        return _with_spread(lambda weight_T: statistic(count_labels(code, label, *sizes, weight_T[chosen_T])), seen)

    def near(code_T: np.ndarray) -> str:
        behind = known & ~seen.is_object
        near = object_is_near(code_T, seen.label, seen.is_object, seen.image, seen.shown)[behind]
        return _with_spread(lambda weight_T: float(np.average(near, weights=weight_T[behind])), seen)

    rows = []
    for where, chosen in (("objects", seen.is_object), ("objects and backgrounds", known)):
        for name, statistic in (("purity", purity), ("NMI", normalised_mutual_information)):
            rows.append([f"{name}, {where}", *(of_table(statistic, code, chosen) for code in codings.values())])
    if seen.is_object.any():
        rows.append(["the code's object is in the image, background patches", *map(near, codings.values())])
    return rows
