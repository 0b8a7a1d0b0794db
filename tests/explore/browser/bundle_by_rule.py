"""A bundle whose numbers follow from rules, of any size, without a model: for tests of the pages."""

import io
from pathlib import Path

from PIL import Image

from soho_fast.explore import bundle

# Width and height of the small copy, grid, height and width in patches: wide, high, square, a last patch that reaches
# beyond, a grid that ends before the picture does.
SHAPES = [
    {"width": 96, "height": 64, "rows": 4, "columns": 6, "patches_high": 3.75, "patches_wide": 5.5},
    {"width": 60, "height": 100, "rows": 5, "columns": 3, "patches_high": 5.0, "patches_wide": 3.0},
    {"width": 80, "height": 80, "rows": 4, "columns": 4, "patches_high": 4.25, "patches_wide": 4.25},
]
NUM_CODES, NUM_SHOWN = 70, 300  # of a small bundle: two files of codes, two of pictures
POSITION_ROWS, POSITION_COLUMNS = 5, 6
EDGES = [0.0, 0.25, 0.5, 0.75, 1.0]
WORDS = ["dolphin", "balloon", "wall", "gravel", "telephone", "lollipop"]
UNCLAIMED = ["and", "of", "<b>bold</b>", "w" * 200, "שלום"]
LICENCES = [
    {"what": "Drawings", "credit": "A. Painter, https://example.org/drawings", "licence": "CC-BY-4.0"},
    {"what": "Backgrounds", "credit": "<i>nobody</i>", "licence": "CC0"},
]
HOSTILE_CAPTIONS = [
    "<script>window.executed = 1</script><img src=x onerror='window.executed = 1'>",
    "a" * 10_000,
    "a word and another, again and again, " * 270,
    "כלב ‮ על החוף (dog) ‏ والكلب",
    "javascript:window.executed=1",
    "",
]


def is_dead(code: int) -> bool:
    return code % 10 == 9


def code_of(picture: int, patch: int, num_codes: int) -> int | None:
    """The index map: neighbours in a row share codes, every live code comes, some patches have none."""
    if (picture, patch) == (2, 0):
        return None
    code = (picture * 11 + (patch // 2) * 5) % num_codes
    return code - 1 if is_dead(code) else code


def word_of(code: int) -> str | None:
    return None if is_dead(code) or code % 7 == 6 else WORDS[code % len(WORDS)]


def distance_of(picture: int, patch: int) -> float:
    return (picture * 37 + patch * 101) % 1000 / 1000


def write_bundle(folder: Path, num_codes: int, num_shown: int, num_words: int = 20) -> bundle.Bundle:
    """Write pages, data and pictures. Every tenth code is dead; pictures 1 and 4 have the hostile captions."""
    bundle.copy_pages(folder)
    (folder / "data").mkdir()
    pictures = [_picture(number, num_codes) for number in range(num_shown)]
    members: list[list[list[float]]] = [[] for _ in range(num_codes)]
    for picture in pictures:
        for patch, code in enumerate(picture["index"]):
            if code is not None:
                row, column = divmod(patch, picture["columns"])
                size = [picture["patches_high"], picture["patches_wide"]]
                number = picture["image"]
                members[code].append([number, row, column, distance_of(number, patch), *size])
    for occurrences in members:
        occurrences.sort(key=lambda occurrence: occurrence[3])
    order = sorted(range(num_codes), key=lambda code: -len(members[code]))
    rank = {code: place for place, code in enumerate(order, 1)}

    codes = [_code(code, members[code], rank[code], num_codes) for code in range(num_codes)]
    live = [code for code in range(num_codes) if members[code]]
    meta = {
        "schema": bundle.SCHEMA, "title": "By rule", "model": "by rule", "weights": "0" * 64, "num_codes": num_codes,
        "num_channels": 2, "num_active": len(live), "num_images": num_shown, "num_tokens": sum(map(len, members)),
        "num_shown": num_shown, "has_captions": True, "has_distances": True, "has_decoded": False,
        "num_levels": 1, "window": 2, "licences": LICENCES, "measures": {},
        "sources": [{"name": "rules", "num_images": num_shown}], "position_rows": POSITION_ROWS,
        "position_columns": POSITION_COLUMNS, "histogram_edges": EDGES, "figure": live[:6],
        "interval": {"level": 0.95, "num_tests": 100},
    }  # fmt: skip
    bundle.write_value(folder, "meta", meta)
    bundle.write_value(folder, "wall", _wall(codes, members))
    bundle.write_in_files(folder, "codes", codes, bundle.CODES_PER_FILE)
    bundle.write_in_files(folder, "images", pictures, bundle.IMAGES_PER_FILE)
    bundle.write_value(folder, "words", _words(codes, num_words))
    copies = [_jpeg(SHAPES[number % 3], number) for number in range(12)]
    for number in range(num_shown):
        path = folder / bundle.image_path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(copies[number % 12])
    return bundle.Bundle(folder)


def _picture(number: int, num_codes: int) -> dict:
    shape = SHAPES[number % 3]
    index = [code_of(number, patch, num_codes) for patch in range(shape["rows"] * shape["columns"])]
    captions = [f"a {word_of(index[-1]) or 'thing'} and more of picture {number}"]
    if number in (1, 4):
        captions += HOSTILE_CAPTIONS
    code, masked = index[-1], None
    if number % 2 == 0:
        guesses = [[code, 0.5], [0, 0.25], [1, 0.125]]
        hidden = [{"patch": patch, "guesses": guesses} for patch, other in enumerate(index) if other == code]
        masked = {"code": code, "patches": hidden}
    return {
        "image": number, "name": f"{number:06d}.jpg", "source": 0, "licences": [number % 2], "captions": captions,
        **shape, "index": index, "masked": masked,
    }  # fmt: skip


def _code(code: int, members: list, rank: int, num_codes: int) -> dict:
    distinct = list({occurrence[0]: occurrence for occurrence in reversed(members)}.values())[::-1]
    histogram = [0] * (len(EDGES) - 1)
    positions = [0] * (POSITION_ROWS * POSITION_COLUMNS)
    for _, row, column, distance, _, _ in members:
        histogram[min(int(distance * 4), 3)] += 1
        positions[row * POSITION_COLUMNS + column] += 1
    word = word_of(code) if members else None
    steps = max(1, len(distinct) // 12)
    words = []
    if members:
        words = [{"word": "and", "both": 3, "images": 60, "lift": 1.1, "low": 0.4, "high": 2.5}]
    if word is not None:
        words.insert(0, {"word": word, "both": 12, "images": 20, "lift": 6.0 + code % 5, "low": 2.5, "high": 14.0})
    others = [(code + step) % num_codes for step in (1, 2, 3)]
    return {
        "code": code, "tokens": len(members), "images": len(distinct), "rank": rank, "nearest": distinct[:20],
        "quantiles": distinct[::steps][:12], "random": distinct[1::2][:12], "histogram": histogram,
        "positions": positions, "words": words,
        "neighbours": [{"code": other, "count": 4, "lift": 2.5} for other in others] if members else [],
        "near": [{"code": other, "distance": 0.1 * step} for step, other in enumerate(others, 1)], "next": [],
    }  # fmt: skip


def _wall(codes: list[dict], members: list) -> dict:
    live = [code["tokens"] > 0 for code in codes]
    best = [next((word for word in code["words"] if word["low"] > 1), None) for code in codes]

    def column(of, of_all=True):
        return [of(code) if of_all or is_live else None for code, is_live in enumerate(live)]

    lift = {name: [word and word[name.removeprefix("lift_")] for word in best] for name in ("lift_low", "lift_high")}
    return lift | {
        "tokens": [code["tokens"] for code in codes], "images": [code["images"] for code in codes],
        "mean_distance": column(lambda code: sum(each[3] for each in members[code]) / len(members[code]), False),
        "spread": column(lambda code: code % 13 / 13, False),
        "word": [word and word["word"] for word in best], "lift": [word and word["lift"] for word in best],
        "precision": [0.6 if word else None for word in best], "label": [None] * len(codes),
        "near_code": column(lambda code: codes[code]["near"][0]["code"]),
        "near_distance": column(lambda code: code % 17 / 17),
        "x": column(lambda code: code * 0.31 % 1), "y": column(lambda code: code * 0.77 % 1),
        "medoid": column(lambda code: codes[code]["nearest"][0], False),
    }  # fmt: skip


def _words(codes: list[dict], num_words: int) -> list[dict]:
    claimed = {word: [] for word in WORDS}
    for code in codes:
        for word in code["words"]:
            if word["low"] > 1:
                entry = {name: word[name] for name in ("both", "lift", "low", "high")}
                claimed[word["word"]].append({"code": code["code"], "images": code["images"], **entry})
    for entries in claimed.values():
        entries.sort(key=lambda entry: (-entry["low"], entry["code"]))
    found = [{"word": word, "images": 20, "forms": [], "codes": claimed[word][:50]} for word in WORDS]
    found += [{"word": word, "images": 60, "forms": [], "codes": []} for word in UNCLAIMED]
    found += [
        {**found[number % 6], "word": f"word{number}", "codes": found[number % 6]["codes"][:10]}
        for number in range(num_words - len(found))
    ]
    return sorted(found, key=lambda word: word["word"])


def _jpeg(shape: dict, number: int) -> bytes:
    """A picture whose patches differ, so that a wrong crop is seen."""
    image = Image.new("RGB", (shape["width"], shape["height"]), ((number * 40) % 256, 90, 120))
    for x in range(0, shape["width"], 16):
        for y in range(0, shape["height"], 16):
            colour = ((x * 3 + number * 20) % 256, (y * 3) % 256, (number * 60 + x + y) % 256)
            image.paste(colour, (x, y, min(x + 14, shape["width"]), min(y + 14, shape["height"])))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
