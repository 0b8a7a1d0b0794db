"""The things SOHO-mini can show: names, categories and the emoji code points that draw them.

A concept is a concrete, countable thing with one drawing (Twemoji, CC-BY-4.0). Names are chosen so that no name
contains another one as a word ("dog" and "hot dog" would make the sentence "a dog" ambiguous) and no name is a colour.
Hearts and books come in several colours: there the colour must be seen, it does not follow from the noun.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """One thing that can be placed in a scene.

    Attributes:
        code: lower-case hexadecimal code point, the file name of the drawing without ``.png``.
        name: singular English name, one or two words, lower case.
        plural: plural of ``name``.
        category: the category word, for example ``"animal"``, or None.
        noun: the name without its colour (``"heart"`` for ``"red heart"``); equal to ``name`` otherwise.
        colour: the colour that distinguishes it from its siblings, or None.
        article: ``"a"`` or ``"an"``.
    """

    code: str
    name: str
    plural: str
    category: str | None
    noun: str
    colour: str | None
    article: str


# Groups: category word/plural ("-" where no word fits every member), then entries "code name[/plural]".
_TABLE = """
animal/animals: 1f436 dog; 1f431 cat; 1f430 rabbit; 1f98a fox/foxes; 1f43c panda; 1f428 koala; 1f42f tiger; 1f981 lion;
  1f42e cow; 1f437 pig; 1f438 frog; 1f435 monkey; 1f984 unicorn; 1f418 elephant; 1f992 giraffe; 1f993 zebra;
  1f422 turtle; 1f40d snake; 1f419 octopus/octopuses; 1f980 crab; 1f42c dolphin; 1f994 hedgehog; 1f42b camel;
  1f40a crocodile; 1f420 fish/fish; 1f427 penguin; 1f986 duck; 1f989 owl; 1f9a9 flamingo; 1f99c parrot;
  1f414 chicken; 1f41d bee; 1f98b butterfly/butterflies; 1f41e ladybug
fruit/fruits: 1f34e apple; 1f34c banana; 1f353 strawberry/strawberries; 1f34d pineapple; 1f34b lemon;
  1f349 watermelon; 1f350 pear
vegetable/vegetables: 1f955 carrot; 1f346 eggplant
snack/snacks: 1f355 pizza; 1f354 hamburger; 1f369 donut; 1f382 cake; 1f36a cookie; 1f968 pretzel; 1f36d lollipop;
  1f32e taco
vehicle/vehicles: 1f697 car; 1f68c bus/buses; 1f6b2 bicycle; 2708 airplane; 1f680 rocket; 26f5 sailboat;
  1f681 helicopter; 1f69c tractor; 1f682 train; 1f691 ambulance
instrument/instruments: 1f3b8 guitar; 1f3bb violin; 1f941 drum; 1f3b7 saxophone; 1f3b9 piano; 1fa97 accordion
ball/balls: 26bd soccer ball; 1f3c0 basketball; 1f3be tennis ball; 1f3c8 football
tool/tools: 1f528 hammer; 1f527 wrench/wrenches; 1f511 key; 1f9f2 magnet; 1fa9c ladder
device/devices: 1f4f7 camera; 1f4fa television; 260e telephone; 1f4bb laptop; 23f0 clock; 1f52d telescope
garment/garments: 1f457 dress/dresses; 1f462 boot; 1f3a9 hat; 1f9e3 scarf/scarves; 1f455 shirt
plant/plants: 1f33b sunflower; 1f337 tulip; 1f339 rose; 1f335 cactus/cactuses; 1f332 pine tree; 1f334 palm tree
building/buildings: 1f3e0 house; 1f3f0 castle; 26ea church/churches
-/-: 2b50 star; 1f319 moon; 1f308 rainbow; 2602 umbrella; 1f514 bell; 1fa91 chair; 1f6aa door; 1f381 gift;
  1f392 backpack; 1f3c6 trophy/trophies; 1f451 crown; 1f388 balloon; 1fa81 kite; 1f9f8 teddy/teddies; 1f512 lock;
  1f6f9 skateboard; 1f4a1 bulb; 26fa tent; 1f3a1 ferris wheel
heart/hearts: 2764 red heart; 1f49b yellow heart; 1f49a green heart; 1f499 blue heart; 1f49c purple heart
book/books: 1f4d5 red book; 1f4d7 green book; 1f4d8 blue book; 1f4d9 orange book
"""
_GROUPS = re.findall(r"^(\S+)/(\S+): ((?:.+\n)(?:  .+\n)*)", _TABLE, re.MULTILINE)

#: Colour words that name a gradient background or tell a coloured sibling from another.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "white", "black")

#: category word -> its plural.
CATEGORY_PLURALS: dict[str, str] = {singular: plural for singular, plural, _ in _GROUPS if singular != "-"}

#: Categories whose members nobody would dispute, so that counting and denying them is safe ("there is no animal").
CLOSED_CATEGORIES = ("animal", "fruit", "vehicle", "instrument", "plant", "heart", "book")

#: Other words for a category, true of every member.
CATEGORY_SYNONYMS: dict[str, tuple[str, str]] = {
    "animal": ("creature", "creatures"),
    "instrument": ("musical instrument", "musical instruments"),
}

#: Colour -> concepts drawn mostly in it: they would vanish on a background of that colour.
DRAWN_IN: dict[str, list[str]] = {
    colour: names.split(", ")
    for colour, names in {
        "red": "apple, strawberry, crab, telephone, backpack, scarf, balloon, bicycle, car, rose",
        "orange": "fox, tiger, carrot, lock, bell, basketball, pretzel, trophy, saxophone, star, tent",
        "yellow": "cat, fish, banana, lemon, bulb, moon, crown",
        "green": "frog, snake, turtle, crocodile, cactus, pine tree, pear, tractor, tennis ball",
        "blue": "dolphin, butterfly, dress, shirt, kite, airplane",
        "purple": "octopus, eggplant, umbrella",
        "pink": "pig, flamingo, tulip",
        "brown": "camel, chair, door, key, boot, football, hedgehog, ladder, monkey",
        "gray": "elephant, koala, wrench, rabbit, castle",
        "white": "chicken, unicorn",
        "black": "piano, hat, camera, television",
    }.items()
}


def article_for(word: str) -> str:
    """Return ``"a"`` or ``"an"`` for a word or phrase."""
    return "an" if word[0] in "aeiou" and word != "unicorn" else "a"


def _parse_table() -> dict[str, Concept]:
    concepts: dict[str, Concept] = {}
    for word, _, entries in _GROUPS:
        for code, name, plural in re.findall(r"(\w+) ([\w ]+)(?:/(\w+))?", entries):
            first, _, rest = name.partition(" ")
            colour, noun = (first, rest) if first in COLOURS else (None, name)
            category = None if word == "-" else word
            concepts[name] = Concept(code, name, plural or name + "s", category, noun, colour, article_for(name))
    return concepts


#: name -> concept, in a fixed order.
CONCEPTS: dict[str, Concept] = _parse_table()
