"""Whether codes mean something: their words, and the objects under their patches, against k-means and shuffled codes.

T tokens with a code, C channels, K codes, V words, S labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soho_fast.common.command_line import Parser
from soho_fast.common.errors import print_line
from soho_fast.common.extras import from_extra
from soho_fast.explore.build import add_data_arguments, open_model

with from_extra("explore"):
    import numpy as np
    import torch
    from scipy.stats import binomtest, entropy

    from soho_fast import ops
    from soho_fast.explore.words import Vocabulary, count_both, is_associated, rank_words
    from soho_fast.tasks.evaluation.pointing import Touched, objects_of_codes, objects_touched, pointing, scenes_of

TAKES_FIELDS = True
MOST_IMAGES = 5000
SEED = 0
LEVEL = 0.95

_RESAMPLES = 200
_OF_POINTING = {
    "pointing": "patches on their code's object, held-out images that show it",
    "pointing_any_patch": "any patch there",
    "pointing_all": "patches on their code's object, all held-out images",
    "pointing_found": "patches of objects found, held-out images",
}


def add_arguments(parser: Parser) -> None:
    """What `measure` takes."""
    add_data_arguments(parser)
    parser.set_defaults(images=MOST_IMAGES)


def run(options: argparse.Namespace) -> int:
    """Measure, and print the table."""
    from soho_fast.common.tables import print_table

    print_table(measure(open_model(options, print_line).source("", print_line), print_line))
    return 0


@dataclass
class Seen:
    """What is measured on.

    code: int64 (T,). image: int64 (T,), by number. features: float32 (T, C). label: int64 (T,), the object that covers
    most of the patch, by its number in `labels`, names, where "" is none or one that is not known; is_object: bool
    (T,), whether there is one. captions: of each image. grids: bool (h, w) of each image, where its tokens are.
    touched: of each image, the patches that its objects touch; None where they are not known. is_heldout: bool (N,),
    the images that pre-training holds out.
    """

    code: np.ndarray
    image: np.ndarray
    features: np.ndarray
    label: np.ndarray
    is_object: np.ndarray
    labels: list[str]
    captions: list[Sequence[str]]
    grids: list[np.ndarray]
    touched: list[Touched | None]
    is_heldout: np.ndarray

    def codings(self, num_codes: int) -> dict[str, np.ndarray]:
        """The model's codes, and what stands beside them: k-means of the features, and the same codes shuffled."""
        means = k_means(self.features, num_codes)
        return {"the model's codes": self.code, "k-means": means, "shuffled codes": shuffled(self.code)}

    def metrics(self, code_T: np.ndarray, num_codes: int) -> dict[str, float]:
        """What tokens with these codes are like.

        Returns:
            `with_a_token`, how many of the codes; `perplexity` of their use; `claims`, the share of these whose best
            word has an interval of lift above 1; `lift`, their mean of the best word's lower end, 1 where there is
            none; and where objects are known `purity` and `nmi` of those under their patches, and, with images held
            out and others, `pointing` and what belongs to it (`tasks/evaluation/pointing.py`).
        """
        words = words_of_active_codes(code_T, self.image, self.captions)
        found = {
            "with_a_token": float(len(words)),
            "perplexity": float(np.exp(entropy(np.bincount(code_T)))),
            "claims": float(np.mean([is_associated(each) for each in words])),
            "lift": float(np.mean([max(1.0, each["low"][0]) if len(each) else 1.0 for each in words])),
        }
        if self.is_object.any():
            table_KS = self.objects_of(code_T, num_codes)
            found |= {"purity": purity(table_KS), "nmi": normalised_mutual_information(table_KS)}
        return found | self._pointing(code_T, num_codes)

    def _pointing(self, code_T: np.ndarray, num_codes: int) -> dict[str, float]:
        """Codes get their objects on images that are trained on, and are to point at them on those held out."""
        bounds = np.cumsum([grid_hw.sum() for grid_hw in self.grids])[:-1]
        parts: dict[bool, tuple[list[np.ndarray], list[Touched]]] = {False: ([], []), True: ([], [])}
        for grid_hw, code_t, objects, held_out in zip(
            self.grids, np.split(code_T, bounds), self.touched, self.is_heldout.tolist(), strict=True
        ):
            if objects is not None:
                code_hw = np.full(grid_hw.shape, -1)
                code_hw[grid_hw] = code_t
                parts[held_out][0].append(code_hw)
                parts[held_out][1].append(objects)
        return pointing(objects_of_codes(*parts[False], num_codes), *parts[True]).metrics()

    def objects_of(self, code_T: np.ndarray, num_codes: int, weight_T: np.ndarray | None = None) -> np.ndarray:
        """float64 (K, S), how many tokens on an object have each code and each label."""
        chosen = self.is_object
        weights = None if weight_T is None else weight_T[chosen]
        return count_labels(code_T[chosen], self.label[chosen], num_codes, len(self.labels), weights)


def measure(source: Any, say: Callable[[str], None] = print_line) -> Any:
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
    all_found = [seen.metrics(code_T, num_codes) for code_T in codings.values()]
    rows = [
        ["codes with a token", *(f"{found['with_a_token']:,.0f} of {num_codes:,}" for found in all_found)],
        ["perplexity of their use", *(f"{found['perplexity']:,.0f}" for found in all_found)],
    ]
    if any(seen.captions):
        rows.append(["codes associated with a word", *map(_share_of_codes, all_found)])
    title = f"{len(seen.captions):,} images, {len(seen.code):,} patches"
    if seen.is_object.any():
        for name, statistic in (("purity", purity), ("NMI", normalised_mutual_information)):
            spread = [_spread(statistic, seen, code_T, num_codes) for code_T in codings.values()]
            values = (f"{found[name.lower()]:.1%} ± {each:.1%}" for found, each in zip(all_found, spread, strict=True))
            rows.append([f"{name}, objects", *values])
        title += f", of {seen.is_object.sum():,} an object covers most"
    if "pointing" in all_found[0]:
        for name, words in _OF_POINTING.items():
            # Shuffled codes stand for no object.
            shares = (f"{found[name]:.1%}" if name in found else "-" for found in all_found)
            rows.append([words, *shares])
    return Table(title, ["measure", *codings], rows)


def _share_of_codes(found: Mapping[str, float]) -> str:
    """The share of codes that are associated with a word, with Clopper and Pearson's interval."""
    count, total = round(found["claims"] * found["with_a_token"]), int(found["with_a_token"])
    interval = binomtest(count, total).proportion_ci(LEVEL)
    return f"{count / total:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def _spread(statistic: Callable[[np.ndarray], float], seen: Seen, code_T: np.ndarray, num_codes: int) -> float:
    """1.96 standard deviations of a statistic of the objects' table over resampled images.

    Resampled tables are purer than the whole: only their spread is taken.
    """
    generator, num_images = np.random.default_rng(SEED), len(seen.captions)
    resampled = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(num_images, size=num_images)
        # An image that is drawn twice counts twice, with all its tokens.
        weight_T = np.bincount(drawn, minlength=num_images)[seen.image]
        resampled.append(statistic(seen.objects_of(code_T, num_codes, weight_T)))
    return float(1.96 * np.std(resampled, ddof=1))


def measure_codes(run: Path, most: int) -> dict[str, float]:
    """What the codes of a trained model mean, as numbers of its run's row.

    Args:
        run: Folder of a training.
        most: So many images of the held-out ones, evenly spread.

    Returns:
        `Seen.metrics` of the codes, and with `k_means_` or `shuffled_` before it of as many means of the features and
        of shuffled codes; `unexplained` (not of shuffled ones): the share of the features' variance that their codes,
        or means, leave out (the means are of these very features, so codes of others' leave out more). Empty where
        the model has no dictionary.
    """
    if not json.loads((run / "model" / "config.json").read_text())["use_dictionary"]:
        return {}
    options = argparse.Namespace(
        model=str(run), checkpoint="last", recipe=None, fields=[], split=["heldout"], images=most, licence=None
    )
    source = open_model(options, print_line).source("", print_line)
    seen = look(source, print_line)
    num_codes = source.num_codes // source.num_levels
    codings = dict(zip(("", "k_means_", "shuffled_"), seen.codings(num_codes).values(), strict=True))
    found = {
        "unexplained": unexplained(seen.features, np.asarray(source.codebook)[seen.code]),
        "k_means_unexplained": unexplained(seen.features, group_means(seen.features, codings["k_means_"])),
    }
    for prefix, code_T in codings.items():
        found |= {f"{prefix}{name}": value for name, value in seen.metrics(code_T, num_codes).items()}
    return found


def unexplained(features_TC: np.ndarray, codes_TC: np.ndarray) -> float:
    """The share of the features' variance that is left when each has its code subtracted: 0 where they are alike."""
    left = np.square(features_TC - codes_TC).sum(dtype=np.float64)
    variance = np.square(features_TC - features_TC.mean(0, dtype=np.float64)).sum(dtype=np.float64)
    return float(left / variance) if variance else 0.0


def group_means(features_TC: np.ndarray, group_T: np.ndarray) -> np.ndarray:
    """(T, C): of each row the mean of its group's."""
    features, group = torch.from_numpy(features_TC).float(), torch.from_numpy(group_T)
    counts, sums = ops.codebook_stats(features, group, int(group_T.max()) + 1, wide=True)
    return (sums / counts.clamp(min=1)[:, None]).numpy()[group_T]


def look(source: Any, say: Callable[[str], None] = print_line) -> Seen:
    """All images of a `ModelSource`, looked up; labels where they are of the demo corpus."""
    from soho_fast.common.progress import ProgressLines

    parts, captions, grids, touched, is_heldout = [], [], [], [], []
    progress = ProgressLines(say, "images")
    for batch in source.batches():
        index_Bhw, feat_BLC = batch.index[0].cpu().numpy(), batch.features.float().cpu().numpy()
        for number, image in enumerate(batch.images):
            valid_hw = index_Bhw[number] >= 0
            code = index_Bhw[number][valid_hw].astype(np.int64)
            rows, columns = int(valid_hw.any(1).sum()), int(valid_hw.any(0).sum())
            where = str(image.ref.store), image.ref.name, rows, columns
            parts.append((code, feat_BLC[number][valid_hw.ravel()], _objects_under(*where)))
            captions.append(image.captions)
            grids.append(valid_hw[:rows, :columns])
            touched.append(objects_touched(*where))
            is_heldout.append(image.held_out)
        progress(len(captions), source.num_images)
    image_T = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    code_T, feat_TC, name_T = (np.concatenate(each) for each in zip(*parts, strict=True))
    labels, label_T = np.unique(name_T, return_inverse=True)
    heldout_N = np.array(is_heldout, dtype=bool)
    return Seen(code_T, image_T, feat_TC, label_T, name_T != "", labels.tolist(), captions, grids, touched, heldout_N)


def _objects_under(root: str, name: str, rows: int, columns: int) -> np.ndarray:
    """For each patch of an image the object that covers most of it, "" without an object or a known one."""
    scene = scenes_of(root).get(Path(name).name)
    if scene is None or rows != columns:
        return np.full(rows * columns, "")
    from soho_fast.data.mini.builder import objects_in_patches

    place = objects_in_patches(scene, rows, columns).ravel() + 1
    return np.array(["", *(item.name for item in scene.objects)])[place]


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
    of_images = np.concatenate([*numbers, np.zeros(0, dtype=np.int32)]), np.cumsum([0, *map(len, numbers)])
    chosen = vocabulary.choose([of_images])
    words_NV = chosen.table(*of_images)
    pairs = np.unique(np.stack([code_T, image_T], axis=1), axis=0)
    # Before images without captions are left out: codes of those alone count, and have no word.
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
