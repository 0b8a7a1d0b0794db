"""Five true, differently worded captions for a scene."""

from __future__ import annotations

import random
from collections.abc import Callable

from .concepts import CATEGORY_SYNONYMS
from .scenes import Scene
from .wording import (
    NUMBER_WORDS,
    RELATION_WORDS,
    Group,
    bare,
    category_counts,
    counted,
    group_objects,
    join,
    phrase,
    place,
    related_pairs,
)

NUM_CAPTIONS = 5
# Of more kinds of things a caption names some, as people do; one that says how many there are in all names all.
_MAX_NAMED = 4

_BEFORE_LIST = ("", "", "", "there is", "a picture of", "a photo of", "a scene with", "an image showing", "we see")
_BETWEEN_TWO = ("and", "with", "next to", "together with", "near", "beside", "as well as")
_AFTER_LIST = ("", "", "", "in the picture", "in one scene")


def _shuffled(groups: list[Group], generator: random.Random) -> list[Group]:
    return generator.sample(groups, len(groups))


def _some(groups: list[Group], generator: random.Random) -> list[Group]:
    return generator.sample(groups, min(len(groups), _MAX_NAMED))


def _on_background(scene: Scene, generator: random.Random) -> str:
    """Return a phrase for a plain background; a photograph is called just that, its content is never named."""
    colour = scene.background.colour
    if colour is None:
        return generator.choice(("on a photo", "over a photo background", "in front of a photo"))
    article = "an" if colour[0] in "aeiou" else "a"
    return generator.choice(
        (
            f"on {article} {colour} background",
            f"over {article} {colour} background",
            f"in front of {article} {colour} wall",
            f"on {colour}",
        )
    )


def _listing(scene: Scene, generator: random.Random) -> str:
    groups = _some(group_objects(scene), generator)
    before = generator.choice(_BEFORE_LIST)
    if before == "there is" and groups[0].count > 1:
        before = "there are"
    phrases = [phrase(group) for group in groups]
    if len(groups) > 1 and generator.random() < 0.6:
        text = f"{phrases[0]} {generator.choice(_BETWEEN_TWO)} {join(phrases[1:])}"
    else:
        text = join(phrases)
    return f"{before} {text} {generator.choice(_AFTER_LIST) if not before else ''}"


def _telegram(scene: Scene, generator: random.Random) -> str:
    names = [bare(group) for group in _some(group_objects(scene), generator)]
    if scene.background.colour and generator.random() < 0.5:
        names.append(f"{scene.background.colour} background")
    return generator.choice((" and ".join(names), ", ".join(names), join(names)))


def _background(scene: Scene, generator: random.Random) -> str:
    text = join([phrase(group) for group in _some(group_objects(scene), generator)])
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
    text = f"{phrase(first)} {verb}{words} {phrase(second)}"
    others = [phrase(group) for group in _shuffled(groups, generator) if group not in (first, second)]
    others = others[: _MAX_NAMED - 2]
    if not others:
        return text
    return generator.choice(
        (f"{text}, with {join(others)}", f"{join(others)}, and {text}", f"{text}, plus {join(others)}")
    )


def _places(scene: Scene, generator: random.Random) -> str | None:
    """Two objects with their places, the unplaced ones last so that no place seems to be theirs as well."""
    placed, unplaced = [], []
    for group in _some(group_objects(scene), generator):
        where = place(group.single) if group.single else None
        if where and len(placed) < 2:
            placed.append((phrase(group), where))
        else:
            unplaced.append(phrase(group))
    if not placed:
        return None
    if generator.random() < 0.5:
        text = join([f"{name} {where}" for name, where in placed])
    else:
        text = join([f"{where} {name}" for name, where in placed])
    return text if not unplaced else f"{text}, with {join(unplaced)}"


def _total(scene: Scene, generator: random.Random) -> str | None:
    if scene.background.photo is not None:  # a photograph shows things of its own
        return None
    number = NUMBER_WORDS[len(scene.objects)]
    word = generator.choice(("thing", "object")) + ("s" if len(scene.objects) > 1 else "")
    text = join([phrase(group) for group in _shuffled(group_objects(scene), generator)])
    return generator.choice((f"{number} {word}: {text}", f"{text}, {number} {word} in all", f"{number} {word}, {text}"))


def _category(scene: Scene, generator: random.Random) -> str | None:
    groups = _shuffled(group_objects(scene), generator)
    counts = category_counts(scene)
    # A category word stands for all its members at once, so that its count is the true one.
    for chosen in groups:
        category = chosen.concept.category
        if category is None or chosen.concept.noun == category:
            continue
        singular, plural = category, None
        if category in CATEGORY_SYNONYMS and generator.random() < 0.3:
            singular, plural = CATEGORY_SYNONYMS[category]
        general = counted(counts[category], singular, plural)
        others = [phrase(group) for group in groups if group.concept.category != category]
        others = others[: _MAX_NAMED - 1]
        if others:
            link = generator.choice(_BETWEEN_TWO)
            return generator.choice((f"{general} {link} {join(others)}", f"{join(others)} {link} {general}"))
        members = join([phrase(group) for group in groups])
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
