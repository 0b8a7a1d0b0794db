"""A model and its processor, asked about images in one line of Python; `soho ask` is the same on the command line.

L visual tokens of an image, P texts, S tokens of a text; the pixels of an image are uint8 (3, height, width).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from tqdm import tqdm
    from transformers.utils import cached_file

    from soho_fast import model as models
    from soho_fast.ask import MODELS, does_not_know
    from soho_fast.common.hub import loading_options, model_folder
    from soho_fast.common.versions import read_run_of
    from soho_fast.data.batches.sample import pad_texts
    from soho_fast.data.images import load_any
    from soho_fast.data.processor import SohoProcessor
    from soho_fast.data.readers.records import check_text
    from soho_fast.model import SohoConfig, VisualTokens
    from soho_fast.model.auxiliary.contrastive import better_head
    from soho_fast.model.fast.cpu import speed_up_on_cpu
    from soho_fast.model.image_tokens import join_images, split_images
    from soho_fast.model.pretrained import check_finite, check_vocabulary

Answer = list[dict[str, Any]]
"""What was chosen, and "score"; best first."""

FIELDS = {
    "answer": ("image", "question"),
    "rank": ("image", "texts"),
    "entails": ("image", "text"),
    "compare": ("left", "right", "text"),
}
"""What each kind of question consists of: its images, then its words."""

# How many answers there are where the caller does not say; all of them for other questions.
_TOP_K = {"answer": 5}
# Among the images of so many batches, which are read ahead, those of like shape are encoded together.
_WINDOW = 4
# For each image of a batch so many texts are read at a time, and so many held.
_TEXTS, _TEXTS_AHEAD = 4, 64
# A batch of images gets no more padding than this share of what is encoded.
_MOST_PADDING = 0.2


TEMPLATES = ("a photo of a {}.",)
"""What a label is put into, at `{}`, where the caller does not say."""


class Prompts(list[str]):
    """The texts of labels in templates, which an image is labelled by; all of the first label come first.

    Args:
        labels: At least two names, each once.
        templates: Texts with `{}`, the place of the label, as open_clip's templates have it.

    Raises:
        ValueError: There are fewer labels, one comes twice or is empty, or a template has no `{}`.
    """

    def __init__(self, labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> None:
        for name, given, least in (("labels", labels, 2), ("templates", templates, 1)):
            if isinstance(given, str) or not all(isinstance(each, str) and each.strip() for each in given):
                raise ValueError(f"{name}: expected a list of texts, got {given!r:.60}")
            if len(given) < least:
                raise ValueError(f"{name}: expected at least {least}, got {len(given)}")
            if twice := [each for number, each in enumerate(given) if each in given[:number]]:
                raise ValueError(f"{name}: {twice[0]!r:.60} comes twice; expected each once")
        if without := [each for each in templates if "{}" not in each]:
            raise ValueError(f"templates: {without[0]!r:.60} has no {{}}, the place of the label")
        super().__init__(template.replace("{}", label) for label in labels for template in templates)
        self.labels = list(labels)


@dataclass(frozen=True)
class Question:
    """Words that are read with one image, or with two; what equals is the same image.

    The words are as they came: several texts are those of "rank".
    """

    images: tuple[Any, ...]
    words: Any


@dataclass(eq=False)
class LoadedImage:
    """An image: its pixels, resized; what `encode` gave of it; or why it can't be used."""

    content: Tensor | VisualTokens | ValueError


class SohoPipeline:
    """A model and its processor, asked one question or many at a time, as transformers' pipelines are.

    Which question it takes depends on the model: `answer` (question answering), `rank` and `label` (retrieval, also
    pre-trained without fine-tuning), `entails` (visual entailment), `compare` (visual reasoning). Images are
    `ImageLike` (see `data/images.py`), or what `encode` gave of one.

    An answer is a list of dicts, best first: what was chosen, and `score`, its probability by the model. The scores of
    `rank` are each text's probability to belong to the image, which do not sum to 1; by the contrastive head (`head`)
    the cosine of the two vectors.

    Images and texts may be given one or many at a time, in a list or a tuple (many for `rank`: lists of texts), which
    gives a list of answers in the order of the questions. A single image or text is used for every question. Images of
    like shape are encoded together, and an image that comes again (the same path, or the same object) is encoded once.

    All questions take `batch_size`, the number of images encoded at a time (of texts, four times as many are read);
    `progress`, which shows a bar; and `errors`: with "raise" the first error ends the call, with "return" the
    ValueError is returned in the place of its answer.

    A UserWarning names the words that the model does not know, each once.

    All raise ValueError: an image or a text can't be used, the model's scores are not finite, the model is for another
    question, or there are not as many images as texts.
    """

    def __init__(self, model: Any, processor: SohoProcessor, head: str = "itm") -> None:
        self.model, self.processor, self.head = model.eval(), processor, head
        self.device = next(model.parameters()).device
        self._warned_of: set[str] = set()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device | None = None,
        *,
        head: str | None = None,
        precision: str | None = None,
        compile: bool = False,
        calibration: Iterable[Mapping[str, Any]] | None = None,
    ) -> Self:
        """Load a model and its processor.

        Args:
            folder: What training wrote: the folder of a run (its best model, or its last), or of a model; or a name on
                the hub.
            device: Where to compute; a GPU if there is one when None.
            head: What `rank` and `label` ask, "itm" or "contrastive"; the one that ranked held-out data better, as the
                model's run.json has it, when None.
            precision, compile: as of `prepare_for_inference`, which is left out when they are None and False.
            calibration: some dozens of questions as `__call__` takes them, with "int8" only: it takes its ranges there.

        Raises:
            FileNotFoundError: nothing could be loaded from there.
            ValueError: it holds no SOHO model, lacks some of its tensors, or has diverged; or a question of the
                calibration can't be used.
        """
        model, processor = load_model(folder)
        if head is None:
            head = better_head((read_run_of(local_folder(folder)) or {}).get("metrics", {}))
        if head not in ("itm", "contrastive"):
            raise ValueError(f"head: expected 'itm' or 'contrastive', got {head!r}")
        if head == "contrastive":
            model.required_contrastive_head()
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        soho = cls(model, processor, head)
        if precision is not None or compile or calibration is not None:
            batches = None if calibration is None else map(soho._inputs, calibration)
            model.prepare_for_inference(precision or "auto", compile=compile, calibration=batches)
        elif model.device.type == "cpu":
            speed_up_on_cpu(model)
        return soho

    @property
    def action(self) -> str:
        """The question that this model takes, one of `FIELDS`."""
        return MODELS[type(self.model).__name__][1]

    def shown(self, score: float) -> str:
        """A score of this model's question as text: in per cent, a cosine as a number."""
        return f"{score:6.3f}" if self.head == "contrastive" else f"{100 * score:5.1f} %"

    def answer(self, image: Any, question: Any, top_k: int | None = None, **options: Any) -> Any:
        """The most likely answers to a question: [{"answer", "score"}]; five of them unless `top_k` is given."""
        return self._ask("answer", (image, question), top_k, **options)

    def rank(self, image: Any, texts: Any, top_k: int | None = None, **options: Any) -> Any:
        """Texts by how well they describe an image: [{"text", "score"}]; all of them unless `top_k` is given."""
        return self._ask("rank", (image, texts), top_k, **options)

    def label(self, image: Any, labels: Sequence[str], templates: Sequence[str] = TEMPLATES, **options: Any) -> Any:
        """Which of the labels an image has, without training: [{"label", "score"}], of many images as of `rank`.

        Takes a model for `rank`, and its options. Each label is put into each template (open_clip's rule). A label's
        log-odds are the mean over its texts, and the scores are the softmax over the labels: the probability of each
        if exactly one of them is right.
        """
        return self._ask("rank", (image, Prompts(labels, templates)), **{"top_k": None, **options})

    def entails(self, image: Any, text: Any, top_k: int | None = None, **options: Any) -> Any:
        """Whether an image entails a text, contradicts it, or neither: [{"label", "score"}]."""
        return self._ask("entails", (image, text), top_k, **options)

    def compare(self, left: Any, right: Any, text: Any, top_k: int | None = None, **options: Any) -> Any:
        """Whether a statement about two images is true: [{"label", "score"}]."""
        return self._ask("compare", (left, right, text), top_k, **options)

    def __call__(self, asked: Any, top_k: int | None = None, **options: Any) -> Any:
        """The question of this model by its arguments' names, such as {"image": "a.jpg", "question": "what is it?"}.

        Args:
            asked: a dict, or a list of dicts.
            top_k: as in the question's own method.
            options: see above.
        """
        names = FIELDS[self.action]
        if not isinstance(asked, (list, tuple)):
            return self._ask(self.action, _values(asked, names), top_k, **options)
        return list(self._stream([_values(each, names) for each in asked], top_k, **options))

    def encode(self, images: Any, batch_size: int = 8, errors: str = "raise") -> Any:
        """Images for many questions: what may stand in the place of an image, and is not encoded again.

        Args:
            images: one, or a list.
            batch_size: Images that are encoded at a time.
            errors: "return" gives, of several images, the ValueError in the place of one that can't be used.

        Returns:
            `VisualTokens` of an image, on the model's device; or a list of them.

        Raises:
            ValueError: an image can't be used.
        """
        _at_least_one("batch_size", batch_size)
        if not isinstance(images, (list, tuple)):
            return self._encode([self._load(images)], 1)[0]
        load, step, found = self._load if errors == "raise" else self._loaded, _WINDOW * batch_size, list[Any]()
        for first in range(0, len(images), step):
            found += self._encode([load(image) for image in images[first : first + step]], batch_size)
        return found

    @torch.no_grad()
    def answer_together(
        self, questions: Sequence[Question], top_k: int | None, batch_size: int
    ) -> list[Answer | ValueError]:
        """The answers to a window of questions (see `windows`), whose images are `LoadedImage`s; or the error."""
        found: list[Answer | ValueError] = [[]] * len(questions)
        pairs: list[tuple[tuple[LoadedImage, ...], list[int]]] = []
        rows_of: dict[int, slice] = {}
        for number, question in enumerate(questions):
            try:
                own = self.token_ids(self._usable_texts(question))
            except ValueError as error:
                found[number] = error.with_traceback(None)
                continue
            rows_of[number] = slice(len(pairs), len(pairs) + len(own))
            pairs += [(question.images, each) for each in own]
        if not pairs:
            return found
        images = list(dict.fromkeys(image for shown, _ in pairs for image in shown))
        contents = [image.content for image in images if not isinstance(image.content, ValueError)]
        encoded = dict(zip(images, self._encode(contents, batch_size), strict=True))
        logits = self._logits([([encoded[image] for image in shown], each) for shown, each in pairs], batch_size)
        for number, rows in rows_of.items():
            try:
                found[number] = self._best(questions[number].words, logits[rows], top_k)
            except ValueError as error:
                found[number] = error.with_traceback(None)
        return found

    def check_action(self, action: str) -> None:
        """Raises ValueError: the model is for another question."""
        if self.action != action:
            wanted = " or ".join(purpose for purpose, question in reversed(MODELS.values()) if question == action)
            purpose, question = MODELS[type(self.model).__name__]
            raise ValueError(f"{action}: needs a model for {wanted}; this one is for {purpose}, ask it by {question}")

    def _ask(self, action: str, values: Sequence[Any], top_k: int | None, **options: Any) -> Any:
        self.check_action(action)
        *images, words = values
        # Of "rank" a list of texts is one question's.
        texts_are_many = isinstance(words, (list, tuple)) and (
            action != "rank" or any(isinstance(each, (list, tuple)) for each in words)
        )
        is_many = [*(isinstance(image, (list, tuple)) for image in images), texts_are_many]
        many = {name: value for name, value, of_many in zip(FIELDS[action], values, is_many, strict=True) if of_many}
        if not many:
            (answer,) = self._stream([values], top_k, **options)
            return answer
        if len({len(value) for value in many.values()}) > 1:
            got = ", ".join(f"{len(value)} of {name}" for name, value in many.items())
            raise ValueError(f"{', '.join(many)}: expected as many of each, got {got}")
        single = dict(zip(FIELDS[action], values, strict=True))
        each_of = zip(*many.values(), strict=True)
        rows = [list((single | dict(zip(many, own, strict=True))).values()) for own in each_of]
        return list(self._stream(rows, top_k, **options))

    def _stream(
        self,
        rows: Sequence[Sequence[Any]],
        top_k: int | None,
        *,
        batch_size: int = 8,
        progress: bool = False,
        errors: str = "raise",
    ) -> Iterator[Any]:
        """The answers to rows of images and words, one by one; the error of one alone has no number."""
        _at_least_one("batch_size", batch_size)
        if top_k is not None:
            _at_least_one("top_k", top_k)
        if errors not in ("raise", "return"):
            raise ValueError(f"errors: expected 'raise' or 'return', got {errors!r}")
        answers = self._answers(rows, top_k, batch_size)
        shown = tqdm(answers, total=len(rows), unit="question", dynamic_ncols=True) if progress else answers
        for number, answer in enumerate(shown):
            if isinstance(answer, ValueError) and errors == "raise":
                if len(rows) == 1:
                    raise answer
                raise ValueError(f"question {number} (from 0): {answer}") from answer
            yield answer

    def _answers(
        self, rows: Sequence[Sequence[Any]], top_k: int | None, batch_size: int
    ) -> Iterator[Answer | ValueError]:
        loaded: dict[Hashable, LoadedImage] = {}

        def load(image: Any) -> LoadedImage:
            key = os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)
            if key not in loaded:
                loaded[key] = LoadedImage(self._loaded(image))
            return loaded[key]

        questions = (Question(tuple(map(load, images)), words) for *images, words in rows)
        for window in windows(questions, batch_size):
            answered = {image for question in window for image in question.images}
            for key in [key for key, image in loaded.items() if image in answered]:
                del loaded[key]
            yield from self.answer_together(window, top_k, batch_size)

    @torch.no_grad()
    def _encode(self, images: Sequence[Tensor | VisualTokens | ValueError], batch_size: int) -> list[Any]:
        """Each image's own `VisualTokens`, without padding; of one that can't be used the error."""
        found: list[Any] = list(images)
        places = [place for place, image in enumerate(images) if isinstance(image, Tensor)]
        pixel_images = [image for image in images if isinstance(image, Tensor)]
        sizes, most_padding = [(image.shape[-2], image.shape[-1]) for image in pixel_images], _MOST_PADDING
        if self.model.base().visual_encoder.padding_leaks:  # then tokens feel how far their batch is padded
            edge, most_padding = self.processor.image_processor.size_divisor, 0.0
            sizes = [(-(-height // edge) * edge, -(-width // edge) * edge) for height, width in sizes]
        for batch in like_shapes(sizes, batch_size, most_padding):
            pixels = self.processor.image_processor.collate([pixel_images[number] for number in batch])
            visual = self.model.encode_images(
                **{name: None if value is None else value.to(self.device) for name, value in pixels.items()}
            )
            for number, own in zip(batch, split_images(visual), strict=True):
                found[places[number]] = own
        return found

    def _logits(self, pairs: Sequence[tuple[list[VisualTokens], list[int]]], batch_size: int) -> Tensor:
        """Float32 (texts, classes) on the CPU, of texts (token ids), each with its image or its two."""
        # Of like length together: little is spent on padding.
        order = sorted(
            range(len(pairs)),
            key=lambda row: (max(len(image.valid[0]) for image in pairs[row][0]), len(pairs[row][1])),
        )
        parts = []
        for first in range(0, len(order), _TEXTS * batch_size):
            lot = [pairs[row] for row in order[first : first + _TEXTS * batch_size]]
            place_of = {id(image): image for images, _ in lot for image in images}
            visual = join_images(list(place_of.values()))
            places = {key: place for place, key in enumerate(place_of)}
            index = torch.tensor([[places[id(image)] for image in images] for images, _ in lot])
            parts.append(self.read(visual, self._padded([ids for _, ids in lot]) | {"image_index": index.squeeze(1)}))
        logits = torch.cat(parts)
        return torch.empty_like(logits).index_copy_(0, torch.tensor(order), logits)

    def read(self, visual: VisualTokens, texts: Mapping[str, Tensor]) -> Tensor:
        """Logits of texts about encoded images, float32 (P, A) on the CPU; by the contrastive head cosines (P, 1).
        `texts` are `input_ids`, `attention_mask` and `image_index` as the model takes them, on the CPU."""
        on_device = {name: value.to(self.device) for name, value in texts.items()}
        if self.head == "contrastive":
            image_IE = self.model.image_vectors(self.model.embed_images(visual), visual.valid)
            image_PE = image_IE[on_device.pop("image_index")]
            return (image_PE * self.model.text_vectors(**on_device)).sum(-1, keepdim=True).float().cpu()
        output = self.model(visual_tokens=visual, **on_device)
        return (output.itm_logits if "itm_logits" in output else output.logits).float().cpu()

    def _inputs(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The model's own, of a question as `__call__` takes it."""
        *images, words = _values(asked, FIELDS[self.action])
        pixels = [load_any(image, self.processor.image_processor) for image in images]
        texts = self.texts_of(words)
        index = torch.arange(len(images)).repeat(len(texts["input_ids"]), 1).squeeze(1)
        return {**self.processor.image_processor.collate(pixels), **texts, "image_index": index}

    def texts_of(self, words: Any) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (P, S) of the words of a question. Raises ValueError: they can't be used."""
        return self._padded(self.token_ids(self._usable_texts(Question((), words))))

    def _padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (P, S)."""
        return pad_texts(ids, self.processor.tokenizer.pad_token_id)

    def _usable_texts(self, question: Question) -> Sequence[str]:
        """The texts of a question; raises ValueError, also for its images."""
        texts = question.words
        if self.action != "rank":
            texts = [texts]
        elif not isinstance(texts, (list, tuple)) or not texts:
            raise ValueError(f"texts: expected a list of at least one text, got {texts!r:.60}")
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text: expected words, got {text!r:.60}")
            check_text(text, "text:")
        for image in question.images:
            if isinstance(image.content, ValueError):
                raise image.content
        return texts

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text; warns of unknown words. Raises ValueError: one can't be read."""
        tokenizer, limit = self.processor.tokenizer, self.model.config.max_position_embeddings
        special = set(tokenizer.all_special_ids)  # [UNK] among them
        encoded = tokenizer(list(texts), verbose=False)
        found: list[list[int]] = encoded["input_ids"]
        for text, ids in zip(texts, found, strict=True):
            if special.issuperset(ids):
                raise ValueError(f"text: {text[:60]!r} holds no word that this model knows")
            if len(ids) > limit:
                raise ValueError(f"text: expected at most {limit} tokens, got {len(ids)}: {text[:60]!r}...")
        self.warn_of(_unknown(texts, encoded.encodings, tokenizer.unk_token_id))
        return found

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """The words of texts that the tokenizer has no token for, or that it spells letter by letter up to an
        ending, each once."""
        tokenizer = self.processor.tokenizer
        return _unknown(texts, tokenizer(list(texts), verbose=False).encodings, tokenizer.unk_token_id)

    def warn_of(self, unknown: Sequence[str]) -> None:
        """Warn of words that this model does not know, and that it has not warned of."""
        new = [word for word in unknown if word not in self._warned_of]
        self._warned_of.update(new)
        if new:
            warnings.warn(does_not_know(new), stacklevel=2)

    def _load(self, image: Any) -> Tensor | VisualTokens:
        """The pixels of an image, resized; what `encode` gave is taken as it is. Raises ValueError."""
        if not isinstance(image, VisualTokens):
            return load_any(image, self.processor.image_processor)
        if len(image.valid) != 1:
            raise ValueError(f"image: expected one image, as encode gives it, got a batch of {len(image.valid)}")
        return image

    def _loaded(self, image: Any) -> Tensor | VisualTokens | ValueError:
        try:
            return self._load(image)
        except ValueError as error:
            return error.with_traceback(None)  # which would keep all that is computed here

    def _best(self, texts: Sequence[str], logits_PA: Tensor, top_k: int | None) -> Answer:
        if isinstance(texts, Prompts):
            # Of cosines logits of its loss, as CLIP labels; of the ITM head's two logits their difference.
            scale = self.model.contrastive_head.scale().cpu() if self.head == "contrastive" else 1.0
            log_odds_P = scale * (logits_PA[:, -1] - logits_PA[:, :-1].sum(1))
            what, names, scores = "label", texts.labels, log_odds_P.view(len(texts.labels), -1).mean(1).softmax(0)
        elif self.action == "rank":
            what, names = "text", list(texts)
            scores = logits_PA[:, 0] if self.head == "contrastive" else logits_PA.softmax(-1)[:, 1]
        else:
            labels = self.model.config.id2label
            names = [labels[number] for number in range(len(labels))]
            is_answer = self.action == "answer"
            what = "answer" if is_answer else "label"
            scores = logits_PA[0].sigmoid() if is_answer else logits_PA[0].softmax(-1)
        if not bool(scores.isfinite().all()):
            raise ValueError("the model's scores are not finite numbers; it or the image can't be used")
        best = scores.topk(min(top_k or _TOP_K.get(self.action, len(names)), len(names)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{what: names[number], "score": value} for number, value in pairs]


def _unknown(texts: Sequence[str], encodings: Iterable[Any], unk_token_id: int) -> list[str]:
    words = dict[str, None]()
    for text, encoding in zip(texts, encodings, strict=True):
        pieces: dict[int | None, list[tuple[int, int, int]]] = {}
        for word, token, place in zip(encoding.word_ids, encoding.ids, encoding.offsets, strict=True):
            pieces.setdefault(word, []).append((token, *place))
        pieces.pop(None, None)  # [CLS] and [SEP]
        for each in pieces.values():
            # Tokenizers made of a corpus have all its letters, so that nothing is [UNK]; no text has trained those.
            spelled = len(each) > 1 and all(end - begin == 1 for _, begin, end in each[:-1])
            if spelled or any(token == unk_token_id for token, _, _ in each):
                words[text[each[0][1] : each[-1][2]]] = None
    return list(words)


def load_model(folder: str | os.PathLike[str]) -> tuple[Any, SohoProcessor]:
    """A model as it was trained, in float32 on the CPU, and its processor; see `SohoPipeline.from_pretrained`."""
    found, failure = model_folder(folder), ""
    try:
        options, failure = loading_options(found)  # The hub is asked once.
        config = SohoConfig.from_pretrained(found, **options)
        processor = SohoProcessor.from_pretrained(found, **options)
        kind = next((name for name in MODELS if name in (config.architectures or ())), None)
        if kind is None:
            held = ", ".join(config.architectures or ()) or "a model of unknown kind"
            raise ValueError(f"{found} holds {held}; expected {', '.join(MODELS)}")
        model, lost = getattr(models, kind).loaded_from(found, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"no model could be loaded from {folder}; expected the folder of a run or of a model (config.json, "
            "model.safetensors and the processor's files), or a hub name this machine can reach "
            f"({f'there is no such folder, and {failure}' if failure else error})"
        ) from error
    if lost:
        raise ValueError(f"{found} lacks {len(lost)} tensors of {kind} ({', '.join(lost[:3])})")
    check_finite(model, str(found))
    check_vocabulary(processor.tokenizer, model.config, str(found))
    return model.eval(), processor


def local_folder(folder: str | os.PathLike[str]) -> Path:
    """Where the files of a model are that was loaded from here, one of the hub's too."""
    found = model_folder(folder)
    if Path(found).is_dir():
        return Path(found)
    config = cached_file(str(found), "config.json", local_files_only=True)
    assert config is not None, "it was loaded from there"
    return Path(config).parent


def windows(questions: Iterable[Question], batch_size: int) -> Iterator[list[Question]]:
    """Consecutive questions, of as many images (and texts) as are looked at together."""
    window: list[Question] = []
    images: set[Hashable] = set()
    num_texts = 0
    for question in questions:
        num_own = len(question.words) if isinstance(question.words, (list, tuple)) else 1
        is_full = len(images.union(question.images)) > _WINDOW * batch_size
        if window and (is_full or num_texts + num_own > _TEXTS_AHEAD * batch_size):
            yield window
            window, images, num_texts = [], set(), 0
        window.append(question)
        images.update(question.images)
        num_texts += num_own
    if window:
        yield window


def like_shapes(
    sizes: Sequence[tuple[int, int]], batch_size: int, most_padding: float = _MOST_PADDING
) -> list[list[int]]:
    """Batches of images, by number, in which little is padded; the largest shapes come first.

    Args:
        sizes: height and width of each.
        batch_size: the most of a batch.
        most_padding: no batch gets more than this share of padding.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(sizes)), key=lambda number: sizes[number], reverse=True):
        together = [*(batches[-1] if batches else ()), number]
        height, width = (max(sizes[each][axis] for each in together) for axis in (0, 1))
        filled = sum(sizes[each][0] * sizes[each][1] for each in together) / (height * width * len(together))
        if batches and len(together) <= batch_size and filled >= 1 - most_padding:
            batches[-1] = together
        else:
            batches.append([number])
    return batches


def _values(asked: Any, names: Sequence[str]) -> list[Any]:
    if not isinstance(asked, Mapping) or set(asked) != set(names):
        got = f"a dict with {', '.join(map(str, asked))}" if isinstance(asked, Mapping) else type(asked).__name__
        raise ValueError(f"expected a dict with {', '.join(names)}, got {got}")
    return [asked[name] for name in names]


def _at_least_one(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value!r}")
