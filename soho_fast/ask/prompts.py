"""What an image is labelled by, without training: labels in templates."""

from __future__ import annotations

from collections.abc import Sequence

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
