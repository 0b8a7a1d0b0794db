"""Hypotheses about pictures (entailment, neutral, contradiction), in the SNLI-VE format.

Every picture gets as many hypotheses of each label. What a picture can't show ("the dog is hungry") is neutral where
the dog is there and a contradiction where it is not; what it shows is an entailment or a contradiction. The wording
thus rules out one label of three: a model that reads the hypothesis only can reach two thirds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from .concepts import CLOSED_CATEGORIES, COLOURS, CONCEPTS, Concept, article_for
from .scenes import Scene
from .wording import (
    NUMBER_WORDS,
    OPPOSITE,
    RELATION_WORDS,
    category_counts,
    draw_absent,
    group_objects,
    is_surely_absent,
    related_pairs,
)
from .writers import STYLES, Picture, write_json_lines

LABELS = ("entailment", "neutral", "contradiction")
NUM_ANNOTATORS = 5
#: SNLI-VE split -> (Karpathy split, hypotheses of each label a picture).
SPLITS = {"train": ("train", 2), "dev": ("val", 1), "test": ("test", 1), STYLES: (STYLES, 1)}

_ANIMAL_PROPERTIES = (
    "is hungry",
    "is tired",
    "is very old",
    "has a name",
    "came from a friend",
    "was born in spring",
)
_THING_PROPERTIES = (
    "is very old",
    "came from a friend",
    "belongs to a teacher",
    "was found in a garden",
    "is expensive",
    "was bought yesterday",
)


def _property(concept: Concept, generator: random.Random) -> str:
    properties = _ANIMAL_PROPERTIES if concept.category == "animal" else _THING_PROPERTIES
    return f"The {concept.name} {generator.choice(properties)}."


def _presence(concept: Concept, generator: random.Random) -> str:
    name = f"{concept.article} {concept.name}"
    return generator.choice((f"There is {name}.", f"The picture shows {name}.", f"{name.capitalize()} can be seen."))


def _entailment(scene: Scene, generator: random.Random) -> str | None:
    kind = generator.choice(("presence", "presence", "relation", "colour", "count", "category"))
    groups = group_objects(scene)
    if kind == "presence":
        return _presence(generator.choice(groups).concept, generator)
    if kind == "relation" and (facts := related_pairs(scene)):
        first, direction, second = generator.choice(facts)
        return f"The {first.concept.name} is {RELATION_WORDS[direction]} the {second.concept.name}."
    if kind == "colour" and scene.background.colour:
        return f"The background is {scene.background.colour}."
    if kind == "count" and (repeated := [group for group in groups if group.count > 1]):
        group = generator.choice(repeated)
        return f"There are {NUMBER_WORDS[group.count]} {group.concept.plural}."
    if kind == "category":
        categories = [word for word in CLOSED_CATEGORIES if category_counts(scene)[word]]
        if categories:
            word = generator.choice(categories)
            return f"At least one thing here is {article_for(word)} {word}."
    return None


def _contradiction(scene: Scene, generator: random.Random) -> str | None:
    kind = generator.choice(("presence", "property", "property", "relation", "colour", "count", "category"))
    groups = group_objects(scene)
    if kind == "presence":
        return _presence(draw_absent(scene, generator), generator)
    if kind == "property":
        return _property(draw_absent(scene, generator), generator)
    if kind == "relation" and (facts := related_pairs(scene)):
        first, direction, second = generator.choice(facts)
        return f"The {first.concept.name} is {RELATION_WORDS[OPPOSITE[direction]]} the {second.concept.name}."
    if kind == "colour" and scene.background.colour:
        return f"The background is {generator.choice([c for c in COLOURS if c != scene.background.colour])}."
    if kind == "count":
        group = generator.choice(groups)
        # Fewer would be true as well ("there are two dogs" where there are three), so only more is false.
        if group.count < 3:
            return f"There are {NUMBER_WORDS[generator.randint(group.count + 1, 3)]} {group.concept.plural}."
    if kind == "category":
        absent = [
            word
            for word in CLOSED_CATEGORIES
            if not category_counts(scene)[word] and _category_is_surely_absent(scene, word)
        ]
        if absent:
            word = generator.choice(absent)
            return f"At least one thing here is {article_for(word)} {word}."
    return None


def _category_is_surely_absent(scene: Scene, category: str) -> bool:
    return all(is_surely_absent(scene, name) for name, concept in CONCEPTS.items() if concept.category == category)


def _neutral(scene: Scene, generator: random.Random) -> str | None:
    singles = [group for group in group_objects(scene) if group.single]
    return _property(generator.choice(singles).concept, generator) if singles else None


_WRITERS = {"entailment": _entailment, "neutral": _neutral, "contradiction": _contradiction}


def write_hypotheses(scene: Scene, number_each: int, seed: int) -> list[tuple[str, str]]:
    """Return (label, hypothesis) pairs: up to ``number_each`` different ones of each label, as many of each."""
    generator = random.Random(f"hypotheses-{seed}-{scene.held_out}-{scene.number}")
    found: dict[str, dict[str, None]] = {label: {} for label in LABELS}
    for label, hypotheses in found.items():
        for _ in range(40):
            if len(hypotheses) == number_each:
                break
            text = _WRITERS[label](scene, generator)
            if text is not None:
                hypotheses.setdefault(text)
    number = min(len(hypotheses) for hypotheses in found.values())
    return [(label, text) for label, hypotheses in found.items() for text in list(hypotheses)[:number]]


def write_snli_ve(
    folder: Path, pictures: Sequence[Picture], seed: int, texts_a_picture: int = 1
) -> tuple[list[str], dict[str, int]]:
    """Write ``snli_ve_{train,dev,test}.jsonl`` into ``folder``; the pictures are those of the Flickr30K-style folder.

    Where there are pictures of held-out styles, ``snli_ve_styles.jsonl`` too. ``texts_a_picture`` is
    `SceneOptions.texts`.

    Returns:
        (all hypotheses, split -> number of rows).
    """
    folder.mkdir()
    texts: list[str] = []
    numbers: dict[str, int] = {}
    for split, (source_split, number_each) in SPLITS.items():
        generator = random.Random(f"annotators-{seed}-{split}")
        rows: list[dict] = []
        of_split = [picture for picture in pictures if picture.split == source_split]
        if split == STYLES and not of_split:
            continue
        for picture in of_split:
            seen: dict[str, int] = {}
            for label, hypothesis in write_hypotheses(picture.scene, number_each * texts_a_picture, seed):
                sentence = generator.randrange(len(picture.captions))
                votes = [label] * NUM_ANNOTATORS
                for _ in range(generator.choices((0, 1, 2), (0.7, 0.2, 0.1))[0]):
                    votes[generator.randrange(NUM_ANNOTATORS)] = generator.choice(LABELS)
                seen[label] = seen.get(label, 0) + 1
                caption_id = f"{picture.flickr_id}.jpg#{sentence}"
                rows.append(
                    {
                        "Flickr30K_ID": picture.flickr_id,
                        "annotator_labels": votes,
                        "captionID": caption_id,
                        "gold_label": label,
                        "pairID": f"{caption_id}r{seen[label]}{label[0]}",
                        "sentence1": picture.captions[sentence],
                        "sentence2": hypothesis,
                    }
                )
        write_json_lines(folder / f"snli_ve_{split}.jsonl", rows)
        texts += [row["sentence2"] for row in rows]
        numbers[split] = len(rows)
    return texts, numbers
