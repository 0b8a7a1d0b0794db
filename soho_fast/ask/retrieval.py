"""The images that a text describes best, found at two stages: `ask retrieve`.

The contrastive head's vectors, each made of an image alone, choose candidates; the ITM head reads these with the text,
unless the model's `head` is the contrastive one.

I images, T texts, E channels of a vector.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from soho_fast.ask.pipeline import Answer, SohoPipeline
from soho_fast.common.errors import print_line
from soho_fast.common.progress import ProgressLines
from soho_fast.model.image_tokens import join_images

# Images whose vectors are made together: so many times the batch size.
_WINDOW = 4


@dataclass(eq=False)
class Retriever:
    """Images that are searched by texts. Their vectors are made by the first search that needs them.

    Args:
        soho: A model for `rank`; without a contrastive head the ITM head reads all images with each text.
        images: I images, or what `SohoPipeline.encode` gave of them.
        batch_size: Images encoded at a time.
        say: Called with each line of progress.

    Attributes:
        errors: Why images can't be used, by their numbers; of those that searches have read so far.

    Raises:
        ValueError: The model is for another question.
    """

    soho: SohoPipeline
    images: Sequence[Any]
    batch_size: int = 8
    say: Callable[[str], None] = print_line
    errors: dict[int, ValueError] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.soho.check_action("rank")

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], top_k: int | None = None, candidates: int = 64) -> list[Answer]:
        """The best images of each text: {"image", "score"}, an image's number and its score as of `rank`.

        Args:
            texts: T texts.
            top_k: Number of images; all candidates when None.
            candidates: Images that the vectors choose for each text; where it is at least I no vectors are made.

        Raises:
            ValueError: A text can't be used.
        """
        model, words = self.soho.model, self.soho.texts_of(texts)
        chosen_TI = torch.ones(len(texts), len(self.images), dtype=torch.bool)
        by_vectors = self.soho.head == "contrastive"
        if model.contrastive_head is None:
            self.say(f"this model has no contrastive head: all {len(self.images):,} images are matched with each text")
        elif by_vectors or candidates < len(self.images):
            image_IE = self._image_vectors
            text_TE = model.text_vectors(**{name: value.to(self.soho.device) for name, value in words.items()})
            score_TI = text_TE.float().cpu() @ image_IE.T
            score_TI[:, list(self.errors)] = -torch.inf
            if by_vectors:
                best = score_TI.topk(min(top_k or candidates, len(self.images) - len(self.errors)))
                rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                return [[{"image": i, "score": score} for i, score in zip(*row, strict=True)] for row in rows]
            chosen_TI = torch.zeros_like(chosen_TI).scatter_(1, score_TI.topk(candidates).indices, True)
        read = chosen_TI.any(0).nonzero().flatten().tolist()
        texts_of = [chosen_TI[:, image].nonzero().flatten().tolist() for image in read]
        asked = [[texts[text] for text in own] for own in texts_of]
        shown = [self.images[image] for image in read]
        answers = self.soho.rank(shown, asked, batch_size=self.batch_size, errors="return")
        progress = ProgressLines(self.say, "images matched")
        found: list[Answer] = [[] for _ in texts]
        for done, (image, own, answer) in enumerate(zip(read, texts_of, answers, strict=True), start=1):
            if isinstance(answer, ValueError):
                self.errors[image] = answer
            else:
                score_of = {row["text"]: row["score"] for row in answer}
                for text in own:
                    found[text].append({"image": image, "score": score_of[texts[text]]})
            progress(done, len(read))
        return [sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k] for rows in found]

    @cached_property
    def _image_vectors(self) -> Tensor:
        """Float32 (I, E) on the CPU, zeros of an image that can't be used."""
        model, step = self.soho.model, _WINDOW * self.batch_size
        image_IE = torch.zeros(len(self.images), model.contrastive_head.image_projection.out_features)
        progress = ProgressLines(self.say, "vectors of images")
        for first in range(0, len(self.images), step):
            window = self.soho.encode(list(self.images[first : first + step]), self.batch_size, errors="return")
            of_window = dict(enumerate(window, start=first))
            self.errors |= {image: each for image, each in of_window.items() if isinstance(each, ValueError)}
            if usable := list(of_window.keys() - self.errors):
                visual = join_images([of_window[image] for image in usable])
                image_IE[usable] = model.image_vectors(model.embed_images(visual), visual.valid).float().cpu()
            progress(first + len(window), len(self.images))
        return image_IE


def print_retrieved(
    retriever: Retriever, texts: Sequence[str], top_k: int = 10, candidates: int = 64, as_json: bool = False
) -> None:
    """Print the best images of each text, and the images that can't be used; `retriever` has paths.

    With `as_json` a JSON object for each text, {"text", "answers"}, and for each such image, {"image", "error"}.
    """
    paths = list(map(str, retriever.images))
    for text, answer in zip(texts, retriever(texts, top_k, candidates), strict=True):
        rows = [{"image": paths[row["image"]], "score": row["score"]} for row in answer]
        lines = [f"{text}:", *(f"{retriever.soho.shown(row['score'])}  {row['image']}" for row in rows)]
        for line in [json.dumps({"text": text, "answers": rows})] if as_json else lines:
            print_line(line)
    for image, error in retriever.errors.items():
        row = {"image": paths[image], "error": str(error)}
        print_line(json.dumps(row) if as_json else ": ".join(row.values()))
    if retriever.errors:
        print_line(f"{len(retriever.errors):,} of {len(paths):,} images can't be used", sys.stderr)
