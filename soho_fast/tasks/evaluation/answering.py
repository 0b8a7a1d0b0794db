"""Answers of a model to texts about images: the best label of each, in parts that processes share and a killed run
keeps.

Shapes: E examples of a split, P texts of a call, A labels.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soho_fast.common.errors import CorruptImageError
from soho_fast.data.batches.downstream import Examples, load_sample
from soho_fast.data.batches.sample import Images, collate_images, pad_texts
from soho_fast.model.downstream import SohoDownstreamModel
from soho_fast.tasks.evaluation.computing import Computing
from soho_fast.tasks.evaluation.sharing import Sharing, compute_parts


def answer(
    task: Any, model: SohoDownstreamModel, computing: Computing, examples: Examples, num_groups: int, sharing: Sharing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best label and its probability for the examples of the first `num_groups` groups (0: of all).

    Args:
        task: The `AnsweringTask`, whose processor, workers and settings of the data are taken.
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
    groups, size = examples.groups[: num_groups or None], task.image_batch
    batches = [groups[begin : begin + size] for begin in range(0, len(groups), size)]
    parts = compute_parts(
        len(batches),
        lambda _, loaded: answer_batch(task, model, computing, *loaded),
        sharing,
        load=lambda number: load_batch(task, examples, batches[number]),
        workers=task.workers,
    )
    # In the order of the groups, in which `answer_batch` gives labels; below in that of the file.
    row_E = np.concatenate([row for batch in batches for row in batch])
    label_E = np.concatenate([part["label"].numpy() for part in parts])
    score_E = np.concatenate([part["score"].numpy() for part in parts]).astype(np.float64)
    order = np.argsort(row_E)
    assert len(np.unique(row_E)) == len(row_E)
    return row_E[order], label_E[order], score_E[order]


def load_batch(
    task: Any, examples: Examples, groups: Sequence[np.ndarray]
) -> tuple[dict[str, Tensor | None], Tensor, list[np.ndarray]]:
    """Images, the image of each text, texts."""
    images = Images(examples.images, task.processor)
    samples = [load_sample(examples, rows, images, task.processor, task.data.max_text_length) for rows in groups]
    for sample in samples:
        if sample.corrupt is not None:
            raise CorruptImageError(f"{sample.corrupt}; every example must be answered")
    return *collate_images(samples, task.processor), [ids for sample in samples for ids in sample.texts_ids]


@torch.no_grad()
def answer_batch(
    task: Any,
    model: SohoDownstreamModel,
    computing: Computing,
    images: dict[str, Tensor | None],
    image_index: Tensor,
    texts_ids: list[np.ndarray],
) -> dict[str, Tensor]:
    """The best label of each text (P,), and its probability."""
    with computing():
        visual = model.encode_images(**task.on_device(computing.on_device(images)))
    # Texts of like length together, so that little is spent on padding.
    order = sorted(range(len(texts_ids)), key=lambda row: len(texts_ids[row]))
    label_P, score_P = torch.empty(len(order), dtype=torch.int64), torch.empty(len(order), dtype=torch.float32)
    for begin in range(0, len(order), task.pair_batch):
        rows = order[begin : begin + task.pair_batch]
        texts = pad_texts([texts_ids[row] for row in rows], task.processor.tokenizer.pad_token_id)
        inputs = computing.on_device({**texts, "image_index": image_index[rows]})
        with computing():
            output = model(visual_tokens=visual, **inputs)
        best = task.probabilities(output.logits.float()).max(-1)
        label_P[rows], score_P[rows] = best.indices.cpu(), best.values.cpu()
    return {"label": label_P, "score": score_P}


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
