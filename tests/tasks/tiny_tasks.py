"""The three tasks on a handful of flat-coloured images, in the published formats, with a model, and processes that are
threads."""

import json
import threading
from pathlib import Path

import torch
from tiny_corpus import COLOURS, draw

from soho_fast.model.values import ModelChanges
from soho_fast.tasks import TASKS as KNOWN
from soho_fast.tasks.question_answering import QuestionAnsweringTask
from soho_fast.tasks.settings import DownstreamModel, QuestionAnsweringData, StatementData, StatementSplit, VqaSplit
from soho_fast.tasks.visual_entailment import VisualEntailmentTask
from soho_fast.tasks.visual_reasoning import VisualReasoningTask

NAMES = list(COLOURS)
SMALL = {
    "backbone": "resnet10", "visual_pool": 1, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "num_codes": 8,
}  # fmt: skip
SIZES = {"shorter_edge": 32, "longer_edge": 64}


def _vqa_split(folder: Path, subtype: str, first: int, count: int, answered: bool) -> VqaSplit:
    """Three questions about each of `count` images: two with yes or no, one for the colour."""
    questions, annotations = [], []
    for number in range(first, first + count):
        colour = NAMES[number % len(NAMES)]
        draw(folder / subtype / f"COCO_{subtype}_{number:012d}.jpg", colour)
        asked = [
            (f"is there a {colour}", "yes"),
            (f"is the man {NAMES[(number - 1) % len(NAMES)]}", "no"),
            ("a there is", colour),
        ]
        for place, (text, answer) in enumerate(asked):
            question_id = 10 * number + place
            questions.append({"image_id": number, "question": text, "question_id": question_id})
            given = [answer] * 7 + ["Yes"] * 2 + ["unheard of"]
            annotations.append({
                "image_id": number, "question_id": question_id, "question_type": "is", "multiple_choice_answer": answer,
                "answer_type": "yes/no" if place < 2 else "other",
                "answers": [{"answer": each, "answer_id": n} for n, each in enumerate(given, 1)],
            })  # fmt: skip
    paths = [folder / f"v2_OpenEnded_mscoco_{subtype}_questions.json", folder / f"v2_mscoco_{subtype}_annotations.json"]
    paths[0].write_text(json.dumps({"data_subtype": subtype, "questions": questions}))
    if answered:
        paths[1].write_text(json.dumps({"data_subtype": subtype, "annotations": annotations}))
    return VqaSplit(str(paths[0]), [str(folder)], str(paths[1]) if answered else None)


def vqa_data(folder: Path, tokenizer: Path, /, **changes) -> QuestionAnsweringData:
    splits = {
        "train": _vqa_split(folder, "train2014", 1, 6, True),
        "val": _vqa_split(folder, "val2014", 21, 5, True),
        "test": _vqa_split(folder, "test2015", 41, 3, False),
    }
    return QuestionAnsweringData(
        **{"splits": splits, "min_answer_count": 2, "tokenizer": str(tokenizer), **SIZES, **changes}
    )


def nlvr2_data(folder: Path, tokenizer: Path, /, **changes) -> StatementData:
    splits = {}
    for split, count in (("train", 4), ("dev", 3)):
        rows = []
        for pair in range(count):
            for side in (0, 1):
                draw(folder / "images" / split / f"{split}-7-{pair}-img{side}.png", NAMES[2 * pair + side])
            for sentence in (0, 1):
                row = {"identifier": f"{split}-7-{pair}-{sentence}", "sentence": f"there is a {NAMES[pair + sentence]}"}
                rows.append({**row, "label": "True" if (pair + sentence) % 2 else "False"})
        path = folder / f"{split}.json"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        splits[split] = StatementSplit(str(path), [str(folder / "images")])
    return StatementData(**{"splits": splits, "validate": "dev", "tokenizer": str(tokenizer), **SIZES, **changes})


def snli_ve_data(folder: Path, tokenizer: Path, /, **changes) -> StatementData:
    splits = {}
    for split, first, count in (("train", 0, 5), ("val", 5, 4)):
        rows = []
        for number in range(first, first + count):
            draw(folder / "flickr30k-images" / f"{number}.jpg", NAMES[number])
            for label, text in (
                ("entailment", NAMES[number]),
                ("contradiction", NAMES[number - 1]),
                ("neutral", "man"),
            ):
                row = {"Flickr30K_ID": str(number), "captionID": f"{number}.jpg#0", "sentence1": "never read"}
                rows.append(
                    {**row, "gold_label": label, "sentence2": f"a {text}", "pairID": f"{number}.jpg#0r1{label[0]}"}
                )
        path = folder / f"snli_ve_{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        splits[split] = StatementSplit(str(path), [str(folder)])
    return StatementData(**{"splits": splits, "tokenizer": str(tokenizer), **SIZES, **changes})


class Threads:
    """Processes played by threads: run(work) gives every rank its own view and returns their results."""

    def __init__(self, world):
        self.world, self._items, self._barrier = world, [None] * world, threading.Barrier(world, timeout=60)

    def run(self, work):
        results = [None] * self.world

        def one(rank):
            results[rank] = work(_Rank(self, rank))

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class _Rank:
    def __init__(self, threads, rank):
        self._threads, self.rank, self.world, self.device = threads, rank, threads.world, torch.device("cpu")

    def wait(self):
        self._threads._barrier.wait()

    def gather(self, item):
        self._threads._items[self.rank] = item
        self.wait()
        items = list(self._threads._items)
        self.wait()
        return items


TASKS = {
    "vqa": (QuestionAnsweringTask, vqa_data),
    "nlvr2": (VisualReasoningTask, nlvr2_data),
    "snli_ve": (VisualEntailmentTask, snli_ve_data),
}


def make_task(name: str, folder: Path, tokenizer: Path, /, *, model: DownstreamModel | None = None, **changes):
    """(the task, the list of what it says)."""
    said: list[str] = []
    kind, data = TASKS[name]
    model = model or KNOWN[name].model_type(config=ModelChanges(**SMALL))
    task = kind(data(folder, tokenizer, **changes), 3, model, say=said.append)
    task.image_batch, task.pair_batch = 2, 3
    return task, said
