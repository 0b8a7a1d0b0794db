"""What the codes of a trained model mean, as numbers of its run's row: see `soho_fast/explore/measures.py`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from soho_fast.common.extras import from_extra

with from_extra("explore"):
    import numpy as np
    from scipy.stats import entropy

from soho_fast.explore.build import open_model
from soho_fast.explore.measures import (
    count_labels,
    look,
    normalised_mutual_information,
    purity,
    words_of_active_codes,
)
from soho_fast.explore.words import is_associated


def measure_codes(run: Path, most: int) -> dict[str, float]:
    """Measures of the codes, and of as many means of the features and of shuffled codes beside them.

    Args:
        run: Folder of a training.
        most: So many images of the held-out ones, evenly spread.

    Returns:
        Of the codes, and with `k_means_` or `shuffled_` before it: `with_a_token`, `perplexity`, `claims` (share of
        these whose best word has an interval of lift above 1), `lift` (their mean of the best word's lower end, 1 where
        there is none), `unexplained` (not of shuffled ones: the share of the features' variance that their codes, or
        means, leave out; the means are of these very features, so codes of others' leave out more), and where the
        images are the demo corpus's `purity` and `nmi` of the objects under their patches.
        Empty where the model has no dictionary.
    """
    if not json.loads((run / "model" / "config.json").read_text())["use_dictionary"]:
        return {}
    options = argparse.Namespace(
        model=str(run), checkpoint="last", recipe=None, fields=[], split=["heldout"], images=most, licence=None
    )
    source = open_model(options, print).source("", print)
    seen = look(source, print)
    num_codes = source.num_codes // source.num_levels
    codings = dict(zip(("", "k_means_", "shuffled_"), seen.codings(num_codes).values(), strict=True))
    found: dict[str, float] = {}
    found["unexplained"] = unexplained(seen.features, np.asarray(source.codebook)[seen.code])
    found["k_means_unexplained"] = unexplained(seen.features, group_means(seen.features, codings["k_means_"]))
    for name, code_T in codings.items():
        words = words_of_active_codes(code_T, seen.image, seen.captions)
        found[f"{name}with_a_token"] = float(len(words))
        found[f"{name}perplexity"] = float(np.exp(entropy(np.bincount(code_T))))
        found[f"{name}claims"] = float(np.mean([is_associated(each) for each in words]))
        found[f"{name}lift"] = float(np.mean([max(1.0, each["low"][0]) if len(each) else 1.0 for each in words]))
        if seen.is_object.any():
            chosen = seen.is_object
            table_KS = count_labels(code_T[chosen], seen.label[chosen], num_codes, len(seen.labels))
            found[f"{name}purity"] = purity(table_KS)
            found[f"{name}nmi"] = normalised_mutual_information(table_KS)
    return found


def unexplained(features_TC: np.ndarray, codes_TC: np.ndarray) -> float:
    """The share of the features' variance that is left when each has its code subtracted: 0 where they are alike."""
    left = np.square(features_TC - codes_TC).sum(dtype=np.float64)
    variance = np.square(features_TC - features_TC.mean(0, dtype=np.float64)).sum(dtype=np.float64)
    return float(left / variance) if variance else 0.0


def group_means(features_TC: np.ndarray, group_T: np.ndarray) -> np.ndarray:
    """(T, C): of each row the mean of its group's."""
    sums_GC = np.zeros((group_T.max() + 1, features_TC.shape[1]))
    np.add.at(sums_GC, group_T, features_TC)
    return (sums_GC / np.maximum(np.bincount(group_T), 1)[:, None])[group_T]
