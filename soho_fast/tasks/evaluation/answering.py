"""Answers of a model to texts about images: the best label of each, in parts that processes share and a killed run
keeps.

Shapes: E examples of a split, P texts of a call, A labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soho_fast.common.errors import CorruptImageError
from soho_fast.data.batches.downstream import Examples, load_sample
from soho_fast.data.batches.sample import Images, Sample, collate_images, pad_texts
from soho_fast.data.processor import SohoProcessor
from soho_fast.model.downstream import SohoDownstreamModel
from soho_fast.tasks.evaluation.computing import Computing
from soho_fast.tasks.evaluation.sharing import Sharing, compute_parts


@dataclass(frozen=True)
class Answering:
    """How a split is answered.

    Args:
        processor: Image processor and tokenizer.
        max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
        blank_images: Show no image.
        image_batch: Images (pairs) encoded at a time.
        text_batch: Texts read at a time.
        probabilities: How sure the model is of each label, from its logits (P, A).
        workers: Processes that read images and texts, for each that answers; 0 reads in these.
    """

    processor: SohoProcessor
    max_text_length: int
    blank_images: bool
    image_batch: int
    text_batch: int
    probabilities: Callable[[Tensor], Tensor]
    workers: int = 0

    def answer(
        self,
        model: SohoDownstreamModel,
        computing: Computing,
        examples: Examples,
        num_groups: int | None,
        sharing: Sharing,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best label and its probability for the examples of the first `num_groups` groups (None: of all).

        Args:
            model: The model, in evaluation mode, on the device of the processes.
            computing: How it is called.
            examples: The split.
            num_groups: Groups are the examples about one image or pair, in file order.
            sharing: Of the batches.

        Returns:
            int64 rows of the examples, ascending; int64 labels; float64 probabilities.

        Raises:
            CorruptImageError: an image can't be read: a published metric covers every example.
        """
        groups = examples.groups[:num_groups]
        batches = [groups[begin : begin + self.image_batch] for begin in range(0, len(groups), self.image_batch)]
        parts = compute_parts(
            len(batches),
            lambda _, loaded: self._answer_batch(model, computing, *loaded),
            sharing,
            load=lambda number: self._load_batch(examples, batches[number]),
            workers=self.workers,
        )
        row_E = np.concatenate([row for batch in batches for row in batch])
        label_E = np.concatenate([part["label"].numpy() for part in parts])
        score_E = np.concatenate([part["score"].numpy() for part in parts]).astype(np.float64)
        order = np.argsort(row_E)
        assert len(np.unique(row_E)) == len(row_E)
        return row_E[order], label_E[order], score_E[order]

    def _load_batch(
        self, examples: Examples, groups: Sequence[np.ndarray]
    ) -> tuple[dict[str, Tensor | None], Tensor, list[np.ndarray]]:
        """Images, the image of each text, texts."""
        samples = [self._load(examples, rows) for rows in groups]
        return *collate_images(samples, self.processor), [ids for sample in samples for ids in sample.texts_ids]

    @torch.no_grad()
    def _answer_batch(
        self,
        model: SohoDownstreamModel,
        computing: Computing,
        images: dict[str, Tensor | None],
        image_index: Tensor,
        texts_ids: list[np.ndarray],
    ) -> dict[str, Tensor]:
        with computing():
            visual = model.encode_images(**self.processor.image_processor.normalised(computing.on_device(images)))
        # Texts of like length together, so that little is spent on padding.
        order = sorted(range(len(texts_ids)), key=lambda row: len(texts_ids[row]))
        label_P, score_P = torch.empty(len(order), dtype=torch.int64), torch.empty(len(order), dtype=torch.float32)
        for begin in range(0, len(order), self.text_batch):
            rows = order[begin : begin + self.text_batch]
            texts = pad_texts([texts_ids[row] for row in rows], self.processor.tokenizer.pad_token_id)
            inputs = computing.on_device({**texts, "image_index": image_index[rows]})
            with computing():
                output = model(visual_tokens=visual, **inputs)
            best = self.probabilities(output.logits.float()).max(-1)
            label_P[rows], score_P[rows] = best.indices.cpu(), best.values.cpu()
        return {"label": label_P, "score": score_P}

    def _load(self, examples: Examples, rows: np.ndarray) -> Sample:
        images = Images(examples.images, self.processor, blank=self.blank_images)
        sample = load_sample(examples, rows, images, self.processor, self.max_text_length)
        if sample.corrupt is not None:
            raise CorruptImageError(f"{sample.corrupt}; every example must be answered")
        return sample


@dataclass
class Answers:
    """The answers to a split, in file order, with the model's own probability of each, and their metrics.

    `write_extra` writes what a server or a script of others takes into a folder, and returns the names of the files.
    """

    ids: list[str | int]
    answers: list[str]
    scores: list[float]
    metrics: dict[str, float]
    sharing: Sharing
    write_extra: Callable[[Path], list[str]]

    def write(self, folder: Path) -> list[str]:
        """Write the answers, and delete what was kept on the way. Returns the names of the files."""
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
            for identifier, answer, score in zip(self.ids, self.answers, self.scores, strict=True):
                file.write(json.dumps({"id": identifier, "answer": answer, "score": round(score, 6)}) + "\n")
        extra = self.write_extra(folder)
        self.sharing.forget()
        return ["predictions.jsonl", *extra]
