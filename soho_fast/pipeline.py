"""A model and its processor, asked about images in one line of Python; `ask.py` is the same on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from soho_fast.extras import from_extra

with from_extra("train"):
    from PIL import Image

    from soho_fast.data.images import BrokenImageError, image_to_pixels
    from soho_fast.data.processor import SohoProcessor
    from soho_fast.hub import loading_options
    from soho_fast.model import (
        SohoForImageTextRetrieval,
        SohoForPreTraining,
        SohoForQuestionAnswering,
        SohoForVisualEntailment,
        SohoForVisualReasoning,
    )
    from soho_fast.model.config import SohoConfig
    from soho_fast.model.cpu import speed_up_on_cpu
    from soho_fast.model.pretrained import check_finite

# What each kind of model is for, in words, and the question that it takes.
_MODELS = {
    SohoForPreTraining: ("pre-training", "rank"),
    SohoForImageTextRetrieval: ("image-text retrieval", "rank"),
    SohoForQuestionAnswering: ("question answering", "answer"),
    SohoForVisualReasoning: ("visual reasoning about two images", "compare"),
    SohoForVisualEntailment: ("visual entailment", "entails"),
}

ImageLike = str | os.PathLike[str] | Image.Image


class SohoPipeline:
    """A model and its processor, asked one question at a time, as transformers' pipelines are.

    Which question it takes depends on the model: `answer` (question answering), `rank` (retrieval, also pre-trained
    without fine-tuning), `entails` (visual entailment), `compare` (visual reasoning). Images are paths or PIL images.

    Every answer is a list of dicts, best first: what was chosen, and `score`, the model's own probability of it. Each
    text of `rank` has its own, that it belongs to the image; they do not sum to 1.
    """

    def __init__(self, model: Any, processor: SohoProcessor) -> None:
        self.model, self.processor = model.eval(), processor
        self.device = next(model.parameters()).device

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: str | torch.device | None = None) -> Self:
        """Load a model and its processor.

        Args:
            folder: What training wrote: the folder of a run (its best model, or its last), or of a model; or a name on
                the hub.
            device: Where to compute; a GPU if there is one when None.

        Raises:
            FileNotFoundError: nothing could be loaded from there.
            ValueError: it holds no SOHO model, lacks some of its tensors, or has diverged.
        """
        found = next((Path(folder) / name for name in ("best", "model") if (Path(folder) / name).is_dir()), folder)
        if found is folder and (Path(folder) / "recipe.yaml").is_file():
            raise FileNotFoundError(f"{folder} is a run without a model yet: best/ and model/ come at its end")
        try:
            options, _ = loading_options(found)  # The hub is asked once.
            config = SohoConfig.from_pretrained(found, **options)
            processor = SohoProcessor.from_pretrained(found, **options)
            kind = next((model for model in _MODELS if model.__name__ in (config.architectures or ())), None)
            if kind is None:
                held = ", ".join(config.architectures or ()) or "a model of unknown kind"
                raise ValueError(f"{found} holds {held}; expected {', '.join(model.__name__ for model in _MODELS)}")
            model, info = kind.from_pretrained(
                found, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except OSError as error:
            raise FileNotFoundError(
                f"no model could be loaded from {folder}; expected the folder of a run or of a model (config.json, "
                f"model.safetensors and the processor's files), or a hub name this machine can reach ({error})"
            ) from error
        lost = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
        if lost:
            raise ValueError(f"{found} lacks {len(lost)} tensors of {kind.__name__} ({', '.join(lost[:3])})")
        check_finite(model, str(found))
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(speed_up_on_cpu(model) if model.device.type == "cpu" else model, processor)

    def answer(self, image: ImageLike, question: str, top_k: int = 5) -> list[dict[str, Any]]:
        """The most likely answers to a question: [{"answer", "score"}]."""
        self._expect("answer", SohoForQuestionAnswering)
        logits = self._logits([image], [question])
        return self._best("answer", self._names(), logits[0].sigmoid(), top_k)

    def rank(self, image: ImageLike, texts: Sequence[str], top_k: int | None = None) -> list[dict[str, Any]]:
        """Texts by how well they describe an image: [{"text", "score"}]; all of them unless `top_k` is given."""
        self._expect("rank", SohoForImageTextRetrieval, SohoForPreTraining)
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts: expected a list of at least one text, got {texts!r}")
        logits = self._logits([image], list(texts))
        return self._best("text", list(texts), logits.softmax(-1)[:, 1], len(texts) if top_k is None else top_k)

    def entails(self, image: ImageLike, text: str, top_k: int = 3) -> list[dict[str, Any]]:
        """Whether an image entails a text, contradicts it, or neither: [{"label", "score"}]."""
        self._expect("entails", SohoForVisualEntailment)
        return self._best("label", self._names(), self._logits([image], [text])[0].softmax(-1), top_k)

    def compare(self, left: ImageLike, right: ImageLike, text: str, top_k: int = 2) -> list[dict[str, Any]]:
        """Whether a statement about two images is true: [{"label", "score"}]."""
        self._expect("compare", SohoForVisualReasoning)
        return self._best("label", self._names(), self._logits([left, right], [text])[0].softmax(-1), top_k)

    def _expect(self, asked: str, *kinds: type) -> None:
        if not isinstance(self.model, kinds):
            wanted = " or ".join(_MODELS[kind][0] for kind in kinds)
            purpose, question = _MODELS[type(self.model)]
            raise ValueError(f"{asked}: needs a model for {wanted}; this one is for {purpose}, ask it by {question}")

    def _names(self) -> list[str]:
        names = self.model.config.id2label
        return [names[number] for number in range(len(names))]

    @torch.no_grad()
    def _logits(self, images: Sequence[ImageLike], texts: Sequence[str]) -> Tensor:
        """Float32 (texts, classes) on the CPU; every text with all the images."""
        output = self.model(**self._inputs(images, texts))
        logits = output.itm_logits if "itm_logits" in output else output.logits
        return logits.float().cpu()

    def _inputs(self, images: Sequence[ImageLike], texts: Sequence[str]) -> dict[str, Tensor | None]:
        """The keywords of the model's forward, on its device; every text with all the images."""
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text: expected words, got {text!r}")
        pixels = self.processor.image_processor.collate([self._pixels(image) for image in images])
        encoded = self.processor.tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
        special = torch.tensor(self.processor.tokenizer.all_special_ids)  # [UNK] among them
        is_word_PS = torch.isin(encoded["input_ids"], special, invert=True)
        for text, has_words in zip(texts, is_word_PS.any(1).tolist(), strict=True):
            if not has_words:
                raise ValueError(f"text: {text[:60]!r} holds no word that this model knows")
        longest, limit = encoded["input_ids"].shape[1], self.model.config.max_position_embeddings
        if longest > limit:
            raise ValueError(f"text: expected at most {limit} tokens, got {longest}: {max(texts, key=len)[:60]!r}...")
        index = torch.arange(len(images)) if len(images) > 1 else torch.zeros((), dtype=torch.int64)
        inputs = {**pixels, **encoded, "image_index": index.expand(len(texts), *index.shape)}
        return {name: None if value is None else value.to(self.device) for name, value in inputs.items()}

    def _pixels(self, image: ImageLike) -> Tensor:
        processor = self.processor.image_processor
        if isinstance(image, Image.Image):
            return processor.resize_one(image_to_pixels(image))
        if not isinstance(image, (str, os.PathLike)):
            raise ValueError(f"image: expected a path or a PIL image, got {type(image).__name__}")
        try:
            return processor.decode(Path(image).read_bytes())
        except (OSError, BrokenImageError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ValueError(f"image: {image} can't be read ({reason})") from error

    @staticmethod
    def _best(what: str, names: Sequence[str], scores: Tensor, top_k: int) -> list[dict[str, Any]]:
        if top_k < 1:
            raise ValueError(f"top_k: expected at least 1, got {top_k}")
        if not bool(scores.isfinite().all()):
            raise ValueError("the model's scores are not finite numbers; it or the image can't be used")
        best = scores.topk(min(top_k, len(names)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{what: names[number], "score": value} for number, value in pairs]
