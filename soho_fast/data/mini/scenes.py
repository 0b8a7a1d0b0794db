"""Scene descriptions: which concepts stand where on which background, before anything is drawn.

The held-out scenes differ from the training scenes in three ways:
- combination: every pair of concepts (a concept with itself included) belongs to one side, and a scene shows pairs of
  its own side only;
- background: other photographs, and gradients that run in other directions;
- placement: centres lie on a checkerboard of 1/16 of the image, its black squares for training, its white ones for
  the rest.
Single concepts and colours occur on both sides: with one drawing a concept, an unseen concept could not be named.
Where styles are held out, further held-out scenes are drawn in them, and nothing else is.
"""

import dataclasses
import functools
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .concepts import COLOURS, CONCEPTS, DRAWN_IN, Concept
from .options import TWEMOJI, CorpusOptions

#: Debian's package of photographs, in the place of a Python package in their names.
GCOMPRIS = "gcompris"

#: Side of a checkerboard square of the placement split, as a fraction of the image.
PLACEMENT_CELL = 1.0 / 16
DUPLICATE_SHARE = 0.18
#: Number of drawn objects -> how often, beside the others that options allow.
NUM_OBJECTS_SHARE = {1: 0.10, 2: 0.36, 3: 0.34, 4: 0.20, 5: 0.20, 6: 0.20}
#: Number of drawn objects -> smallest and largest side of a cut-out as a fraction of the image.
SIZE_RANGE = {1: (0.40, 0.55), 2: (0.36, 0.48), 3: (0.33, 0.42), 4: (0.31, 0.38), 5: (0.28, 0.35), 6: (0.26, 0.32)}

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

# Country -> photographs of its monuments.
_MONUMENTS: dict[str, str] = {
    "usa": "canyondeChelly georgeWashingtonBirthplace lincolnMemorial navajo cabrillo mountRushmore "
    "statueofLiberty castillodeSanMarcos fortSumter castleClinton",
    "egypt": "meidumPyramid greatPyramidOfGiza bentPyramid redPyramid",
    "india": "greatStupa gatewayofIndia konarkSunTemple charminar hawaMahal rangGhar victoriaMemorial mysorePalace "
    "goldenTemple ajantaCave qutubMinar",
    "france": "chateaudeChambord pontduGard palaisdesPapes reimsCathedral eiffelTower citedeCarcassonne "
    "arlesAmphitheater chateaudeChenonceau montStMichel rocamadour",
    "germany": "berlinCathedral schwerinPalace trierImperialBaths aulaPalatina brandenburgGate neuschwansteinCastle "
    "wormsCathedral",
    "wonders": "machuPicchu tajMahal chichenItza colosseum petra greatWallofChina christTheRedeemer",
}
#: The same of Debian's photographs, which options may add: every third one is on the held-out side.
MONUMENTS: dict[bool, dict[str, tuple[str, ...]]] = {
    side: {
        f"{GCOMPRIS}/{name}.webp": ("building", "plant", "vehicle", "door")
        for number, name in enumerate(
            f"{country}/{name}" for country, names in _MONUMENTS.items() for name in names.split()
        )
        if (number % 3 == 2) == side
    }
    for side in (False, True)
}


def photos_of(held_out: bool, monuments: bool) -> dict[str, tuple[str, ...]]:
    """Photographs of a side -> what may not stand on them."""
    return PHOTOS[held_out] | MONUMENTS[held_out] if monuments else PHOTOS[held_out]


@dataclass(frozen=True)
class SceneObject:
    """One cut-out. ``x, y`` is its centre and ``size`` its side, as fractions of the image; ``angle`` in degrees.

    ``style`` is ``"twemoji"`` or a folder of drawings.
    """

    name: str
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool
    style: str = TWEMOJI

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
class Finish:
    """What is done to the whole image at last: factors of 1 +- jitter, blur and noise as shares (`CorpusOptions`)."""

    brightness: float
    contrast: float
    saturation: float
    blur: float
    noise: float
    seed: int


@dataclass(frozen=True)
class Scene:
    """An image to be drawn. ``number`` counts within its side (training or held-out).

    ``new_styles`` is of the held-out scenes that are drawn in held-out styles.
    """

    number: int
    held_out: bool
    objects: tuple[SceneObject, ...]
    background: Background
    finish: Finish | None = None
    new_styles: bool = False

    @property
    def counts(self) -> Counter[str]:
        """Concept name -> how many of it are in the scene."""
        return Counter(item.name for item in self.objects)


@functools.cache
def is_held_out_pair(first: str, second: str, seed: int, share: float) -> bool:
    """Whether two concepts (in either order, possibly the same) may stand together in held-out scenes only."""
    key = f"{seed}|{min(first, second)}|{max(first, second)}".encode()
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2.0**64
    return draw < share


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


def _draw_background(
    names: list[str], held_out: bool, colour_deck: "_Deck", generator: random.Random, options: CorpusOptions
) -> Background:
    if generator.random() < options.photo_share:
        words = set(names) | {CONCEPTS[name].category for name in names}
        photos = [
            photo for photo, barred in photos_of(held_out, options.monuments).items() if not words.intersection(barred)
        ]
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


def _draw_names(
    num_objects: int, held_out: bool, seed: int, deck: _Deck, generator: random.Random, share: float
) -> list[str]:
    """Concept names, one per object, all of whose pairs belong to the given side."""
    first = deck.draw(lambda _: True)
    assert first is not None  # a deck has concepts
    names = [first]
    if (
        num_objects > 1
        and generator.random() < DUPLICATE_SHARE
        and is_held_out_pair(names[0], names[0], seed, share) == held_out
    ):
        names.append(names[0])
        if num_objects > 2 and generator.random() < 0.3:
            names.append(names[0])
    # One that finds no further concept shows fewer objects than were drawn.
    while len(names) < num_objects:
        # New, and all its pairs with those that are there belong to the scene's side.
        name = deck.draw(
            lambda new: (
                new not in names and all(is_held_out_pair(new, old, seed, share) == held_out for old in set(names))
            )
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


def draw_objects(
    names: list[str], held_out: bool, generator: random.Random, options: CorpusOptions
) -> tuple[SceneObject, ...]:
    scale, nearness, turn = options.object_scale, 0.48 * (1 - options.overlap), options.max_rotation
    while True:
        for _ in range(40):
            objects: list[SceneObject] = []
            for name in names:
                size = round(scale * generator.uniform(*SIZE_RANGE[len(names)]), 4)
                for _ in range(12):
                    x, y = _draw_place(size, held_out, generator)
                    if all(math.dist((x, y), (o.x, o.y)) >= nearness * (size + o.size) for o in objects):
                        angle = round(generator.uniform(-turn, turn), 2)
                        objects.append(SceneObject(name, x, y, size, angle, generator.random() < 0.5))
                        break
                else:
                    break
            if len(objects) == len(names):
                return tuple(objects)
        # After 40 layouts in vain all become smaller, so this ends.
        scale *= 0.95


def _restyled(scene: Scene, styles: tuple[str, ...], generator: random.Random, options: CorpusOptions) -> Scene:
    """The scene with a style for each object and with what is done to the whole image.

    Both come from a generator of their own, so that the same scenes are seen in whatever styles.
    """
    objects = tuple(dataclasses.replace(item, style=generator.choice(styles)) for item in scene.objects)
    finish = None
    if options.jitter or options.blur or options.noise:
        brightness, contrast, saturation = (
            round(1 + generator.uniform(-options.jitter, options.jitter), 3) for _ in range(3)
        )
        blur, noise = (round(generator.uniform(0, limit), 4) for limit in (options.blur, options.noise))
        finish = Finish(brightness, contrast, saturation, blur, noise, generator.getrandbits(32))
    return dataclasses.replace(scene, objects=objects, finish=finish)


def describe_scenes(
    num_train: int, num_heldout: int, seed: int, options: CorpusOptions | None = None
) -> tuple[list[Scene], list[Scene]]:
    """Describe all scenes of a corpus.

    Args:
        num_train, num_heldout: how many scenes of each side; of held-out styles there are ``num_heldout`` more.
        seed: fixes the pair split and every scene; the same seed gives the same scenes on every machine.
        options: what the scenes are like; None: as in the demo.

    Returns:
        (training scenes, held-out scenes, those of held-out styles last). Concepts are used nearly equally often on
        either side.
    """
    options = options or CorpusOptions()
    shares = {number: share for number, share in NUM_OBJECTS_SHARE.items() if number <= options.max_objects}
    parts = [("False", num_train, 0, options.styles), ("True", num_heldout, 0, options.styles)]
    if options.heldout_styles:
        parts.append(("styles", num_heldout, num_heldout, options.heldout_styles))
    found: dict[bool, list[Scene]] = {False: [], True: []}
    for part, number_of_scenes, first_number, styles in parts:
        held_out = part != "False"
        generator = random.Random(f"scenes-{seed}-{part}")
        looks = random.Random(f"looks-{seed}-{part}")
        deck = _Deck(list(CONCEPTS), generator)
        colour_deck = _Deck(list(COLOURS), generator)
        for number in range(first_number, first_number + number_of_scenes):
            num_objects = generator.choices(list(shares), list(shares.values()))[0]
            names = _draw_names(num_objects, held_out, seed, deck, generator, options.held_out_pair_share)
            background = _draw_background(names, held_out, colour_deck, generator, options)
            objects = draw_objects(names, held_out, generator, options)
            scene = Scene(number, held_out, objects, background, new_styles=part == "styles")
            found[held_out].append(_restyled(scene, styles, looks, options))
    return found[False], found[True]
