"""What may be asked of a pipeline, and the types of what comes back."""

# A list is an iterable as well, as a path is: of overloads the first that fits holds, so they may overlap.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

from soho_fast.data.images import ImageLike
from soho_fast.model.outputs import VisualTokens


class _Scored(TypedDict):
    score: float


class ScoredAnswer(_Scored):
    """One of the answers to `answer`."""

    answer: str


class ScoredText(_Scored):
    """One of the texts of `rank`."""

    text: str


class ScoredLabel(_Scored):
    """One of the labels of `entails`, `compare` and `label`."""

    label: str


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


Answer = list[ScoredAnswer] | list[ScoredText] | list[ScoredLabel]
"""What was chosen, and "score"; best first."""

OneImage = ImageLike | VisualTokens
Listed = list[Any] | tuple[Any, ...]
# In the place of one image or one text, or of those of each question: some in a list or a tuple, or in any iterable.
ListedImages = OneImage | Listed
ManyImages = OneImage | Iterable[Any]
ListedTexts = str | Listed
ManyTexts = str | Iterable[Any]


class _Options(TypedDict, total=False):
    batch_size: int
    progress: bool


class RaisingErrors(_Options, total=False):
    """Options of a question whose errors are raised."""

    errors: Literal["raise"]


class ReturningErrors(_Options):
    """Options of a question whose errors are returned."""

    errors: Literal["return"]


class Questions(ABC):
    """The questions of `SohoPipeline`, which says what they have in common; each has an answer of its own type."""

    @overload
    def answer(
        self, image: OneImage, question: str, top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> list[ScoredAnswer]: ...
    @overload
    def answer(
        self, image: ListedImages, question: ListedTexts, top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> list[list[ScoredAnswer]]: ...
    @overload
    def answer(
        self, image: ManyImages, question: ManyTexts, top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> Iterator[list[ScoredAnswer]]: ...
    @overload
    def answer(
        self, image: OneImage, question: str, top_k: int | None = None, **options: Unpack[ReturningErrors]
    ) -> list[ScoredAnswer] | ValueError: ...
    @overload
    def answer(
        self, image: ManyImages, question: ManyTexts, top_k: int | None = None, **options: Unpack[ReturningErrors]
    ) -> Iterable[list[ScoredAnswer] | ValueError]: ...
    def answer(self, image: Any, question: Any, top_k: int | None = None, **options: Any) -> Any:
        """The most likely answers to a question: [{"answer", "score"}]; five of them unless `top_k` is given."""
        return self._ask("answer", (image, question), top_k, **options)

    @overload
    def rank(
        self, image: OneImage, texts: Sequence[str], top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> list[ScoredText]: ...
    @overload
    def rank(
        self, image: ListedImages, texts: ListedTexts, top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> list[list[ScoredText]]: ...
    @overload
    def rank(
        self, image: ManyImages, texts: ManyTexts, top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> Iterator[list[ScoredText]]: ...
    @overload
    def rank(
        self, image: OneImage, texts: Sequence[str], top_k: int | None = None, **options: Unpack[ReturningErrors]
    ) -> list[ScoredText] | ValueError: ...
    @overload
    def rank(
        self, image: ManyImages, texts: ManyTexts, top_k: int | None = None, **options: Unpack[ReturningErrors]
    ) -> Iterable[list[ScoredText] | ValueError]: ...
    def rank(self, image: Any, texts: Any, top_k: int | None = None, **options: Any) -> Any:
        """Texts by how well they describe an image: [{"text", "score"}]; all of them unless `top_k` is given."""
        return self._ask("rank", (image, texts), top_k, **options)

    def label(self, image: Any, labels: Sequence[str], templates: Sequence[str] = TEMPLATES, **options: Any) -> Any:
        """Which of the labels an image has, without training: `list[ScoredLabel]`, of many images as of `rank`.

        Takes a model for `rank`, and its options. Each label is put into each template (open_clip's rule). A label's
        log-odds are the mean over its texts, and the scores are the softmax over the labels: the probability of each
        if exactly one of them is right.
        """
        return self._ask("rank", (image, Prompts(labels, templates)), **{"top_k": None, **options})

    @overload
    def entails(
        self, image: OneImage, text: str, top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> list[ScoredLabel]: ...
    @overload
    def entails(
        self, image: ListedImages, text: ListedTexts, top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> list[list[ScoredLabel]]: ...
    @overload
    def entails(
        self, image: ManyImages, text: ManyTexts, top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> Iterator[list[ScoredLabel]]: ...
    @overload
    def entails(
        self, image: OneImage, text: str, top_k: int | None = None, **options: Unpack[ReturningErrors]
    ) -> list[ScoredLabel] | ValueError: ...
    @overload
    def entails(
        self, image: ManyImages, text: ManyTexts, top_k: int | None = None, **options: Unpack[ReturningErrors]
    ) -> Iterable[list[ScoredLabel] | ValueError]: ...
    def entails(self, image: Any, text: Any, top_k: int | None = None, **options: Any) -> Any:
        """Whether an image entails a text, contradicts it, or neither: [{"label", "score"}]."""
        return self._ask("entails", (image, text), top_k, **options)

    @overload
    def compare(
        self, left: OneImage, right: OneImage, text: str, top_k: int | None = None, **options: Unpack[RaisingErrors]
    ) -> list[ScoredLabel]: ...
    @overload
    def compare(
        self,
        left: ListedImages,
        right: ListedImages,
        text: ListedTexts,
        top_k: int | None = None,
        **options: Unpack[RaisingErrors],
    ) -> list[list[ScoredLabel]]: ...
    @overload
    def compare(
        self,
        left: ManyImages,
        right: ManyImages,
        text: ManyTexts,
        top_k: int | None = None,
        **options: Unpack[RaisingErrors],
    ) -> Iterator[list[ScoredLabel]]: ...
    @overload
    def compare(
        self, left: OneImage, right: OneImage, text: str, top_k: int | None = None, **options: Unpack[ReturningErrors]
    ) -> list[ScoredLabel] | ValueError: ...
    @overload
    def compare(
        self,
        left: ManyImages,
        right: ManyImages,
        text: ManyTexts,
        top_k: int | None = None,
        **options: Unpack[ReturningErrors],
    ) -> Iterable[list[ScoredLabel] | ValueError]: ...
    def compare(self, left: Any, right: Any, text: Any, top_k: int | None = None, **options: Any) -> Any:
        """Whether a statement about two images is true: [{"label", "score"}]."""
        return self._ask("compare", (left, right, text), top_k, **options)

    @abstractmethod
    def _ask(self, action: str, values: Sequence[Any], top_k: int | None, **options: Any) -> Any:
        """The answer to a question, or those to many, by the name of its method."""
