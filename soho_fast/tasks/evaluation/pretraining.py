"""Held-out metrics of a pre-trained model, each beside its honest baseline.

Shapes: B images of a batch, P texts, S tokens, N retrieval candidates, V vocabulary, M predicted positions, K codes.

Each image is encoded once: `encode_images(pixel_values, pixel_mask)` per batch, then the model with `visual_tokens` and
`image_index`, which also is how an image is exchanged for another.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from soho_fast.common.errors import CorruptImageError
from soho_fast.common.text import STOP_WORDS
from soho_fast.common.workers import loaded_ahead
from soho_fast.data.batches.pretraining import PairSampler
from soho_fast.data.batches.record_table import RecordTable
from soho_fast.data.batches.sample import EVALUATION_STREAM, pad_labels, pad_texts
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import ImageTextRecord
from soho_fast.data.text import IGNORED_LABEL, EncodedText, encode_texts
from soho_fast.model import SohoForPreTraining
from soho_fast.model.auxiliary.contrastive import better_head
from soho_fast.tasks.evaluation.caption_words import CaptionWords, count_caption_words
from soho_fast.tasks.evaluation.computing import Computing
from soho_fast.tasks.evaluation.foils import foil_rows
from soho_fast.tasks.evaluation.metrics.recall import mean_reciprocal_rank, recall_at
from soho_fast.tasks.evaluation.pair_scoring import ImageBlocks, PairScorer, score_pairs
from soho_fast.tasks.evaluation.sharing import ReportProgress, Sharing

RECALL_KS = (1, 5, 10)
# Share of words masked for MLM.
_MASKED_WORDS = 0.15


_Counted = tuple[float, int]
"""Right answers, or a sum of losses in nats; and of how many."""


def _right(correct: torch.Tensor | np.ndarray) -> _Counted:
    return float(correct.sum()), len(correct)


def _loss(logits_PV: torch.Tensor, labels_P: torch.Tensor) -> _Counted:
    labels_P = labels_P.to(logits_PV.device)
    return float(F.cross_entropy(logits_PV.float(), labels_P, reduction="sum")), len(labels_P)


def _mean(counted: Sequence[_Counted]) -> float:
    total = sum(count for _, count in counted)
    return sum(right for right, _ in counted) / total if total else float("nan")


class _MaskedTexts(NamedTuple):
    """Texts with whole words replaced by [MASK]; `words` lists (text, positions, is a content word) of each."""

    texts_ids: list[np.ndarray]
    labels: list[np.ndarray]
    words: list[tuple[int, np.ndarray, bool]]


def _word_spelling(tokenizer: Any, ids: np.ndarray) -> str:
    # Of WordPiece, byte-level BPE and SentencePiece.
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    return "".join(piece.removeprefix("##").lstrip("\u0120\u2581") for piece in pieces).lower()


def mask_words(
    texts: Sequence[EncodedText], tokenizer: Any, rng: np.random.Generator, probability: float
) -> _MaskedTexts:
    """Replace whole words by [MASK] for measuring: each with `probability`, and at least one content word per text.

    Punctuation and unknown words are never chosen: predicting them shows nothing.
    """
    masked = _MaskedTexts([], [], [])
    for row, text in enumerate(texts):
        ids, labels = text.ids.copy(), np.full_like(text.ids, IGNORED_LABEL)
        words = []
        for word in range(int(text.word_ids.max(initial=-1)) + 1):
            positions = np.flatnonzero(text.word_ids == word)
            pieces = text.ids[positions]
            spelling = _word_spelling(tokenizer, pieces)
            if spelling.isalnum() and tokenizer.unk_token_id not in pieces:
                words.append((row, positions, spelling not in STOP_WORDS))
        chosen = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw < probability]
        content = [word for word in words if word[2]]
        # Drawn in any case: the masks of later texts do not depend on the chance of this one.
        spare = int(rng.integers(len(content))) if content else 0
        if content and not any(word[2] for word in chosen):
            chosen.append(content[spare])
        for _, positions, _ in chosen:
            labels[positions] = ids[positions]
            ids[positions] = tokenizer.mask_token_id
        masked.texts_ids.append(ids)
        masked.labels.append(labels)
        masked.words.extend(chosen)
    return masked


@dataclass
class _HeldOut:
    """The held-out examples: image i goes with positives[i]; negatives[i] does not describe it."""

    records: list[ImageTextRecord]
    positives: list[EncodedText]
    negatives: list[EncodedText]
    mask_uniform: np.ndarray
    rng: np.random.Generator


def _choose(task: Any, num_images: int) -> _HeldOut:
    records, tokenizer, longest = task.heldout_records, task.processor.tokenizer, task.data.max_text_length
    rng = np.random.default_rng([EVALUATION_STREAM, task.seed])
    order = rng.permutation(len(records))[: num_images or None]
    sampler = PairSampler([record.captions for record in records])
    positives, negatives, used = [], [], set()
    for index in order:
        captions = sampler.positives(index, len(records[index].captions), rng)
        # Two images with one caption would each be right for the other's, and retrieval would count them wrong.
        caption = next((text for text in captions if text.lower() not in used), captions[0])
        used.add(caption.lower())
        positives.append(caption)
        negatives += sampler.negatives(index, 1, rng)
    return _HeldOut(
        [records[index] for index in order],
        encode_texts(tokenizer, positives, longest),
        encode_texts(tokenizer, negatives, longest),
        rng.random(len(order)),
        rng,
    )


class _Scorer:
    """Calls the model in evaluation mode on one device."""

    def __init__(self, model: SohoForPreTraining, processor: SohoProcessor, computing: Computing) -> None:
        self.model, self.processor, self.computing = model, processor, computing

    def encode(self, images: Mapping[str, torch.Tensor | None]) -> Any:
        with self.computing():
            images = self.processor.image_processor.normalised(self.computing.on_device(images))
            return self.model.encode_images(**images)

    def __call__(
        self,
        visual_tokens: Any,
        texts_ids: Sequence[np.ndarray],
        image_index: Sequence[int] | np.ndarray,
        **labels: Any,
    ) -> Any:
        texts = pad_texts(texts_ids, self.processor.tokenizer.pad_token_id)
        texts["image_index"] = torch.as_tensor(np.asarray(image_index), dtype=torch.int64)
        with self.computing():
            return self.model(visual_tokens=visual_tokens, **self.computing.on_device({**texts, **labels}))


@dataclass
class _Tally:
    """Everything counted over the held-out batches."""

    counted: dict[str, list[_Counted]] = field(default_factory=lambda: defaultdict(list))
    """By metric, of each batch."""
    itm_margins: tuple[list[torch.Tensor], list[torch.Tensor]] = field(default_factory=lambda: ([], []))
    """By how much the logit of "matched" exceeds the other: of pairs that do not match, and of pairs that do."""
    mvm_targets: list[torch.Tensor] = field(default_factory=list)
    index: list[torch.Tensor] = field(default_factory=list)
    codes_in_training: dict[str, float] = field(default_factory=dict)
    """The dictionary's own running figures."""
    skipped: list[str] = field(default_factory=list)


def _measure_mlm(
    score: _Scorer, visual: Any, masked: _MaskedTexts, image_index: np.ndarray, losses: list[_Counted]
) -> np.ndarray:
    """Which masked words are right, all pieces of a word counting as one: bool, one per word of `masked.words`. Each
    piece adds to the loss."""
    labels_PS = pad_labels(masked.labels, len(masked.labels), max(map(len, masked.labels))).numpy()
    predicted = labels_PS != IGNORED_LABEL
    if not predicted.any():
        return np.zeros(0, dtype=bool)
    output = score(visual, masked.texts_ids, image_index, mlm_labels=torch.from_numpy(labels_PS))
    logits_MV = output.mlm_logits
    losses.append(_loss(logits_MV, torch.from_numpy(labels_PS[predicted])))
    right_PS = np.zeros_like(predicted)
    right_PS[predicted] = logits_MV.argmax(-1).cpu().numpy() == labels_PS[predicted]
    return np.array([right_PS[row, positions].all() for row, positions, _ in masked.words])


def _measure_mvm(score: _Scorer, visual: Any, texts: Sequence[EncodedText], uniform: np.ndarray) -> Any:
    """The model's output with one group of visual tokens masked per image, every pair counted as matched."""
    return score(
        visual,
        [text.ids for text in texts],
        np.arange(len(texts)),
        itm_labels=torch.ones(len(texts), dtype=torch.int64),
        mask_uniform=torch.from_numpy(np.ascontiguousarray(uniform)),
    )


def _paper_draw(score: _Scorer, visual: Any, texts: Sequence[EncodedText], uniform: np.ndarray) -> _Counted:
    """Masked visual tokens whose label is drawn as in the paper, each of an image's labels as likely."""
    config = score.model.config
    drawn, config.mvm_masking = config.mvm_masking, "label"
    try:
        output = _measure_mvm(score, visual, texts, uniform)
    finally:
        config.mvm_masking = drawn
    return _right(output.mvm_logits.argmax(-1).cpu() == output.mvm_targets.cpu())


def _batches(count: int, size: int) -> list[range]:
    """Ranges of about `size`, none of them of one element: a lone image could not be shuffled."""
    num = max(1, min(round(count / size), count // 2))
    return [range(begin, end) for begin, end in pairwise(count * number // num for number in range(num + 1))]


def _load(
    held: _HeldOut, batch: range, processor: SohoProcessor
) -> tuple[list[int], dict[str, torch.Tensor | None] | None, list[str]]:
    """Images of a batch by their rows, None without two of them, and why others can't be read."""
    rows, images, corrupt = [], [], []
    for row in batch:
        try:
            images.append(processor.image_processor.load(held.records[row].image))
            rows.append(row)
        except CorruptImageError as error:
            corrupt.append(str(error))
    return rows, processor.image_processor.collate_bytes(images) if len(rows) > 1 else None, corrupt


def _measure_batch(
    score: _Scorer,
    held: _HeldOut,
    rows: Sequence[int],
    tally: _Tally,
    images: Mapping[str, torch.Tensor | None],
    words: CaptionWords | None,
) -> Any:
    """All metrics but retrieval on one batch; returns its visual tokens."""
    visual = score.encode(images)
    own = np.arange(len(rows))
    # Each with the next one's: no image keeps its own, since a batch has two at least.
    other = np.roll(own, -1)
    positives = [held.positives[row] for row in rows]
    masked = mask_words(positives, score.processor.tokenizer, held.rng, _MASKED_WORDS)
    is_content = np.array([content for _, _, content in masked.words], dtype=bool)
    image_indices = {"": own, "_shuffled": other}
    for suffix, image_index in image_indices.items():
        right = _measure_mlm(score, visual, masked, image_index, tally.counted[f"mlm_loss{suffix}"])
        tally.counted[f"mlm_content{suffix}"].append(_right(right[is_content]))
        tally.counted[f"mlm_all{suffix}"].append(_right(right))

    texts_ids = [text.ids for text in positives] + [held.negatives[row].ids for row in rows]
    truth = torch.arange(len(texts_ids)) < len(rows)
    for suffix, image_index in image_indices.items():
        logits_P2 = score(visual, texts_ids, np.concatenate([image_index, image_index])).itm_logits
        tally.counted[f"itm{suffix}"].append(_right((logits_P2[:, 1] > logits_P2[:, 0]).cpu() == truth))
        tally.counted[f"itm_loss{suffix}"].append(_loss(logits_P2, truth.long()))
        if not suffix:
            margin_P = (logits_P2[:, 1] - logits_P2[:, 0]).float().cpu()
            for matched, margins in enumerate(tally.itm_margins):
                margins.append(margin_P[truth == bool(matched)])

    uniform = held.mask_uniform[list(rows)]
    output = _measure_mvm(score, visual, positives, uniform)
    if output.mvm_logits is not None and len(output.mvm_targets):
        targets_M = output.mvm_targets.cpu()
        tally.counted["mvm"].append(_right(output.mvm_logits.argmax(-1).cpu() == targets_M))
        tally.mvm_targets.append(targets_M)
        # [CLS] and [SEP] alone.
        nothing = encode_texts(score.processor.tokenizer, [""] * len(rows), len(positives[0].ids) + 2)
        for baseline, texts in (("shuffled", [*positives[1:], positives[0]]), ("no_caption", nothing)):
            other_output = _measure_mvm(score, visual, texts, uniform)
            tally.counted[f"mvm_{baseline}"].append(_right(other_output.mvm_logits.argmax(-1).cpu() == targets_M))
        if words is not None:
            code_B = score.model.base().label_to_mask(visual, torch.from_numpy(uniform).to(score.computing.device))
            guess_B = torch.tensor([words.code_of(text.ids) for text in positives])
            # As many tokens of each image as have its code.
            tokens_B = ((visual.index == code_B[:, None]) & visual.valid).sum(1).cpu()
            tally.counted["mvm_words"].append((float(tokens_B[guess_B == code_B.cpu()].sum()), int(tokens_B.sum())))
        if score.model.config.mvm_masking != "label":
            for name, texts in (("paper", positives), ("paper_no_caption", nothing)):
                tally.counted[f"mvm_{name}"].append(_paper_draw(score, visual, texts, uniform))
    if output.index is not None:
        tally.index.append(output.index[output.index >= 0].cpu())
    if getattr(output, "perplexity", None) is not None:
        tally.codes_in_training = {
            "model_active_codes": float(output.active_codes),
            "model_perplexity": float(output.perplexity),
        }
    return visual


@torch.no_grad()
def evaluate_pretraining(
    task: Any,
    model: SohoForPreTraining,
    *,
    quick: bool = False,
    training: RecordTable | None = None,
    progress: ReportProgress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Measure a model on held-out images. The same seed chooses the same images, captions, negatives and masks.

    - MLM: share of masked words predicted right (all pieces of a word), with the right image and with that of another
      record; content words apart from all words. Whole words are masked; nothing else is.
    - ITM: share of right verdicts on as many matched as unmatched pairs of unmasked input; majority is 50 %. Shuffled:
      the same texts and labels with the next image. Beside the share the area under the curve (`itm_auc`), for which no
      threshold is needed.
    - MVM: share of masked visual tokens whose index is predicted right; the baseline is the index that is most frequent
      among these very targets, the best constant answer. Shuffled: with the next image's caption, which may be worse
      than none; so also without a caption, and `mvm_words`, by the caption's words alone. `mvm_paper` draws labels as
      the paper does, where the model does not.
    - The losses of both beside their shares: mean cross entropy in nats, of a piece of a word, and of a pair.
    - Retrieval: every candidate image with one caption each, all pairs scored by ITM on unmasked input; chance K / N.
      Beside the recalls the mean reciprocal rank (`..._mrr`).
    - Codes: active codes and perplexity of the held-out tokens, and the dictionary's own running figures.

    Args:
        task: The `PretrainingTask`: its held-out records, processor, seed and settings of the data, and how many
            processes read images.
        model: The model; put in evaluation mode for the time of the call.
        quick: Measure on fewer images, without retrieval.
        training: Images on which `mvm_words` is counted; None leaves it out.
        progress: Called with how many are done, of how many: of the held-out images, then of retrieval's blocks.
        say: Called with a line for each held-out image that can't be read.

    Returns:
        Shares between 0 and 1, losses, and counts. Metrics that the model can't give (no dictionary) are absent.

    Raises:
        CorruptImageError: Fewer than two images can be read.
    """
    processor = task.processor
    held = _choose(task, task.quick_images if quick else task.heldout_images)
    tally = _Tally()
    num_candidates = 0 if quick or task.heldout_candidates < 2 else min(task.heldout_candidates, len(held.records))
    candidates: list[torch.Tensor] = []
    candidate_rows: list[int] = []
    scorer = PairScorer(model, held.positives, pair_batch=task.pair_batch, precision=task.precision)
    score = _Scorer(model, processor, scorer.computing)
    batches = _batches(len(held.records), task.image_batch)
    was_training = model.training
    model.eval()
    words = None if training is None else count_caption_words(task, model, training)
    loads = loaded_ahead(
        lambda number: _load(held, batches[number], processor),
        range(len(batches)),
        workers=task.workers,
        pin=scorer.computing.device.type == "cuda",
    )
    try:
        for batch, (rows, images, corrupt) in zip(batches, loads, strict=True):
            tally.skipped += corrupt
            for line in corrupt:
                say(f"held-out image skipped: {line}")
            if images is not None:
                visual = _measure_batch(score, held, rows, tally, images, words)
                # Until there are enough; 0 left is an empty slice.
                kept = rows[: num_candidates - len(candidate_rows)]
                if kept:
                    candidates += scorer.keep(visual)[: len(kept)]
                candidate_rows += kept
            elif rows:
                say(f"held-out image left out, no other of its batch can be read: {held.records[rows[0]].image}")
            if progress is not None:
                progress(batch.stop, len(held.records))
        if not tally.counted["itm"]:
            raise CorruptImageError(
                f"no two held-out images of a batch can be read; first: {'; '.join(tally.skipped[:5])}"
            )
        retrieval = {}
        if candidates:
            blocks = ImageBlocks(len(candidates), lambda block: candidates[block.start : block.stop])
            # The texts in the order of the images, so that the diagonal is what belongs together.
            wanted = [np.array(candidate_rows)] * len(candidates)
            retrieval = _recalls(torch.stack(score_pairs(scorer, blocks, wanted, Sharing(progress=progress))))
            if getattr(model, "contrastive_head", None) is not None:
                # Of all texts those of the candidates, in their order, as above.
                from soho_fast.tasks.evaluation.two_stage import contrastive_scores

                vectors = _recalls(contrastive_scores(scorer, blocks)[:, candidate_rows])
                retrieval |= {f"vectors_{name}": value for name, value in vectors.items() if "_to_" in name}
    finally:
        loads.close()
        model.train(was_training)
    return {**_summary(tally), **retrieval}


def _summary(tally: _Tally) -> dict[str, float]:
    left_out = ("mlm_loss_shuffled", "itm_loss_shuffled")
    metrics = {
        **{name: _mean(counted) for name, counted in tally.counted.items() if name not in left_out},
        "itm_majority": 0.5,
        "itm_auc": area_under_curve(*map(torch.cat, tally.itm_margins)),
        # Each image gives two pairs, one that matches and one that does not.
        "num_images": float(sum(count for _, count in tally.counted["itm"]) // 2),
        "num_skipped": float(len(tally.skipped)),
    }
    if tally.mvm_targets:
        counts = torch.bincount(torch.cat(tally.mvm_targets))
        metrics["mvm_most_frequent"] = float(counts.max() / counts.sum())
    if tally.index:
        counts = torch.bincount(torch.cat(tally.index)).double()
        share = counts[counts > 0] / counts.sum()
        metrics["heldout_active_codes"] = float(len(share))
        metrics["heldout_perplexity"] = float((-(share * share.log()).sum()).exp())
    return metrics | tally.codes_in_training


def area_under_curve(negative_N: torch.Tensor, positive_P: torch.Tensor) -> float:
    """The share of pairs of a negative and a positive of which the positive has the larger score; of equal ones a half.

    Unlike accuracy it does not depend on a threshold.
    """
    sorted_N = negative_N.sort().values
    below_P, not_above_P = (torch.searchsorted(sorted_N, positive_P, right=right) for right in (False, True))
    return float((below_P + not_above_P).double().mean() / 2 / len(negative_N))


def _recalls(scores_NN: torch.Tensor) -> dict[str, float]:
    count = len(scores_NN)
    diagonal = torch.arange(count)
    metrics = {"num_candidates": float(count)}
    for direction, scores in (("image_to_text", scores_NN), ("text_to_image", scores_NN.T)):
        metrics |= {f"{direction}_r{k}": share for k, share in recall_at(scores, diagonal, RECALL_KS).items()}
        metrics[f"{direction}_mrr"] = mean_reciprocal_rank(scores, diagonal)
    return metrics | {f"chance_r{k}": min(1.0, k / count) for k in RECALL_KS}


def nothing_learnt(metrics: Mapping[str, float]) -> str:
    """That held-out images are of no use to the model yet, in words; empty where they are.

    They are not where matching is within two standard errors of chance, and masked content words are predicted
    no better than with shuffled images, within two standard errors of the difference.
    """
    count, words, shuffled = (metrics[name] for name in ("num_images", "mlm_content", "mlm_content_shuffled"))
    share = (words + shuffled) / 2
    # Two standard errors of a difference of two shares; an image counts as one trial, however many words it has.
    margin = 2 * math.sqrt(2 * share * (1 - share) / count)
    if words - shuffled > margin or metrics["itm"] - metrics["itm_majority"] > 2 * math.sqrt(0.25 / (2 * count)):
        return ""
    return (
        f"nothing is learnt of held-out images yet: masked content words {words:.1%} ({shuffled:.1%} with shuffled "
        f"images), matching {metrics['itm']:.1%} (chance {metrics['itm_majority']:.1%})"
    )


_OF_POINTING = {
    "k_means": "k-means of the CNN's output", "words_k_means": "of what is looked up",
    "start_k_means": "of the CNN before training", "colour_k_means": "of colours", "any_patch": "any patch",
}  # fmt: skip
# By metric what a reader calls it, and its baselines by what follows its name in theirs.
_ROWS = {
    "mlm_content": ("MLM, masked content words", {"shuffled": "shuffled image"}),
    "mlm_all": ("MLM, all masked words", {"shuffled": "shuffled image"}),
    "mvm": (
        "MVM, masked visual tokens",
        {
            "most_frequent": "most frequent index",
            "shuffled": "shuffled caption",
            "no_caption": "no caption",
            "words": "the caption's words alone",
        },
    ),
    "mvm_paper": ("MVM, labels drawn as in the paper", {"paper_no_caption": "no caption"}),
    "pointing": ("codes on the object they stand for, in images that show it", _OF_POINTING),
    "pointing_all": ("codes on the object they stand for, in all images", _OF_POINTING),
    "pointing_found": ("patches of objects found by such codes", _OF_POINTING),
    "itm": ("ITM, balanced pairs", {"majority": "majority", "shuffled": "shuffled image"}),
}


def format_table(metrics: Mapping[str, float]) -> list[list[str]]:
    """Rows of the closing table, for metrics of held-out images: what was measured, its value, the baseline."""

    def percent(name: str) -> str:
        return f"{100 * metrics[name]:.1f} %"

    rows = []
    for name, (label, baselines) in _ROWS.items():
        if name in metrics:
            stem = name.removesuffix("_paper")
            beside = {f"{stem}_{other}": what for other, what in baselines.items()}
            told = ", ".join(f"{percent(other)} {what}" for other, what in beside.items() if other in metrics)
            rows.append([label, percent(name), told])
    rows += foil_rows(metrics)
    if "num_candidates" in metrics:
        heads = {"": " by the ITM head", "vectors_": " by the contrastive head"}
        heads = heads if "vectors_image_to_text_r1" in metrics else {"": ""}
        for head, by in heads.items():
            for direction, name in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
                for k in RECALL_KS:
                    label = f"{name} R@{k} of {metrics['num_candidates']:.0f}{by}"
                    rows.append([label, percent(f"{head}{direction}_r{k}"), f"{percent(f'chance_r{k}')} chance"])
        if len(heads) > 1:
            better = {"itm": "ITM head", "contrastive": "contrastive head"}[better_head(metrics)]
            rows.append(["head that ranks better, by mean reciprocal rank", better, "soho ask takes it"])
    for where, name in (("heldout", "held-out images"), ("model", "running usage in training")):
        if f"{where}_active_codes" in metrics:
            codes = f"{metrics[f'{where}_active_codes']:.0f} (perplexity {metrics[f'{where}_perplexity']:.1f})"
            rows.append([f"active codes, {name}", codes, ""])
    if metrics.get("num_skipped"):
        rows.append(["corrupt held-out images, skipped", f"{metrics['num_skipped']:.0f}", ""])
    return rows
