"""Statements about two images in the NLVR2 format, and hypotheses about one in the SNLI-VE format.

As in NLVR2 one sentence goes with four pairs of images, two of which make it true: the sentence alone says nothing.

Every image gets as many hypotheses of each label. What an image can't show ("the dog is hungry") is neutral where the
dog is there and a contradiction where it is not; what it shows is an entailment or a contradiction. The wording thus
rules out one label of three: a model that reads the hypothesis only can reach two thirds.
"""

import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from soho_fast.common.images import FORMATS

from .captions import (
    NUMBER_WORDS,
    OPPOSITE,
    RELATION_WORDS,
    category_counts,
    counted,
    draw_absent,
    group_objects,
    is_surely_absent,
    related_pairs,
)
from .concepts import CLOSED_CATEGORIES, COLOURS, CONCEPTS, Concept, article_for
from .scenes import Scene
from .writers import CorpusImage, write_json_lines

#: NLVR2 split -> (Karpathy split the images come from, number of sentences with four pairs each).
NLVR2_SPLITS = {"train": ("train", 500), "dev": ("val", 100), "test1": ("test", 100)}
PAIRS_PER_SENTENCE = 4
# The published training images lie in numbered directories.
_NUM_DIRECTORIES = 10
# Most of the published ".png" files hold JPEG data; here every eighth is a real PNG.
_REAL_PNG_EVERY = 8
_MAX_TRIES = 200


@dataclass(frozen=True)
class Statement:
    """A sentence, how to tell whether a pair makes it true (None: undecided), and images worth trying for a pair."""

    sentence: str
    is_true: Callable[[Scene, Scene], bool | None]
    candidates: tuple[CorpusImage, ...]


class _Pool:
    """The images of a split, by concept and by background colour."""

    def __init__(self, images: Sequence[CorpusImage]):
        self.images = tuple(images)
        self.by_name: dict[str, list[CorpusImage]] = defaultdict(list)
        self.by_colour: dict[str, list[CorpusImage]] = defaultdict(list)
        for image in images:
            for name in image.scene.counts:
                self.by_name[name].append(image)
            if image.scene.background.colour:
                self.by_colour[image.scene.background.colour].append(image)
        self.names = [name for name in CONCEPTS if self.by_name[name]]
        self.colours = [colour for colour in COLOURS if self.by_colour[colour]]

    def having(self, *names: str) -> tuple[CorpusImage, ...]:
        return tuple(image for name in names for image in self.by_name[name])


def _has(scene: Scene, name: str) -> bool | None:
    return True if name in scene.counts else False if is_surely_absent(scene, name) else None


def _decided(rule: Callable[[Any], bool], facts: list[Any]) -> bool | None:
    """What a rule says of facts, where all of them are known."""
    return None if None in facts else rule(facts)


def _a(name: str) -> str:
    return counted(1, name)


def _in_one(pool: _Pool, generator: random.Random) -> Statement | None:
    name, side = generator.choice(pool.names), generator.choice(("left", "right"))
    verb = generator.choice(("contains", "shows", "has"))
    index = 0 if side == "left" else 1
    return Statement(f"The {side} image {verb} {_a(name)}.", lambda *pair: _has(pair[index], name), pool.having(name))


def _in_both(pool: _Pool, generator: random.Random) -> Statement | None:
    name = generator.choice(pool.names)
    sentence = generator.choice((f"Both images contain {_a(name)}.", f"There is {_a(name)} in each of the two images."))
    return Statement(sentence, lambda *pair: _decided(all, [_has(each, name) for each in pair]), pool.having(name))


def _in_neither(pool: _Pool, generator: random.Random) -> Statement | None:
    name = generator.choice(pool.names)

    def is_true(*pair: Scene) -> bool | None:
        return _decided(lambda facts: not any(facts), [_has(scene, name) for scene in pair])

    return Statement(f"Neither image shows {_a(name)}.", is_true, pool.having(name))


def _one_each(pool: _Pool, generator: random.Random) -> Statement | None:
    first, second = generator.sample(pool.names, 2)

    def is_true(*pair: Scene) -> bool | None:
        # (first, left), (first, right), (second, left), (second, right).
        facts = [_has(scene, name) for name in (first, second) for scene in pair]
        return _decided(lambda facts: (facts[0] and facts[3]) or (facts[1] and facts[2]), facts)

    sentence = f"One image shows {_a(first)} and the other image shows {_a(second)}."
    return Statement(sentence, is_true, pool.having(first, second))


def _total(pool: _Pool, generator: random.Random) -> Statement | None:
    name, number = generator.choice(pool.names), generator.choice((1, 2, 2, 3))

    def is_true(*pair: Scene) -> bool | None:
        facts = [_has(scene, name) for scene in pair]
        return _decided(lambda _: sum(scene.counts[name] for scene in pair) == number, facts)

    noun = f"is exactly one {name}" if number == 1 else f"are exactly {NUMBER_WORDS[number]} {CONCEPTS[name].plural}"
    return Statement(f"There {noun} in the two images together.", is_true, pool.having(name))


def _more_objects(pool: _Pool, generator: random.Random) -> Statement | None:
    more, less = generator.sample(("left", "right"), 2)

    def is_true(left: Scene, right: Scene) -> bool | None:
        if left.background.photo or right.background.photo:
            return None
        difference = len(left.objects) - len(right.objects)
        return difference > 0 if more == "left" else difference < 0

    sentence = f"The {more} image contains more objects than the {less} image."
    return Statement(sentence, is_true, pool.images)


def _background(pool: _Pool, generator: random.Random) -> Statement | None:
    if not pool.colours:
        return None
    colour = generator.choice(pool.colours)

    def is_true(*pair: Scene) -> bool | None:
        colours = [scene.background.colour for scene in pair]  # None of a photograph
        return _decided(lambda colours: set(colours) == {colour}, colours)

    return Statement(f"Both images have a plain {colour} background.", is_true, tuple(pool.by_colour[colour]))


def _long(pool: _Pool, generator: random.Random) -> Statement | None:
    first, second, third = generator.sample(pool.names, 3)

    def is_true(left: Scene, right: Scene) -> bool | None:
        facts = [_has(left, first), _has(right, second), _has(left, third), _has(right, third)]
        return _decided(lambda facts: facts == [True, True, False, False], facts)

    sentence = (
        f"The image on the left shows {_a(first)}, possibly together with other things, the image on the right shows "
        f"{_a(second)}, and {_a(third)} is not to be seen in either of the two images."
    )
    return Statement(sentence, is_true, pool.having(first, second, third))


_KINDS = (_in_one, _in_both, _in_neither, _one_each, _total, _more_objects, _background, _long)


def _find_pairs(
    statement: Statement, pool: _Pool, generator: random.Random
) -> list[tuple[CorpusImage, CorpusImage, bool]] | None:
    """Return four different pairs, two true and two false, in random order; None when the pool lacks them."""
    found: dict[bool, dict[tuple[int, int], tuple[CorpusImage, CorpusImage, bool]]] = {True: {}, False: {}}
    for _ in range(_MAX_TRIES):
        # At least one image bears on the sentence, so that false pairs are near misses.
        left = generator.choice(statement.candidates)
        right = generator.choice(statement.candidates if generator.random() < 0.5 else pool.images)
        if generator.random() < 0.5:
            left, right = right, left
        truth = None if left is right else statement.is_true(left.scene, right.scene)
        if truth is None or len(found[truth]) == PAIRS_PER_SENTENCE // 2:
            continue
        # By the pair: the same one is not taken twice.
        found[truth].setdefault((left.image_id, right.image_id), (left, right, truth))
        if all(len(pairs) == PAIRS_PER_SENTENCE // 2 for pairs in found.values()):
            pairs = [*found[True].values(), *found[False].values()]
            generator.shuffle(pairs)
            return pairs
    return None


def _place_image(source: Path, target: Path, as_png: bool) -> None:
    if as_png:
        with Image.open(source, formats=FORMATS) as image:
            image.save(target, "PNG")
        return
    link_or_copy(source, target)


def link_or_copy(source: Path, target: Path) -> None:
    """Give an image a second name: a hard link where the file system allows it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_nlvr2(root: Path, images: Sequence[CorpusImage], seed: int) -> tuple[list[str], dict[str, int]]:
    """Write ``nlvr2/{train,dev,test1}.json`` and ``nlvr2/images/`` under the corpus folder ``root``.

    Returns:
        (all sentences, split -> number of examples).
    """
    folder = root / "nlvr2"
    folder.mkdir()
    sentences: list[str] = []
    numbers: dict[str, int] = {}
    num_placed = 0
    for split, (source_split, num_sentences) in NLVR2_SPLITS.items():
        generator = random.Random(f"statements-{seed}-{split}")
        pool = _Pool([image for image in images if image.split == source_split])
        if not pool.images:
            continue
        num_sentences = min(num_sentences, len(pool.images))
        rows: list[dict] = []
        seen: set[str] = set()
        tries = 0
        while len(rows) < num_sentences * PAIRS_PER_SENTENCE and tries < 30 * num_sentences:
            tries += 1
            kind = generator.choice(_KINDS)
            if len(pool.names) < 3 or (statement := kind(pool, generator)) is None:
                continue
            # A few sentences fit any concept; only those may come back, with other images.
            if statement.sentence in seen and kind not in (_more_objects, _background):
                continue
            pairs = _find_pairs(statement, pool, generator)
            if pairs is None:
                continue
            seen.add(statement.sentence)
            set_id = len(rows) // PAIRS_PER_SENTENCE
            for pair_id, (left, right, truth) in enumerate(pairs):
                row: dict[str, Any] = {
                    "identifier": f"{split}-{set_id}-{pair_id}-0",
                    "sentence": statement.sentence,
                    "label": str(truth),
                }
                place = folder / "images" / split
                if split == "train":
                    row["directory"] = set_id % _NUM_DIRECTORIES
                    place = place / str(row["directory"])
                place.mkdir(parents=True, exist_ok=True)
                for side, image in enumerate((left, right)):
                    target = place / f"{split}-{set_id}-{pair_id}-img{side}.png"
                    source = root / image.folder / image.filename
                    _place_image(source, target, as_png=num_placed % _REAL_PNG_EVERY == 0)
                    num_placed += 1
                rows.append(row)
            sentences.append(statement.sentence)
        write_json_lines(folder / f"{split}.json", rows)
        numbers[split] = len(rows)
    return sentences, numbers


LABELS = ("entailment", "neutral", "contradiction")
NUM_ANNOTATORS = 5
#: SNLI-VE split -> (Karpathy split, hypotheses of each label an image).
SNLI_VE_SPLITS = {"train": ("train", 2), "dev": ("val", 1), "test": ("test", 1)}

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


def _claim(scene: Scene, generator: random.Random, truth: bool) -> str | None:
    """An entailment or a contradiction, of a kind that is drawn; None where the scene allows none."""
    others = ("presence",) if truth else ("property", "property")
    kind = generator.choice(("presence", *others, "relation", "colour", "count", "category"))
    groups = group_objects(scene)
    if kind == "presence":
        return _presence(generator.choice(groups).concept if truth else draw_absent(scene, generator), generator)
    if kind == "property":
        return _property(draw_absent(scene, generator), generator)
    if kind == "relation" and (facts := related_pairs(scene)):
        first, direction, second = generator.choice(facts)
        where = RELATION_WORDS[direction if truth else OPPOSITE[direction]]
        return f"The {first.concept.name} is {where} the {second.concept.name}."
    if kind == "colour" and (colour := scene.background.colour):
        return f"The background is {colour if truth else generator.choice([c for c in COLOURS if c != colour])}."
    if kind == "count" and (counted_groups := [each for each in groups if each.count > 1 or not truth]):
        group = generator.choice(counted_groups)
        # Fewer would be true as well ("there are two dogs" where there are three), so only more is false.
        if truth or group.count < 3:
            count = group.count if truth else generator.randint(group.count + 1, 3)
            return f"There are {NUMBER_WORDS[count]} {group.concept.plural}."
    if kind == "category":
        counts = category_counts(scene)
        words = [word for word in CLOSED_CATEGORIES if (counts[word] if truth else _is_without(scene, word))]
        if words:
            word = generator.choice(words)
            return f"At least one thing here is {article_for(word)} {word}."
    return None


def _is_without(scene: Scene, category: str) -> bool:
    return all(is_surely_absent(scene, name) for name, concept in CONCEPTS.items() if concept.category == category)


def _neutral(scene: Scene, generator: random.Random) -> str | None:
    singles = [group for group in group_objects(scene) if group.single]
    return _property(generator.choice(singles).concept, generator) if singles else None


_WRITERS: dict[str, Callable[[Scene, random.Random], str | None]] = {
    "entailment": partial(_claim, truth=True),
    "neutral": _neutral,
    "contradiction": partial(_claim, truth=False),
}


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


def write_snli_ve(folder: Path, images: Sequence[CorpusImage], seed: int) -> tuple[list[str], dict[str, int]]:
    """Write ``snli_ve_{train,dev,test}.jsonl`` into ``folder``; the images are those of the Flickr30K-style folder.

    Returns:
        (all hypotheses, split -> number of rows).
    """
    folder.mkdir()
    texts: list[str] = []
    numbers: dict[str, int] = {}
    for split, (source_split, number_each) in SNLI_VE_SPLITS.items():
        generator = random.Random(f"annotators-{seed}-{split}")
        rows: list[dict] = []
        of_split = [image for image in images if image.split == source_split]
        for image in of_split:
            seen: dict[str, int] = {}
            for label, hypothesis in write_hypotheses(image.scene, number_each, seed):
                sentence = generator.randrange(len(image.captions))
                votes = [label] * NUM_ANNOTATORS
                for _ in range(generator.choices((0, 1, 2), (0.7, 0.2, 0.1))[0]):
                    votes[generator.randrange(NUM_ANNOTATORS)] = generator.choice(LABELS)
                seen[label] = seen.get(label, 0) + 1
                caption_id = f"{image.flickr_id}.jpg#{sentence}"
                rows.append(
                    {
                        "Flickr30K_ID": image.flickr_id,
                        "annotator_labels": votes,
                        "captionID": caption_id,
                        "gold_label": label,
                        "pairID": f"{caption_id}r{seen[label]}{label[0]}",
                        "sentence1": image.captions[sentence],
                        "sentence2": hypothesis,
                    }
                )
        write_json_lines(folder / f"snli_ve_{split}.jsonl", rows)
        texts += [row["sentence2"] for row in rows]
        numbers[split] = len(rows)
    return texts, numbers
