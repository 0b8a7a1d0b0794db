"""Scene descriptions: which concepts stand where on which background, before anything is drawn.

The held-out scenes differ from the training scenes in three ways:
- combination: every pair of concepts (a concept with itself included) belongs to one side, and a scene shows pairs of
  its own side only;
- background: other photographs, and gradients that run in other directions;
- placement: centres lie on a checkerboard of 1/16 of the image, its black squares for training, its white ones for
  the rest.
Single concepts and colours occur on both sides: with one drawing a concept, an unseen concept could not be named.
"""

import functools
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .concepts import COLOURS, CONCEPTS, DRAWN_IN, Concept

#: Share of all pairs of concepts that is kept for held-out scenes.
_HELD_OUT_PAIR_SHARE = 0.3
_PHOTO_SHARE = 0.3
#: Side of a checkerboard square of the placement split, as a fraction of the image.
PLACEMENT_CELL = 1.0 / 16
_DUPLICATE_SHARE = 0.18
#: Number of drawn objects -> how often.
_NUM_OBJECTS_SHARE = {1: 0.10, 2: 0.36, 3: 0.34, 4: 0.20}
#: Number of drawn objects -> smallest and largest side of a cut-out as a fraction of the image.
_SIZE_RANGE = {1: (0.40, 0.55), 2: (0.36, 0.48), 3: (0.33, 0.42), 4: (0.31, 0.38)}
_MAX_ROTATION = 12.0  # degrees, either way
#: Smallest distance of two centres, as a share of the sum of the sides.
_MIN_DISTANCE = 0.48

#: Photographs by side, "package/file" -> concepts and categories that may not stand on it, because the photograph shows
#: one itself.
PHOTOS: dict[bool, dict[str, tuple[str, ...]]] = {
    False: {
        "skimage/brick.png": (),
        "skimage/grass.png": ("plant",),
        "skimage/coffee.png": (),
        "skimage/hubble_deep_field.jpg": ("star",),
        "skimage/motorcycle_left.png": ("vehicle", "chair", "gift"),
        "sklearn/flower.jpg": ("plant",),
        "sklearn/china.jpg": ("plant", "building"),
    },
    True: {
        "skimage/gravel.png": (),
        "skimage/moon.png": ("moon",),
        "skimage/chelsea.png": ("animal",),
        "skimage/camera.png": ("camera", "telescope", "building"),
        "skimage/coins.png": (),
        "skimage/rocket.jpg": ("vehicle",),
    },
}


@dataclass(frozen=True)
class SceneObject:
    """One cut-out. ``x, y`` is its centre and ``size`` its side, as fractions of the image; ``angle`` in degrees."""

    name: str
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool

    @property
    def concept(self) -> Concept:
        return CONCEPTS[self.name]


@dataclass(frozen=True)
class Background:
    """A gradient of one named colour (``colour`` set) or a crop of a photograph (``photo`` set).

    ``shades`` are two HSV triples in [0, 1]; ``direction`` in degrees; ``crop`` is (left, top, side) as fractions of
    what fits.
    """

    colour: str | None = None
    shades: tuple[tuple[float, float, float], ...] = ()
    direction: float = 0.0
    photo: str | None = None
    crop: tuple[float, float, float] = (0.0, 0.0, 1.0)
    mirrored: bool = False


@dataclass(frozen=True)
class Scene:
    """An image to be drawn. ``number`` counts within its side (training or held-out)."""

    number: int
    held_out: bool
    objects: tuple[SceneObject, ...]
    background: Background

    @property
    def counts(self) -> Counter[str]:
        """Concept name -> how many of it are in the scene."""
        return Counter(item.name for item in self.objects)


@functools.cache
def _is_held_out_pair(first: str, second: str, seed: int) -> bool:
    """Whether two concepts (in either order, possibly the same) may stand together in held-out scenes only."""
    key = f"{seed}|{min(first, second)}|{max(first, second)}".encode()
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2.0**64
    return draw < _HELD_OUT_PAIR_SHARE


# Hue (degrees), saturation and value of a named colour's shades: (low, high) each, well inside what the word covers.
_SHADES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-8, 6), (0.60, 0.85), (0.55, 0.85)),
    "orange": ((24, 34), (0.65, 0.90), (0.85, 1.0)),
    "yellow": ((50, 58), (0.45, 0.75), (0.90, 1.0)),
    "green": ((100, 140), (0.40, 0.75), (0.45, 0.80)),
    "blue": ((210, 232), (0.50, 0.80), (0.55, 0.90)),
    "purple": ((268, 285), (0.40, 0.70), (0.45, 0.75)),
    "pink": ((325, 345), (0.25, 0.45), (0.90, 1.0)),
    "brown": ((18, 28), (0.50, 0.70), (0.30, 0.48)),
    "gray": ((0, 360), (0.0, 0.04), (0.42, 0.62)),
    "white": ((0, 360), (0.0, 0.03), (0.92, 1.0)),
    "black": ((0, 360), (0.0, 0.05), (0.03, 0.14)),
}
assert tuple(_SHADES) == COLOURS == tuple(DRAWN_IN)


def _draw_background(names: list[str], held_out: bool, colour_deck: "_Deck", generator: random.Random) -> Background:
    if generator.random() < _PHOTO_SHARE:
        words = set(names) | {CONCEPTS[name].category for name in names}
        photos = [photo for photo, barred in PHOTOS[held_out].items() if not words.intersection(barred)]
        crop = (generator.random(), generator.random(), generator.uniform(0.45, 0.95))
        return Background(photo=generator.choice(photos), crop=crop, mirrored=generator.random() < 0.5)
    own_colours = {CONCEPTS[name].colour for name in names}
    colour = colour_deck.draw(lambda word: word not in own_colours and not set(names).intersection(DRAWN_IN[word]))
    assert colour is not None
    direction = generator.uniform(0.0, 180.0) + (180.0 if held_out else 0.0)
    drawn = [[generator.uniform(*limits) for limits in _SHADES[colour]] for _ in range(2)]
    shades = tuple(
        ((hue % 360.0) / 360.0, colourful, light) for hue, colourful, light in sorted(drawn, key=lambda s: s[2])
    )
    return Background(colour=colour, shades=shades, direction=direction)


class _Deck:
    """Draws the least used item that a condition allows, ties broken at random: frequencies stay nearly equal."""

    def __init__(self, items: list[str], generator: random.Random):
        self.used = dict.fromkeys(items, 0)
        self.generator = generator

    def draw(self, allowed: Callable[[str], bool]) -> str | None:
        candidates = [item for item in self.used if allowed(item)]
        if not candidates:
            return None
        fewest = min(self.used[item] for item in candidates)
        item = self.generator.choice([item for item in candidates if self.used[item] == fewest])
        self.used[item] += 1
        return item


def _draw_names(num_objects: int, held_out: bool, seed: int, deck: _Deck, generator: random.Random) -> list[str]:
    """Concept names, one per object, all of whose pairs belong to the given side."""
    first = deck.draw(lambda _: True)
    assert first is not None  # a deck has concepts
    names = [first]
    if (
        num_objects > 1
        and generator.random() < _DUPLICATE_SHARE
        and _is_held_out_pair(names[0], names[0], seed) == held_out
    ):
        names.append(names[0])
        if num_objects > 2 and generator.random() < 0.3:
            names.append(names[0])
    # One that finds no further concept shows fewer objects than were drawn.
    while len(names) < num_objects:
        # New, and all its pairs with those that are there belong to the scene's side.
        name = deck.draw(
            lambda new: new not in names and all(_is_held_out_pair(new, old, seed) == held_out for old in set(names))
        )
        if name is None:
            break
        names.append(name)
    generator.shuffle(names)
    return names


def _draw_place(size: float, held_out: bool, generator: random.Random) -> tuple[float, float]:
    margin = size / 2
    while True:
        x = round(generator.uniform(margin, 1 - margin), 4)
        y = round(generator.uniform(margin, 1 - margin), 4)
        # 0, the black squares, is False: training.
        if (int(x / PLACEMENT_CELL) + int(y / PLACEMENT_CELL)) % 2 == held_out:
            return x, y


def _draw_objects(names: list[str], held_out: bool, generator: random.Random) -> tuple[SceneObject, ...]:
    scale = 1.0
    while True:
        for _ in range(40):
            objects: list[SceneObject] = []
            for name in names:
                size = round(scale * generator.uniform(*_SIZE_RANGE[len(names)]), 4)
                for _ in range(12):
                    x, y = _draw_place(size, held_out, generator)
                    if all(math.dist((x, y), (o.x, o.y)) >= _MIN_DISTANCE * (size + o.size) for o in objects):
                        angle = round(generator.uniform(-_MAX_ROTATION, _MAX_ROTATION), 2)
                        objects.append(SceneObject(name, x, y, size, angle, generator.random() < 0.5))
                        break
                else:
                    break
            if len(objects) == len(names):
                return tuple(objects)
        # After 40 layouts in vain all become smaller, so this ends.
        scale *= 0.95


def describe_scenes(num_train: int, num_heldout: int, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Describe all scenes of a corpus.

    Args:
        num_train, num_heldout: how many scenes of each side.
        seed: fixes the pair split and every scene; the same seed gives the same scenes on every machine.

    Returns:
        (training scenes, held-out scenes). Concepts are used nearly equally often on either side.
    """
    return _describe_side(False, num_train, seed), _describe_side(True, num_heldout, seed)


def _describe_side(held_out: bool, num_scenes: int, seed: int) -> list[Scene]:
    generator = random.Random(f"scenes-{seed}-{held_out}")
    deck, colour_deck = _Deck(list(CONCEPTS), generator), _Deck(list(COLOURS), generator)
    scenes = []
    for number in range(num_scenes):
        num_objects = generator.choices(list(_NUM_OBJECTS_SHARE), list(_NUM_OBJECTS_SHARE.values()))[0]
        names = _draw_names(num_objects, held_out, seed, deck, generator)
        background = _draw_background(names, held_out, colour_deck, generator)
        scenes.append(Scene(number, held_out, _draw_objects(names, held_out, generator), background))
    return scenes
