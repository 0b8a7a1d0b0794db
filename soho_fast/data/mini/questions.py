"""Questions and answers about scenes, in the VQA v2 format.

Answers are balanced within a kind of question (as often yes as no, and so on), so that a model which reads only the
question gains little.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .captions import (
    OPPOSITE,
    RELATION_WORDS,
    category_counts,
    group_objects,
    place,
    related_pairs,
)
from .concepts import CATEGORY_PLURALS, CLOSED_CATEGORIES, COLOURS, CONCEPTS, Concept
from .scenes import PHOTOS, Scene
from .writers import CorpusImage, write_json

NUM_ANSWERS = 10
#: Questions an image, by split. Restval images get none: their folder is that of the validation questions.
QUESTIONS_PER_IMAGE = {"train": 2, "restval": 0, "val": 4, "test": 4}
# How many of the ten answers differ from the most common one -> weight. At most four, so the most common one stays so.
_DISAGREEMENT = {0: 0.5, 1: 0.2, 2: 0.15, 3: 0.1, 4: 0.05}
# Offsets smaller than this leave the order of two objects open.
_CLEAR_OFFSET = 0.06

_INFO = {
    "description": "SOHO-mini questions: composed scenes in the VQA v2 format. Not VQA v2.",
    "version": "1.0",
    "contributor": "soho_fast.data.mini",
}
_LICENSE = {"name": "CC-BY-4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}


@dataclass(frozen=True)
class Question:
    """A question with its true answer and the slips an annotator might make."""

    text: str
    question_type: str
    answer: str
    answer_type: str
    slips: tuple[str, ...]


def _yes_no(text: str, question_type: str, truth: bool) -> Question:
    answer, slip = ("yes", "no") if truth else ("no", "yes")
    return Question(text, question_type, answer, "yes/no", (slip,))


def _number(text: str, number: int) -> Question:
    slips = tuple(str(other) for other in (number - 1, number + 1) if other >= 0)
    return Question(text, "how many", str(number), "number", slips)


def _what_colour(noun: str, colour: str, generator: random.Random) -> Question:
    others = [other for other in COLOURS if other != colour]
    slips = tuple(generator.sample(others, 2))
    return Question(f"What color is the {noun}?", "what color is the", colour, "other", slips)


def _draw_absent(scene: Scene, generator: random.Random) -> Concept:
    """A random concept that is neither drawn in the scene nor possibly shown by its background photograph."""
    shown = {*scene.counts, *PHOTOS[scene.held_out].get(scene.background.photo or "", ())}
    while True:
        concept = generator.choice(list(CONCEPTS.values()))
        if concept.name not in shown and concept.category not in shown:
            return concept


def _exists(scene: Scene, generator: random.Random) -> Question:
    truth = generator.random() < 0.5
    concept = generator.choice(group_objects(scene)).concept if truth else _draw_absent(scene, generator)
    ending = generator.choice(("", " in the picture", " here"))
    return _yes_no(f"Is there {concept.article} {concept.name}{ending}?", f"is there {concept.article}", truth)


def _count_concept(scene: Scene, generator: random.Random) -> Question | None:
    groups = group_objects(scene)
    repeated = [group for group in groups if group.count > 1]
    # One of a kind is far more common than two: ask about it rarely, so that "1" is no safe guess.
    if not repeated and generator.random() < 0.85:
        return None
    group = generator.choice(repeated or groups)
    return _number(f"How many {group.concept.plural} are there?", group.count)


def _count_category(scene: Scene, generator: random.Random) -> Question | None:
    counts = category_counts(scene)
    present = [category for category in CLOSED_CATEGORIES if counts[category] > 1]
    if not present:
        if generator.random() < 0.7:
            return None
        present = [category for category in CLOSED_CATEGORIES if counts[category] == 1]
        if not present:
            return None
    category = generator.choice(present)
    return _number(f"How many {CATEGORY_PLURALS[category]} are in the picture?", counts[category])


def _count_all(scene: Scene, generator: random.Random) -> Question | None:
    if scene.background.photo is not None:
        return None
    noun = generator.choice(("objects", "things"))
    return _number(f"How many {noun} are there?", len(scene.objects))


def _what_is_beside(scene: Scene, generator: random.Random) -> Question | None:
    facts = []
    for first, direction, second in related_pairs(scene):
        horizontal, sign = direction in ("left", "right"), 1 if direction in ("left", "above") else -1
        alone = second.single
        assert alone is not None  # as of all pairs here
        offsets = [sign * ((alone.x - item.x) if horizontal else (alone.y - item.y)) for item in scene.objects]
        if sum(offset > -_CLEAR_OFFSET for offset in offsets) == 2:  # the one asked for, and ``second`` itself at 0
            facts.append((first, direction, second))
    if not facts:
        return None
    first, direction, second = generator.choice(facts)
    slips = tuple(word for word in (second.concept.name, first.concept.category) if word and word != first.concept.name)
    text = f"What is {RELATION_WORDS[direction]} the {second.concept.name}?"
    return Question(text, "what is", first.concept.name, "other", slips)


def _is_beside(scene: Scene, generator: random.Random) -> Question | None:
    facts = related_pairs(scene)
    if not facts:
        return None
    first, direction, second = generator.choice(facts)
    truth = generator.random() < 0.5
    words = RELATION_WORDS[direction if truth else OPPOSITE[direction]]
    return _yes_no(f"Is the {first.concept.name} {words} the {second.concept.name}?", "is the", truth)


def _what_is_at(scene: Scene, generator: random.Random) -> Question | None:
    places = Counter(place(item) for item in scene.objects)
    facts = [
        (item, where)
        for item in scene.objects
        if (where := place(item)) and places[where] == 1 and ("corner" in where or len(scene.objects) == 1)
    ]
    if not facts or scene.background.photo is not None:
        return None
    item, where = generator.choice(facts)
    slips = tuple(other.name for other in scene.objects if other.name != item.name)
    return Question(f"What is {where}?", "what is", item.name, "other", slips or ("nothing",))


def _background_colour(scene: Scene, generator: random.Random) -> Question | None:
    colour = scene.background.colour
    if colour is None:
        return None
    if generator.random() < 0.4:
        truth = generator.random() < 0.5
        asked = colour if truth else generator.choice([other for other in COLOURS if other != colour])
        return _yes_no(f"Is the background {asked}?", "is the", truth)
    return _what_colour(generator.choice(("background", "wall")), colour, generator)


def _object_colour(scene: Scene, generator: random.Random) -> Question | None:
    nouns = Counter(item.concept.noun for item in scene.objects)
    facts = [
        (item.concept.noun, item.concept.colour)
        for item in scene.objects
        if item.concept.colour and nouns[item.concept.noun] == 1
    ]
    return _what_colour(*generator.choice(facts), generator) if facts else None


def _which_member(scene: Scene, generator: random.Random) -> Question | None:
    counts = category_counts(scene)
    asked = [word for word in ("animal", "fruit", "vehicle", "instrument") if counts[word] == 1]
    items = [(item, item.concept.category) for item in scene.objects if item.concept.category in asked]
    if not items:
        return None
    item, category = generator.choice(items)
    siblings = [name for name, concept in CONCEPTS.items() if concept.category == category and name not in scene.counts]
    slips = (generator.choice(siblings), category)
    if generator.random() < 0.5:
        return Question(f"What {category} is in the picture?", f"what {category} is", item.name, "other", slips)
    return Question(f"What kind of {category} is this?", "what kind of", item.name, "other", slips)


_KINDS: tuple[tuple[float, Callable[[Scene, random.Random], Question | None]], ...] = (
    (2.0, _exists),
    (2.0, _count_concept),
    (1.0, _count_category),
    (0.8, _count_all),
    (2.0, _what_is_beside),
    (1.5, _is_beside),
    (0.8, _what_is_at),
    (1.2, _background_colour),
    (2.0, _object_colour),
    (2.0, _which_member),
)


def ask_questions(scene: Scene, number: int, seed: int) -> list[Question]:
    """Return ``number`` different questions about a scene."""
    generator = random.Random(f"questions-{seed}-{scene.held_out}-{scene.number}")
    weights, kinds = zip(*_KINDS, strict=True)
    questions: dict[str, Question] = {}
    while len(questions) < number:
        question = generator.choices(kinds, weights)[0](scene, generator)
        if question is not None:
            questions.setdefault(question.text, question)
    return list(questions.values())


def _ten_answers(question: Question, generator: random.Random) -> list[dict]:
    num_slips = generator.choices(list(_DISAGREEMENT), list(_DISAGREEMENT.values()))[0]
    answers = [question.answer] * (NUM_ANSWERS - num_slips)
    answers += [generator.choice(question.slips) for _ in range(num_slips)]
    generator.shuffle(answers)
    return [
        {
            "answer": answer,
            "answer_confidence": generator.choices(("yes", "maybe"), (0.8, 0.2))[0]
            if answer == question.answer
            else generator.choice(("maybe", "no")),
            "answer_id": index + 1,
        }
        for index, answer in enumerate(answers)
    ]


def write_vqa(folder: Path, images: Sequence[CorpusImage], seed: int) -> tuple[list[str], dict[str, int]]:
    """Write the VQA v2 question and annotation files into ``folder``.

    train2014 and val2014 have annotations; test2015 and its first half, test-dev2015, have questions only.

    Returns:
        (all question texts, file stem -> number of questions).
    """
    folder.mkdir()
    texts: list[str] = []
    numbers: dict[str, int] = {}
    for subset, split in {"train2014": "train", "val2014": "val", "test2015": "test"}.items():
        generator = random.Random(f"answers-{seed}-{subset}")
        rows: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image in images:
            if image.split != split:
                continue
            for index, question in enumerate(ask_questions(image.scene, QUESTIONS_PER_IMAGE[split], seed)):
                question_id = image.image_id * 1000 + index
                rows.append({"image_id": image.image_id, "question": question.text, "question_id": question_id})
                annotations.append(
                    {
                        "question_type": question.question_type,
                        "multiple_choice_answer": question.answer,
                        "answers": _ten_answers(question, generator),
                        "image_id": image.image_id,
                        "answer_type": question.answer_type,
                        "question_id": question_id,
                    }
                )
        texts += [row["question"] for row in rows]
        head = {"info": _INFO, "data_type": "mscoco", "data_subtype": subset, "license": _LICENSE}
        parts = [(subset, rows)]
        if split == "test":
            parts.append(("test-dev2015", rows[: len(rows) // 2]))
        if split != "test":
            write_json(folder / f"v2_mscoco_{subset}_annotations.json", {**head, "annotations": annotations})
        for name, part in parts:
            content = {**head, "data_subtype": name, "task_type": "Open-Ended", "questions": part}
            write_json(folder / f"v2_OpenEnded_mscoco_{name}_questions.json", content)
            numbers[name] = len(part)
    return texts, numbers
