"""What can truthfully be said about a scene, and five differently worded captions that say it.

Noun phrases, categories and spatial relations: captions and questions take their facts from here.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .concepts import CATEGORY_PLURALS, CATEGORY_SYNONYMS, CONCEPTS, Concept, article_for
from .scenes import Scene, SceneObject

_NUMBER_WORDS = ("zero", "one", "two", "three", "four")

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
    def single(self) -> SceneObject | None:
        """The object, when there is exactly one."""
        return self.objects[0] if self.count == 1 else None

    @property
    def phrase(self) -> str:
        """The indefinite noun phrase: "an apple", "two dogs"."""
        return _counted(self.count, self.concept.name, self.concept.plural)


def group_objects(scene: Scene) -> list[Group]:
    """Return the scene's objects grouped by concept, in drawing order of the first of each."""
    names = list(dict.fromkeys(item.name for item in scene.objects))
    return [Group(CONCEPTS[name], tuple(item for item in scene.objects if item.name == name)) for name in names]


def category_counts(scene: Scene) -> Counter[str]:
    """Return how many objects of each category are in the scene."""
    return Counter(item.concept.category for item in scene.objects if item.concept.category)


def _counted(count: int, singular: str, plural: str) -> str:
    """Return "a dog", "two dogs" and so on."""
    return f"{article_for(singular)} {singular}" if count == 1 else f"{_NUMBER_WORDS[count]} {plural}"


def _relation_of(first: SceneObject, second: SceneObject) -> str | None:
    """Return where ``first`` is, seen from ``second``: "left", "right", "above", "below", or None if unclear."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) >= _MIN_OFFSET and abs(dx) >= _MIN_OFFSET_RATIO * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= _MIN_OFFSET and abs(dy) >= _MIN_OFFSET_RATIO * abs(dx):
        return "above" if dy < 0 else "below"
    return None


RELATION_WORDS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def place(item: SceneObject) -> str | None:
    """Return where an object stands, as a phrase ("in the top left corner", "on the right"), or None if unclear."""
    horizontal = "left" if item.x < _LOW_SIDE else "right" if item.x > _HIGH_SIDE else None
    vertical = "top" if item.y < _LOW_SIDE else "bottom" if item.y > _HIGH_SIDE else None
    if horizontal and vertical:
        return f"in the {vertical} {horizontal} corner"
    if horizontal:
        return f"on the {horizontal}"
    if vertical:
        return f"at the {vertical}"
    is_central = _MIDDLE[0] <= item.x <= _MIDDLE[1] and _MIDDLE[0] <= item.y <= _MIDDLE[1]
    return "in the middle" if is_central else None


def _join(phrases: list[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def related_pairs(scene: Scene) -> list[tuple[Group, str, Group]]:
    """Return every (first, relation, second) of two concepts that occur once and stand clearly to one another."""
    singles = [(group, group.single) for group in group_objects(scene) if group.single]
    return [
        (first, direction, second)
        for first, one in singles
        for second, other in singles
        if first is not second and (direction := _relation_of(one, other))
    ]


NUM_CAPTIONS = 5

_BEFORE_LIST = ("", "", "", "there is", "a picture of", "a photo of", "a scene with", "an image showing", "we see")
_BETWEEN_TWO = ("and", "with", "next to", "together with", "near", "beside", "as well as")
_AFTER_LIST = ("", "", "", "in the picture", "in one scene")


def _shuffled(groups: list[Group], generator: random.Random) -> list[Group]:
    return generator.sample(groups, len(groups))


def _on_background(scene: Scene, generator: random.Random) -> str:
    """Return a phrase for a plain background; a photograph is called just that, its content is never named."""
    colour = scene.background.colour
    if colour is None:
        return generator.choice(("on a photo", "over a photo background", "in front of a photo"))
    a_colour = f"{article_for(colour)} {colour}"
    return generator.choice(
        (f"on {a_colour} background", f"over {a_colour} background", f"in front of {a_colour} wall", f"on {colour}")
    )


def _listing(scene: Scene, generator: random.Random) -> str:
    groups = _shuffled(group_objects(scene), generator)
    before = generator.choice(_BEFORE_LIST)
    if before == "there is" and groups[0].count > 1:
        before = "there are"
    phrases = [group.phrase for group in groups]
    if len(groups) > 1 and generator.random() < 0.6:
        text = f"{phrases[0]} {generator.choice(_BETWEEN_TWO)} {_join(phrases[1:])}"
    else:
        text = _join(phrases)
    return f"{before} {text} {generator.choice(_AFTER_LIST) if not before else ''}"


def _telegram(scene: Scene, generator: random.Random) -> str:
    groups = _shuffled(group_objects(scene), generator)
    names = [group.concept.name if group.count == 1 else group.phrase for group in groups]
    if scene.background.colour and generator.random() < 0.5:
        names.append(f"{scene.background.colour} background")
    return generator.choice((" and ".join(names), ", ".join(names), _join(names)))


def _background(scene: Scene, generator: random.Random) -> str:
    text = _join([group.phrase for group in _shuffled(group_objects(scene), generator)])
    where = _on_background(scene, generator)
    return generator.choice((f"{text} {where}", f"{where}, {text}", f"{text} {where}"))


def _relation(scene: Scene, generator: random.Random) -> str | None:
    groups, facts = group_objects(scene), related_pairs(scene)
    if not facts:
        return None
    first, direction, second = generator.choice(facts)
    verb = generator.choice(("", "is ", "", "sits "))
    words = RELATION_WORDS[direction]
    if direction in ("left", "right"):
        words = generator.choice((words, words, f"on the {direction} side of", f"{direction} of"))
    else:
        words = generator.choice((words, {"above": "over", "below": "under"}[direction]))
    text = f"{first.phrase} {verb}{words} {second.phrase}"
    others = [group.phrase for group in _shuffled(groups, generator) if group not in (first, second)]
    if not others:
        return text
    return generator.choice(
        (f"{text}, with {_join(others)}", f"{_join(others)}, and {text}", f"{text}, plus {_join(others)}")
    )


def _places(scene: Scene, generator: random.Random) -> str | None:
    """Two objects with their places, the unplaced ones last so that no place seems to be theirs as well."""
    placed: list[tuple[str, str]] = []
    unplaced: list[str] = []
    for group in _shuffled(group_objects(scene), generator):
        where = place(group.single) if group.single else None
        if where and len(placed) < 2:
            placed.append((group.phrase, where))
        else:
            unplaced.append(group.phrase)
    if not placed:
        return None
    order = 1 if generator.random() < 0.5 else -1
    text = _join([" ".join(each[::order]) for each in placed])
    return text if not unplaced else f"{text}, with {_join(unplaced)}"


def _total(scene: Scene, generator: random.Random) -> str | None:
    if scene.background.photo is not None:  # a photograph shows things of its own
        return None
    number = _NUMBER_WORDS[len(scene.objects)]
    word = generator.choice(("thing", "object")) + ("s" if len(scene.objects) > 1 else "")
    text = _join([group.phrase for group in _shuffled(group_objects(scene), generator)])
    return generator.choice((f"{number} {word}: {text}", f"{text}, {number} {word} in all", f"{number} {word}, {text}"))


def _category(scene: Scene, generator: random.Random) -> str | None:
    groups = _shuffled(group_objects(scene), generator)
    counts = category_counts(scene)
    # A category word stands for all its members at once, so that its count is the true one.
    for chosen in groups:
        category = chosen.concept.category
        if category is None or chosen.concept.noun == category:
            continue
        words = category, CATEGORY_PLURALS[category]
        if category in CATEGORY_SYNONYMS and generator.random() < 0.3:
            words = CATEGORY_SYNONYMS[category]
        general = _counted(counts[category], *words)
        others = [group.phrase for group in groups if group.concept.category != category]
        if others:
            link = generator.choice(_BETWEEN_TWO)
            return generator.choice((f"{general} {link} {_join(others)}", f"{_join(others)} {link} {general}"))
        members = _join([group.phrase for group in groups])
        return (
            f"{general}: {members}" if counts[category] > 1 or generator.random() < 0.5 else f"{members} is {general}"
        )
    return None


# (weight, template): listings carry most of the weight because they name every object in few words.
_TEMPLATES: tuple[tuple[float, Callable[[Scene, random.Random], str | None]], ...] = (
    (3.0, _listing),
    (1.0, _telegram),
    (2.5, _background),
    (2.5, _relation),
    (2.0, _places),
    (0.8, _total),
    (0.6, _category),
)


def _finish(text: str) -> str:
    text = " ".join(text.split()).replace(" ,", ",")
    return text[0].upper() + text[1:]


def write_captions(scene: Scene, seed: int) -> tuple[str, ...]:
    """Return ``NUM_CAPTIONS`` different captions, all true of the scene; the same arguments give the same captions."""
    generator = random.Random(f"captions-{seed}-{scene.held_out}-{scene.number}")
    weights, templates = zip(*_TEMPLATES, strict=True)
    captions: dict[str, None] = {}
    used: dict[Callable, int] = {}
    while len(captions) < NUM_CAPTIONS:
        template = generator.choices(templates, weights)[0]
        # A template may repeat only with another wording, and less often: five captions should differ in kind.
        if used.get(template, 0) and generator.random() < 0.6:
            continue
        text = template(scene, generator)
        if text is None:
            continue
        if template not in (_background, _telegram) and len(text.split()) < 8 and generator.random() < 0.6:
            text = f"{text} {_on_background(scene, generator)}"
        used[template] = used.get(template, 0) + 1
        captions.setdefault(_finish(text))
    return tuple(captions)
