"""Image-text retrieval: which of all texts describe an image, which of all images does a text describe? R@1, 5, 10.

Shapes: I images, T texts.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from soho_fast.common.errors import CorruptImageError
from soho_fast.common.processes import Processes
from soho_fast.common.tables import Table
from soho_fast.data.batches.downstream import RetrievalDataset
from soho_fast.data.batches.sample import Collator, Sample
from soho_fast.data.readers.captions import read_karpathy
from soho_fast.data.readers.json_lines import read_json_lines
from soho_fast.data.readers.records import ImageTextRecord, ReadReport, fingerprint
from soho_fast.data.text import encode_texts
from soho_fast.model import SohoConfig, SohoForImageTextRetrieval, SohoForPreTraining, SohoPreTrainedModel
from soho_fast.tasks.evaluation.computing import Computing
from soho_fast.tasks.evaluation.metrics.recall import RetrievalRecall, retrieval_recall, retrieval_recall_in_folds
from soho_fast.tasks.evaluation.pair_scoring import ImageBlocks, PairScorer, score_pairs
from soho_fast.tasks.evaluation.sharing import Sharing
from soho_fast.tasks.evaluation.two_stage import best_pairs, choose_k, contrastive_scores, ranked_in_two_stages
from soho_fast.tasks.fine_tuning import FineTuningTask
from soho_fast.tasks.settings import RetrievalSplit

RECALL_KS = (1, 5, 10)
# The retrieval results of the literature take the first five captions of an image, where it has more.
CAPTIONS_AN_IMAGE = 5


@dataclass
class _Candidates:
    """The images and texts of a split, ready to be scored."""

    records: Sequence[ImageTextRecord]
    texts: list[str]
    image_of_text_T: Tensor
    scorer: PairScorer
    blocks: ImageBlocks


class RetrievalTask(FineTuningTask):
    """Images and captions; see `FineTuningTask`."""

    name = "retrieval"
    model_class: ClassVar[type[SohoForImageTextRetrieval]] = SohoForImageTextRetrieval
    example = 'rank {run} IMAGE "ONE TEXT" "ANOTHER"'
    selection = "mean_r1"
    logged = ("itm_loss", "contrastive_loss")
    training_images = 1000
    """While training, and without a contrastive head, every pair of the first so many images of `validate` is scored:
    COCO's 5,000 images are 125 million pairs."""
    training_k = 16
    """While training, `validate` is scored in two stages with this k, if there is a contrastive head."""
    choice_images = 1000
    """In two stages so many images of `validate`, with all their texts, choose k."""
    max_loss = 0.005
    """K candidates are taken such that R@1 there is at most so much below scoring all pairs: half a point."""

    def read(self, source: RetrievalSplit, report: ReadReport) -> list[ImageTextRecord]:
        options = {"missing_images": self.data.missing_images, "report": report}
        read = read_json_lines if source.format == "json_lines" else read_karpathy
        return read(source.annotations, source.images, source.splits, **options)

    @property
    def samples_together(self) -> tuple[str, int] | None:
        """t aligned pairs: with another number an image is told apart from other than t - 1 texts."""
        return ("data.aligned_pairs", self.data.aligned_pairs) if self.data.aligned_pairs else None

    @cached_property
    def _training_data(self) -> RetrievalDataset:
        records = self.training_records
        self.say_fit([caption for record in records for caption in record.captions])
        dataset = RetrievalDataset(
            records,
            self.processor,
            seed=self.seed,
            max_text_length=self.data.max_text_length,
            every_caption=self.data.epoch == "captions",
        )
        num_captions = sum(len(record.captions) for record in records)
        self._say(
            f"training on {len(records):,} images with {num_captions:,} captions: {len(dataset):,} samples an epoch, "
            f"each an image with one of its captions; vocabulary of {len(self.processor.tokenizer):,}"
        )
        return dataset

    def collate(self, samples: list[Sample]) -> Mapping[str, Any]:
        """The keywords of the model's forward, with "skipped" and "sample_ids"; all B x B pairs are scored."""
        batch = Collator(self.processor)(samples)
        own_image = batch.pop("image_index")
        return {**batch, "own_image": own_image}

    def load_weights(self, folder: str, config: SohoConfig) -> tuple[SohoPreTrainedModel, list[str]]:
        """As `FineTuningTask.load_weights`; a pre-trained model too, whose retrieval is then zero-shot."""
        if SohoForPreTraining.__name__ not in (config.architectures or ()):
            return super().load_weights(folder, config)
        self._say(f"{folder} is pre-trained only: this is zero-shot retrieval")
        model, _ = self.model_class.from_pretraining(folder, use_dictionary_output=config.use_dictionary_output)
        return model, []

    def metrics_while_training(
        self, model: SohoForImageTextRetrieval, sharing: Sharing, *, quick: bool
    ) -> dict[str, float]:
        """R@K of the split to validate on: of all of it in two stages where the model has them, else of its first
        `training_images` by every pair; quick: of its first images."""
        if not self.data.validate:
            return {}
        records, every_pair = self.records(self.data.validate), model.contrastive_head is None
        # In two stages the product is 0, which takes all of it.
        num_images = self.quick_images if quick else self.training_images * every_pair or len(records)
        if num_images < len(records) and not quick:
            self._say(
                f"{self.data.validate}: every pair of its first {num_images:,} images of {len(records):,} is scored "
                "while training"
            )
        candidates = self._candidates(model, records[:num_images])
        if every_pair:
            scores_IT = self._score_all(candidates, sharing)
        else:
            scores_IT, _ = self._score_chosen(candidates, self.training_k, sharing)
        sizes = {"num_images": float(len(candidates.records)), "num_texts": float(len(candidates.texts))}
        return {**self._metrics(candidates, {"": scores_IT}), **sizes}

    def evaluate_split(self, model: SohoForImageTextRetrieval, split: str, sharing: Sharing) -> "RetrievalEvaluation":
        """Scores of a split's images and texts, by every pair, in two stages, or both, and their recall.

        Raises:
            CorruptImageError: an image can't be read: a published metric covers every image.
            ValueError: the model has no contrastive head, or no k keeps R@1 within `max_loss`.
        """
        data, processes = self.data, sharing.processes
        if data.scoring != "all":
            # Both before anything is scored, which may take hours.
            model.required_contrastive_head()
            self.records(data.validate, "data.validate")
        records = self.records(split)
        if data.folds and len(records) % data.folds:
            raise ValueError(
                f"data.folds: the {len(records)} images of {split} do not divide into {data.folds} equal folds; give 0 "
                "to leave them out"
            )

        def keeping(what: str, of: str, **more: Any) -> Sharing:
            settings = {name: getattr(data, name) for name in _SCORES_DEPEND_ON}
            settings["precision"] = Computing(model, self.precision).precision
            about = {"scored": what, "split": of, "candidates": self._fingerprint(of), **settings, **more}
            return sharing.keeping(about, (record.image for record in self.records(of)), what)

        candidates = self._candidates(model, records)
        num_images, num_texts = len(candidates.records), len(candidates.texts)
        scores: dict[str, Tensor] = {}
        work: dict[str, float] = {"num_images": float(num_images), "num_texts": float(num_texts)}
        if data.scoring != "two_stages":
            began = time.perf_counter()
            scores[""] = self._score_all(candidates, keeping("all", split))
            work |= {"passes": float(num_images * num_texts), "seconds": time.perf_counter() - began}
            work["pairs_a_second"] = self._speed(candidates, processes)
        if data.scoring != "all":
            k_there, k, seconds = self._choose_k(model, num_texts, keeping("choice", data.validate))
            # Encoded again, so that the seconds and pairs are those of two stages alone.
            again = self._candidates(model, candidates.records)
            began = time.perf_counter()
            scores["two_stages_"], num_pairs = self._score_chosen(again, k, keeping("chosen", split, k=k))
            work |= {
                "two_stages_k": float(k),
                "two_stages_k_on_validate": float(k_there),
                "two_stages_passes": float(num_images + num_texts + num_pairs),
                "two_stages_seconds": time.perf_counter() - began,
                "two_stages_choice_seconds": seconds,
                "two_stages_pairs_a_second": self._speed(again, processes),
            }
        metrics = {**self._metrics(candidates, scores, data.folds), **work}
        return RetrievalEvaluation(metrics, candidates.records, candidates.texts, next(iter(scores.values())), sharing)

    def _candidates(self, model: SohoForImageTextRetrieval, records: Sequence[ImageTextRecord]) -> _Candidates:
        captions = [record.captions[:CAPTIONS_AN_IMAGE] for record in records]
        texts = [caption for own in captions for caption in own]
        counts = torch.tensor([len(own) for own in captions])
        encoded = encode_texts(self.processor.tokenizer, texts, self.data.max_text_length)
        scorer = PairScorer(model, encoded, pair_batch=self.pair_batch, precision=self.precision)
        processor = self.processor.image_processor

        def load(block: range) -> dict[str, Tensor | None]:
            try:
                return processor.collate_bytes([processor.load(records[number].image) for number in block])
            except CorruptImageError as error:
                raise CorruptImageError(f"{error}; every image must be scored") from error

        def encode(pixels: dict[str, Tensor | None]) -> list[Tensor]:
            return scorer.encode(self.on_device(scorer.computing.on_device(pixels)))

        blocks = ImageBlocks(len(records), encode, load=load, workers=self.workers, block_images=self.image_batch)
        owner_T = torch.arange(len(records)).repeat_interleave(counts)
        return _Candidates(records, texts, owner_T, scorer, blocks)

    def _score_all(self, candidates: _Candidates, sharing: Sharing) -> Tensor:
        return torch.stack(score_pairs(candidates.scorer, candidates.blocks, sharing=sharing))

    def _score_chosen(self, candidates: _Candidates, k: int, sharing: Sharing) -> tuple[Tensor, int]:
        """Scores (I, T) in two stages, and how many pairs were read together."""
        contrastive_IT = contrastive_scores(candidates.scorer, candidates.blocks, sharing.processes)
        pairs = best_pairs(contrastive_IT, k)
        logits = score_pairs(candidates.scorer, candidates.blocks, pairs, sharing)
        return ranked_in_two_stages(contrastive_IT, pairs, logits), sum(map(len, pairs))

    def _choose_k(self, model: SohoForImageTextRetrieval, num_texts: int, sharing: Sharing) -> tuple[int, int, float]:
        """(k on images of `validate`, k for `num_texts` texts, seconds)."""
        began = time.perf_counter()
        there = self._candidates(model, self.records(self.data.validate)[: self.choice_images or None])
        logit_IT = self._score_all(there, sharing)
        contrastive_IT = contrastive_scores(there.scorer, there.blocks, sharing.processes)
        k = choose_k(contrastive_IT, logit_IT, there.image_of_text_T, self.max_loss)
        # Among more candidates the right one falls behind as many more.
        return k, max(k, -(-k * num_texts // len(there.texts))), time.perf_counter() - began

    @staticmethod
    def _speed(candidates: _Candidates, processes: Processes) -> float:
        """Pairs a second of all processes together, of those that were scored now."""
        scorer = candidates.scorer
        return float(sum(processes.gather(scorer.num_scored / scorer.seconds if scorer.num_scored else 0.0)))

    def _metrics(self, candidates: _Candidates, scores: Mapping[str, Tensor], folds: int = 0) -> dict[str, float]:
        metrics: dict[str, float] = {}
        owner_T, chance = candidates.image_of_text_T, "chance_"
        # A model that scores all alike has exactly the recall of chance (`recall_at`).
        nothing_IT = torch.zeros(len(candidates.records), len(candidates.texts))
        for prefix, scores_IT in {**scores, chance: nothing_IT}.items():
            recall = retrieval_recall(scores_IT, owner_T, RECALL_KS)
            metrics |= _named(prefix, recall)
            if prefix != chance:
                metrics[f"{prefix}mean_r1"] = (recall.image_to_text[1] + recall.text_to_image[1]) / 2
            if folds:
                in_folds = retrieval_recall_in_folds(scores_IT, owner_T, RECALL_KS, num_folds=folds)
                metrics |= _named(f"{prefix}folds_", in_folds)
        return metrics

    def _fingerprint(self, split: str) -> str:
        records = self.records(split)
        captions = (caption for record in records for caption in (str(len(record.captions)), *record.captions))
        return fingerprint((record.image.name for record in records), captions)

    def table(self, metrics: Mapping[str, float]) -> Table:
        """Recall beside chance; of scoring every pair and in two stages, where both were done, with what each took."""
        ways = [(prefix, name) for prefix, name in _WAYS if f"{prefix}image_to_text_r1" in metrics]
        rows = []
        for folds in ("", "folds_"):
            if f"{ways[0][0]}{folds}image_to_text_r1" not in metrics:
                continue
            of = f", mean of {self.data.folds} folds" if folds else ""
            for direction in ("image_to_text", "text_to_image"):
                for k in RECALL_KS:
                    name = f"{folds}{direction}_r{k}"
                    values = [f"{100 * metrics[prefix + name]:.1f} %" for prefix, _ in ways]
                    label = f"{direction.replace('_', ' ')} R@{k}{of}"
                    rows.append([label, *values, f"{100 * metrics[f'chance_{name}']:.1f} %"])
        for name, label, digits in _WORK:
            if f"{ways[0][0]}{name}" in metrics:
                values = [f"{metrics[prefix + name]:,.{digits}f}" for prefix, _ in ways]
                rows.append([label, *values, ""])
        title = self.name
        if "num_images" in metrics:
            title += f": {metrics['num_images']:,.0f} images, {metrics['num_texts']:,.0f} texts"
        if "two_stages_k" in metrics:
            title += f", k = {metrics['two_stages_k']:.0f}"
        return Table(title, ["metric", *(name for _, name in ways), "chance"], rows)


_WAYS = (("", "every pair"), ("two_stages_", "two stages"))
_WORK = (
    ("passes", "Transformer passes", 0),
    ("seconds", "seconds, of this run", 1),
    ("pairs_a_second", "pairs a second, Transformer", 0),
)
# Settings of the data that change a score.
_SCORES_DEPEND_ON = (
    "shorter_edge", "longer_edge", "antialias", "max_text_length", "missing_images", "validate",
)  # fmt: skip


def _named(prefix: str, recall: RetrievalRecall) -> dict[str, float]:
    return {
        f"{prefix}{direction}_r{k}": share
        for direction in ("image_to_text", "text_to_image")
        for k, share in getattr(recall, direction).items()
    }


@dataclass
class RetrievalEvaluation:
    """The scores (I, T) of a split, those of all pairs where both ways were taken, and their metrics."""

    metrics: dict[str, float]
    records: Sequence[ImageTextRecord]
    texts: list[str]
    scores_IT: Tensor
    sharing: Sharing

    def write(self, folder: Path) -> list[str]:
        """Write the ten best of each image and text, and delete what was kept. Returns the names of the files."""
        ids = [record.image_id for record in self.records]
        for name, scores, asked, found in (
            ("image_to_text", self.scores_IT, ids, self.texts),
            ("text_to_image", self.scores_IT.T, self.texts, ids),
        ):
            best = scores.topk(min(10, scores.shape[1]), dim=1)
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                for query, numbers, values in zip(asked, best.indices.tolist(), best.values.tolist(), strict=True):
                    ranked = [[found[number], round(value, 5)] for number, value in zip(numbers, values, strict=True)]
                    file.write(json.dumps({"query": query, "best": ranked}) + "\n")
        self.sharing.forget()
        return ["image_to_text.jsonl", "text_to_image.jsonl"]
