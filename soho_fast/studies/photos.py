"""Do a model's codes mean the same things in real photographs? ``python -m soho_fast.studies.photos RUN``

About 180 photographs with a class, none of which was trained on, from Debian's gcompris-qt-data: animals, fishes,
monuments, windmills, hammers and so on. Two photographs have as much in common as their cells share codes. It is
measured how much more photographs of one class have in common than photographs of different classes.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from soho_fast.common.extras import from_extra

with from_extra("train"):
    import numpy as np
    import torch
    from transformers.utils import logging as transformers_logging

    from soho_fast.ask.pipeline import SohoPipeline
    from soho_fast.common.command_line import Parser, exit_code
    from soho_fast.common.errors import UserError
    from soho_fast.data.mini.photographs import read_photographs

with from_extra("explore"):
    from scipy.stats import bootstrap, entropy, permutation_test

# Monuments of `explore_monuments` are left out, since scenes have them as backgrounds.
_ANIMALS = ("erase", "explore_world_animals", "explore_farm_animals")
_KINDS = {"fishes": "fish", "monuments": "monument"}
# Toy letters and numbers of the activity's menu.
_NO_CLASS = ("numbers", "alphabets")
_BATCH = 16
_RESAMPLES = 2000
LEVEL = 0.95


def classified_photographs() -> list[tuple[str, bytes]]:
    """(class, the photograph's file) of every photograph of a class that has two or more.

    Raises:
        FileNotFoundError: Debian's package is not installed; the message says how it is.
    """
    found = [("animal", data) for activity in _ANIMALS for data in read_photographs(activity).values()]
    for name, data in read_photographs("categorization").items():
        group, _, file = name.removeprefix("images/").partition("/")
        if group not in _NO_CLASS:
            kind = re.sub("([A-Z])", r" \1", file.removesuffix(".webp").rstrip("0123456789")).lower()
            found.append((_KINDS.get(group, kind), data))
    counts = Counter(kind for kind, _ in found)
    return [(kind, data) for kind, data in found if counts[kind] > 1]


@torch.no_grad()
def codes_of_photographs(run: Path, photographs: Sequence[bytes]) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """(codes of each photograph's cells, int64 (T,); their features, float32 (T, D); number of codes).

    Raises:
        UserError: the model has no dictionary.
        FileNotFoundError, ValueError: as `SohoPipeline.from_pretrained`.
    """
    soho = SohoPipeline.from_pretrained(run)
    dictionary = soho.model.base().visual_dictionary
    if dictionary is None:
        raise UserError(f"{run} has no visual dictionary (use_dictionary: false): there are no codes to compare")
    processor = soho.processor.image_processor
    codes, features = [], []
    for start in range(0, len(photographs), _BATCH):
        batch = processor.collate([processor.decode(data) for data in photographs[start : start + _BATCH]])
        visual = soho.model.encode_images(
            **{name: None if value is None else value.to(soho.device) for name, value in batch.items()}
        )
        # Fine-tuned models read the features themselves, as a rule.
        index_BL = visual.index if visual.index is not None else dictionary(visual.features, visual.valid)[1]
        for index_L, feat_LD, valid_L in zip(index_BL, visual.features, visual.valid, strict=True):
            codes.append(index_L[valid_L].cpu().numpy())
            features.append(feat_LD[valid_L].float().cpu().numpy())
    return codes, features, soho.model.config.num_codes


def codes_in_common(codes: Sequence[np.ndarray], num_codes: int) -> np.ndarray:
    """float64 (N, N): what two images have in common, over all codes the sum of the smaller share of their cells."""
    share_NK = np.stack([np.bincount(code_T, minlength=num_codes) / len(code_T) for code_T in codes])
    return np.stack([np.minimum(share_NK, row_K).sum(1) for row_K in share_NK])


def same_and_other(
    common_NN: np.ndarray, label_N: np.ndarray, place_N: np.ndarray | None = None
) -> tuple[float, float]:
    """(mean over photographs of what one has in common with the others of its class, the same of other classes).

    Args:
        common_NN: of `codes_in_common`.
        label_N: int64, classes.
        place_N: the photographs taken, some of them perhaps twice: none is compared with itself. None: all.
    """
    place_N = np.arange(len(label_N)) if place_N is None else place_N
    common_NN, label_N = common_NN[np.ix_(place_N, place_N)], label_N[place_N]
    is_same_NN = label_N[:, None] == label_N
    same_NN, other_NN = is_same_NN & (place_N[:, None] != place_N), ~is_same_NN
    means = []
    for chosen_NN in (same_NN, other_NN):
        number_N = chosen_NN.sum(1)
        total_N = np.where(chosen_NN, common_NN, 0.0).sum(1)
        has_any_N = number_N > 0
        means.append(float((total_N[has_any_N] / number_N[has_any_N]).mean()) if has_any_N.any() else np.nan)
    return means[0], means[1]


def consistency(codes: Sequence[np.ndarray], classes: Sequence[str], num_codes: int) -> dict[str, float]:
    """How much more than others images of one class have codes in common.

    Returns:
        `same_class` and `other_class`, the shares of cells in common; `lift`, their ratio, with `lift_low` and
        `lift_high`, the 95 % percentile interval of a bootstrap over images; `p`, one-sided, that classes drawn at
        random do as well (permutations); `nearest`, how often the image that shares most is of the same class, and
        `nearest_by_chance`; `perplexity` of the codes over all cells.
    """
    common_NN = codes_in_common(codes, num_codes)
    label_N = np.unique(np.asarray(classes), return_inverse=True)[1]
    place_N = np.arange(len(label_N))

    def lift(place_N: np.ndarray) -> float:
        same, other = same_and_other(common_NN, label_N, place_N)
        return same / other if other else np.inf

    same, other = same_and_other(common_NN, label_N)
    interval = bootstrap(
        (place_N,),
        lift,
        n_resamples=_RESAMPLES,
        vectorized=False,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    by_chance = permutation_test(
        (label_N,),
        lambda label_N: same_and_other(common_NN, label_N)[0],
        permutation_type="pairings",
        n_resamples=_RESAMPLES,
        vectorized=False,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    nearest_N = np.where(np.eye(len(label_N), dtype=bool), -1.0, common_NN).argmax(1)
    count_N = np.bincount(label_N)[label_N]
    share_K = np.bincount(np.concatenate(codes)) / sum(map(len, codes))
    return {
        "perplexity": float(np.exp(entropy(share_K))),
        "same_class": same,
        "other_class": other,
        "lift": lift(place_N),
        "lift_low": float(interval.low),
        "lift_high": float(interval.high),
        "p": float(by_chance.pvalue),
        "nearest": float((label_N[nearest_N] == label_N).mean()),
        "nearest_by_chance": float(((count_N - 1) / (len(label_N) - 1)).mean()),
    }


def photo_metrics(run: Path) -> dict[str, float]:
    """`consistency` of a run's codes on the photographs, and with `k_means_` before it that of as many means of the
    same features.

    These means are of the photographs themselves, so they tell what the features would allow, not what another
    dictionary would have learnt.

    Empty where the model has no dictionary.

    Raises:
        FileNotFoundError: Debian's package is not installed, or there is no model.
    """
    config = Path(run) / "model" / "config.json"
    if config.is_file() and not json.loads(config.read_text())["use_dictionary"]:
        return {}
    from soho_fast.explore.measures import k_means

    photographs = classified_photographs()
    classes = [kind for kind, _ in photographs]
    codes, features, num_codes = codes_of_photographs(run, [data for _, data in photographs])
    sizes = np.cumsum([len(code_T) for code_T in codes])[:-1]
    means = np.split(k_means(np.concatenate(features), num_codes), sizes)
    return consistency(codes, classes, num_codes) | {
        f"k_means_{name}": value for name, value in consistency(means, classes, num_codes).items()
    }


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m soho_fast.studies.photos",
        description="Measure whether a model's codes mean the same things in real photographs.",
    )
    parser.add_argument("run", help="folder of a run, or of a model")
    run = Path(parser.parse_args(arguments).run)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    counts = Counter(kind for kind, _ in classified_photographs())
    found = photo_metrics(run)
    if not found:
        raise UserError(f"{run} has no visual dictionary (use_dictionary: false): there are no codes to compare")
    print(f"{counts.total()} photographs: {', '.join(f'{number} {kind}' for kind, number in counts.most_common())}")
    for name, title in (("", "codes"), ("k_means_", "means of the same features")):
        of = {key.removeprefix(name): value for key, value in found.items() if key.startswith(name)}
        print(
            f"{title} (perplexity {of['perplexity']:.0f}): {of['same_class']:.1%} of the cells in common within a "
            f"class, {of['other_class']:.1%} across classes: {of['lift']:.2f} times (95 % {of['lift_low']:.2f} to "
            f"{of['lift_high']:.2f}; of classes drawn at random p = {of['p']:.4f}); the nearest photograph is of the "
            f"same class in {of['nearest']:.1%}, by chance in {of['nearest_by_chance']:.1%}"
        )
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    return exit_code(_run, arguments)


if __name__ == "__main__":
    sys.exit(main())
