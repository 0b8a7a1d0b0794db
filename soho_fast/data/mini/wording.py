"""What can truthfully be said about a scene: noun phrases, categories and spatial relations.

Captions, questions, statements and hypotheses all take their facts from here.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from .concepts import CATEGORY_PLURALS, CONCEPTS, Concept, article_for
from .scenes import Scene, SceneObject, photos_of

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
_PLURAL_OF_WORD = {**CATEGORY_PLURALS, "thing": "things", "object": "objects"}

# A relation is stated when the offset along its axis is at least this, and this many times the other offset.
_MIN_OFFSET = 0.20
_MIN_OFFSET_RATIO = 1.6
# Position words: the outer thirds are sides, the middle is narrower so that border cases stay unnamed.
_LOW_SIDE, _HIGH_SIDE = 0.36, 0.64
_MIDDLE = (0.40, 0.60)


@dataclass(frozen=True)
class Group:
    """All objects of one concept in a scene."""

    concept: Concept
    objects: tuple[SceneObject, ...]

    @property
    def count(self) -> int:
        return len(self.objects)

    @property
    def verb(self) -> str:
        return "is" if self.count == 1 else "are"

    @property
    def single(self) -> SceneObject | None:
        """The object, when there is exactly one."""
        return self.objects[0] if self.count == 1 else None


def group_objects(scene: Scene) -> list[Group]:
    """Return the scene's objects grouped by concept, in drawing order of the first of each."""
    names = list(dict.fromkeys(item.name for item in scene.objects))
    return [Group(CONCEPTS[name], tuple(item for item in scene.objects if item.name == name)) for name in names]


def category_counts(scene: Scene) -> Counter[str]:
    """Return how many objects of each category are in the scene."""
    return Counter(item.concept.category for item in scene.objects if item.concept.category)


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return "a dog", "two dogs" and so on."""
    if count == 1:
        return f"{article_for(singular)} {singular}"
    return f"{NUMBER_WORDS[count]} {plural or _PLURAL_OF_WORD[singular]}"


def phrase(group: Group) -> str:
    """Return the indefinite noun phrase of a group: "an apple", "two dogs"."""
    return counted(group.count, group.concept.name, group.concept.plural)


def bare(group: Group) -> str:
    """Return the noun phrase without an article: "apple", "two dogs"."""
    return group.concept.name if group.count == 1 else phrase(group)


def relation(first: SceneObject, second: SceneObject) -> str | None:
    """Return where ``first`` is, seen from ``second``: "left", "right", "above", "below", or None if unclear."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) >= _MIN_OFFSET and abs(dx) >= _MIN_OFFSET_RATIO * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= _MIN_OFFSET and abs(dy) >= _MIN_OFFSET_RATIO * abs(dx):
        return "above" if dy < 0 else "below"
    return None


RELATION_WORDS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def side(item: SceneObject) -> str | None:
    """Return "left" or "right" for an object in an outer third of the picture, else None."""
    return "left" if item.x < _LOW_SIDE else "right" if item.x > _HIGH_SIDE else None


def level(item: SceneObject) -> str | None:
    """Return "top" or "bottom" for an object in an outer third of the picture, else None."""
    return "top" if item.y < _LOW_SIDE else "bottom" if item.y > _HIGH_SIDE else None


def is_central(item: SceneObject) -> bool:
    """Whether an object stands in the middle of the picture."""
    return _MIDDLE[0] <= item.x <= _MIDDLE[1] and _MIDDLE[0] <= item.y <= _MIDDLE[1]


def place(item: SceneObject) -> str | None:
    """Return where an object stands, as a phrase ("in the top left corner", "on the right"), or None if unclear."""
    horizontal, vertical = side(item), level(item)
    if horizontal and vertical:
        return f"in the {vertical} {horizontal} corner"
    if horizontal:
        return f"on the {horizontal}"
    if vertical:
        return f"at the {vertical}"
    return "in the middle" if is_central(item) else None


def join(phrases: list[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def is_surely_absent(scene: Scene, name: str) -> bool:
    """Whether a concept is neither drawn in the scene nor possibly shown by its background photograph."""
    if name in scene.counts:
        return False
    barred = photos_of(scene.held_out, monuments=True).get(scene.background.photo or "", ())
    return name not in barred and CONCEPTS[name].category not in barred


def draw_absent(scene: Scene, generator: random.Random) -> Concept:
    """Return a random concept that is surely absent."""
    names = list(CONCEPTS)
    while True:
        name = generator.choice(names)
        if is_surely_absent(scene, name):
            return CONCEPTS[name]


def related_pairs(scene: Scene) -> list[tuple[Group, str, Group]]:
    """Return every (first, relation, second) of two concepts that occur once and stand clearly to one another."""
    singles = [group for group in group_objects(scene) if group.single]
    return [
        (first, direction, second)
        for first in singles
        for second in singles
        if first is not second and (direction := relation(first.single, second.single))
    ]
